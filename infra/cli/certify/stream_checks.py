"""Assumptions about event streams (docs/wire/anthropic.md#83-sse-framing)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried, Observed
from infra.cli.doctor.context import http_client

if TYPE_CHECKING:
    import httpx2

_SILENCE: Final = 45.0
_SILENCE_OFFLINE: Final = 17.0
"""Seconds that a ping is waited for."""
_PINGS: Final = 30.0
_MOST_FRAMES: Final = 200


@dataclass(frozen=True, slots=True)
class StreamLife:
    """`frames`: the name that each had, and the type of its event. `ping`: seconds of silence before one, or None."""

    frames: tuple[tuple[str, str], ...]
    ping: float | None


async def stream_life(ground: Ground) -> StreamLife:
    """The stream of a session without a message: an interrupt is told, and nothing follows it."""
    import httpx2

    session_id = await ground.session()
    url = f"{ground.context.settings.anthropic_url}/v1/sessions/{session_id}/events/stream"
    silence = _SILENCE_OFFLINE if ground.context.offline else _SILENCE
    headers = {"accept": "text/event-stream", **ground.headers(ground.key("environment"))}
    client = http_client(ground.context.settings.anthropic_url)
    frames: list[tuple[str, str]] = []
    try:
        async with client.stream("GET", url, headers=headers, timeout=silence + 10.0) as answer:
            if answer.status_code != 200:
                raise NotTried(f"no stream: HTTP {answer.status_code}")
            interrupt = {"events": [{"type": "user.interrupt"}]}
            await ground.claude("POST", f"/v1/sessions/{session_id}/events", interrupt, key="api")
            began = time.monotonic()
            ping = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(silence):
                    async for name, kind in _frames(answer):
                        if name == "ping":
                            ping = time.monotonic() - began
                            break
                        frames.append((name, kind))
                        began = time.monotonic()
    except httpx2.HTTPError as error:
        raise NotTried(f"the stream broke ({type(error).__name__})") from None
    finally:
        await client.aclose()
    return StreamLife(tuple(frames), ping)


async def _frames(answer: httpx2.Response) -> AsyncIterator[tuple[str, str]]:
    """The name of each frame, empty without one, and the type that its data names."""
    name, kind, told = "", "", 0
    async for line in answer.aiter_lines():
        field, _, value = line.partition(":")
        match field:
            case "event":
                name = value.strip()
            case "data":
                with contextlib.suppress(ValueError, AttributeError):
                    kind = str(json.loads(value).get("type"))
            case "" if not line and (name or kind):
                yield name, kind
                name, kind, told = "", "", told + 1
                if told == _MOST_FRAMES:
                    return


async def names(ground: Ground) -> Observed:
    frames = (await ground.once(stream_life)).frames
    if not frames:
        raise NotTried("no event came after an interrupt")
    unlike = [name for name, kind in frames if name != kind]
    seen = f"{len(frames)} frames, each with its event's type as its name"
    named = "type"
    if unlike:
        named = "none" if not any(unlike) else "message"
        seen = f"{len(unlike)} of {len(frames)} frames have " + ("no name" if named == "none" else "another name")
    return Observed(not unlike, seen, {"claude.event_names": named})


async def ping(ground: Ground) -> Observed:
    seconds = (await ground.once(stream_life)).ping
    if seconds is None:
        return Observed(False, "no ping as long as was waited", {"claude.ping_interval": 600.0})
    told = f"a ping after {seconds:.1f} s of silence"
    return Observed(seconds <= _PINGS, told, {"claude.ping_interval": max(round(seconds, 1), 0.1)})


_STREAM: Final = "docs/wire/anthropic.md#83-sse-framing"

CHECKS: Final = (
    ServiceCheck(
        "queue.stream-names",
        _STREAM,
        "each frame of an event stream has an `event:` line with its event's type",
        "where lines are missing the SDK drops the frames: workers see calls only when they read the history again",
        names,
    ),
    ServiceCheck(
        "queue.stream-ping",
        _STREAM,
        f"a silent stream has an `event: ping` within {_PINGS:.0f} s",
        "`STREAM_SILENCE_SECONDS` of infra/cli/session/feed.py must be longer than it: feeds open again and again",
        ping,
    ),
)
