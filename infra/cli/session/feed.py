"""The events of one session through the Anthropic SDK, as `follow.Feed` wants them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from infra.cli.refusals import refusal
from infra.cli.session.follow import FeedBroken, FeedRefused, NotSent
from infra.cli.session.render import Event
from shared.unanswered import certificate_advice, unanswered

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 30.0
STREAM_SILENCE_SECONDS: Final = 120.0
"""A stream that says nothing for so long, not even a ping, is opened again: the SDK's own limit is 600 s."""
_PAGE: Final = 1000
_TOO_MANY: Final = 429
_UNREADABLE: Final = (json.JSONDecodeError, UnicodeDecodeError)
_MAY_PASS: Final = (200, 408, 409, 429)  # 200: an `error` event in the stream (docs/wire/anthropic.md#83-sse-framing)


class SdkFeed:
    """`session_id` as the user or the service gave it."""

    def __init__(self, client: AsyncAnthropic, session_id: str) -> None:
        self._events = client.beta.sessions.events
        # A message that was sent twice would be served twice: the follower looks for it in the history instead.
        self._send_once = client.with_options(max_retries=0).beta.sessions.events
        self._id = session_id

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncIterator[Event], None]:
        import httpx2

        silence = httpx2.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_SECONDS)
        with translated():
            stream = await self._events.stream(self._id, timeout=silence)
        async with stream, contextlib.aclosing(_as_json(stream)) as events:
            yield events

    async def history(self) -> Sequence[Event]:
        with translated():
            return [as_json(event) async for event in self._events.list(self._id, limit=_PAGE)]

    async def send(self, text: str) -> str:
        """Send a message; returns its event id. Raises NotSent, FeedBroken, FeedRefused."""
        with translated(sending=True):
            sent = await self._send_once.send(
                self._id, events=[{"type": "user.message", "content": [{"type": "text", "text": text}]}]
            )
        if not sent.data:
            raise FeedBroken("the service took the message and did not say which event it became")
        return sent.data[0].id

    async def confirm(self, call_id: str, *, allow: bool, reason: str = "") -> None:
        """Answer a call that waits for a person. Raises FeedBroken, FeedRefused. Saying it twice does no harm."""
        with translated():
            if allow:
                await self._events.send(
                    self._id, events=[{"type": "user.tool_confirmation", "tool_use_id": call_id, "result": "allow"}]
                )
            else:
                denial = {"type": "user.tool_confirmation", "tool_use_id": call_id, "result": "deny"}
                more = {"deny_message": reason} if reason else {}
                await self._events.send(self._id, events=[cast("Any", {**denial, **more})])


async def _as_json(stream: AsyncIterator[Any]) -> AsyncGenerator[Event, None]:
    with translated():
        async for event in stream:
            yield as_json(event)


def as_json(event: Any) -> Event:
    """As it was on the wire. The class says nothing: unknown types arrive as some other class
    (docs/wire/anthropic.md#14-sdk-transport)."""
    data: dict[str, Any] = event.to_dict(mode="json")
    return data


@contextlib.contextmanager
def translated(*, sending: bool = False) -> Iterator[None]:
    """Turns what the SDK raises into FeedBroken and FeedRefused. Their texts hold no request and no credential.

    sending: what certainly never reached the service is NotSent.
    """
    import anthropic
    import httpx2

    try:
        yield
    except anthropic.APIStatusError as error:
        if error.status_code in _MAY_PASS or error.status_code >= 500:
            kind = NotSent if sending and error.status_code == _TOO_MANY else FeedBroken
            raise kind(f"the Claude API answered {error.status_code}") from None
        raise FeedRefused(refusal(error.status_code, error.body)) from None
    except (anthropic.APIResponseValidationError, *_UNREADABLE) as error:
        raise FeedBroken(f"the service's answer cannot be read ({type(error).__name__})") from None
    except (anthropic.APIError, httpx2.HTTPError, httpx2.StreamError) as error:
        advice = certificate_advice(error)
        if advice is not None:
            raise FeedRefused(advice) from None
        kind = NotSent if sending and isinstance(error.__cause__, _never_left(httpx2)) else FeedBroken
        raise kind(unanswered(error)) from None


def _never_left(httpx2: Any) -> tuple[type[Exception], ...]:
    return (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
