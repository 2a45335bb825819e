"""Follow a session live, whatever the stream does: it may end, break or repeat itself at any time.

The stream is live only and cannot be resumed (docs/wire/anthropic.md#83-sse-framing), so the way to attach is always:
open the stream, read the history, then the tail, and drop what was seen by its id. `Feed` is all this needs of a
service.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from typing import Final, Protocol

from infra.cli.session.render import Event, stop_reason

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_LOOKS: Final = 8
"""With the pauses between connections about half a minute: a message that is not in the history by then did not
arrive, or the service is in trouble."""


class FeedBroken(Exception):
    """The feed failed in a way that may pass: a lost connection, a 5xx, a 429. What was sent may have arrived."""


class NotSent(FeedBroken):
    """The same, and it is certain that nothing arrived: the connection was never made, or the service said 429."""


class FeedRefused(Exception):
    """The service said no (401, 403, 404, ...). The text is for people."""


class Feed(Protocol):
    """One session's events as the service offers them. Methods raise FeedBroken or FeedRefused."""

    def open(self) -> contextlib.AbstractAsyncContextManager[AsyncIterator[Event]]:
        """The live stream, connected when the block is entered. It may end at any time without an error."""
        ...

    async def history(self) -> Sequence[Event]:
        """Every event so far, oldest first; what is not processed yet comes last."""
        ...


class Finish(Enum):
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"
    UNKNOWN_SEND = "unknown_send"
    """The answer to the message was lost, and the history does not show it: it is not sent again."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call without a result. `began`: Unix time by the service's clock, None where it said none.

    asks: it waits for a person to allow it. custom: somebody's own program must answer it, no worker does.
    """

    id: str
    name: str
    input: object
    began: float | None
    asks: bool = False
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing has happened for `seconds`. `waiting`: the session waits for tool results; `calls`: for these."""

    seconds: float
    waiting: bool
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """What is said to the session. `send` answers the event's id; it raises NotSent, FeedBroken or FeedRefused."""

    text: str
    send: Callable[[], Awaitable[str]]


@dataclass
class Follower:
    """Yields each new event once, until the turn in question has ended; `finish` says how.

    prompt: the message whose turn is followed; it is sent once, when the stream is open. None: the session's latest
        turn is followed, and the history is shown from its beginning.
    quiet_after: seconds without an event after which `Quiet` is yielded, and again after each such time.
    patience: seconds for which a feed may stay broken; longer is LOST.
    """

    feed: Feed
    prompt: Message | None = None
    quiet_after: float = 15.0
    patience: float = 120.0
    finish: Finish | None = None
    _seen: set[str] = field(default_factory=set)
    _prompt_id: str | None = None
    _looks_for_prompt: int = 0
    _turn: TurnState = field(default_factory=lambda: TurnState(None))

    async def events(self) -> AsyncGenerator[Event | Quiet, None]:
        """Raises FeedRefused. A broken feed is opened again, with back-off."""
        loop = asyncio.get_running_loop()
        pause, sound_at = _FIRST_PAUSE, loop.time()
        while self.finish is None:
            try:
                async with self.feed.open() as stream, contextlib.aclosing(self._session(stream)) as found:
                    async for item in found:
                        pause, sound_at = _FIRST_PAUSE, loop.time()
                        yield item
            except FeedBroken:
                pass
            if self.finish is None and loop.time() - sound_at > self.patience:
                self.finish = Finish.LOST
            elif self.finish is None:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _session(self, stream: AsyncIterator[Event]) -> AsyncGenerator[Event | Quiet, None]:
        """One connection, from open to its end."""
        if self.prompt is not None and self._prompt_id is None:
            self._prompt_id = await self._say(self.prompt)
            if self._prompt_id is None:
                return
        for event in await self._catch_up():
            yield event
        if self.finish is not None:
            return
        quiet = 0.0
        async with contextlib.aclosing(_with_pauses(stream, self.quiet_after)) as tail:
            async for found in tail:
                new = [] if found is None else self._new([found])
                if found is not None:
                    self._turn.advance(found)
                    self.finish = self._turn.finish
                if found is None or self._turn.undecided:
                    # Whatever the stream did not say is in the history.
                    new += await self._catch_up()
                for event in new:
                    yield event
                if self.finish is not None:
                    return
                quiet = quiet + self.quiet_after if found is None and not new else 0.0
                if quiet:
                    yield Quiet(quiet, self._turn.waiting, self._turn.calls)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls of the turn that have no result yet."""
        return self._turn.calls

    async def _say(self, message: Message) -> str | None:
        """Send the message, or find it in the history where it was sent and its answer was lost: a message that is
        sent twice is served twice. None: not found yet; after _LOOKS the turn is given up as UNKNOWN_SEND."""
        history = await self.feed.history()
        if not self._looks_for_prompt:
            self._new(history)
            self._looks_for_prompt = 1
            try:
                return await message.send()
            except NotSent:
                self._looks_for_prompt = 0
                raise
        arrived = [event for event in history if event.get("id") not in self._seen and _is_message(event, message.text)]
        if arrived:
            return str(arrived[0]["id"])
        self._looks_for_prompt += 1
        if self._looks_for_prompt > _LOOKS:
            self.finish = Finish.UNKNOWN_SEND
        return None

    async def _catch_up(self) -> Sequence[Event]:
        """Read the history, take the turn's state from it, and return what was not shown yet."""
        history = await self.feed.history()
        self._turn = TurnState(self._prompt_id)
        for event in history:
            self._turn.advance(event)
        self.finish = self._turn.finish
        begin = self._beginning_of_last_turn(history) if self.prompt is None and not self._seen else 0
        self._new(history[:begin])
        return self._new(history[begin:])

    def _beginning_of_last_turn(self, history: Sequence[Event]) -> int:
        messages = [place for place, event in enumerate(history) if event.get("type") == "user.message"]
        return messages[-1] if messages else 0

    def _new(self, events: Sequence[Event]) -> list[Event]:
        """Those that were not here before. Preview events have no id and are not shown
        (docs/wire/anthropic.md#82-event-json)."""
        new = [event for event in events if event.get("id") and event["id"] not in self._seen]
        self._seen.update(str(event["id"]) for event in new)
        return new


@dataclass
class TurnState:
    """What a session's events, in order, say about the turn that is followed.

    An idle ends the turn only when the prompt was served before it: a message to a session that is still at work
    waits behind the earlier turn, whose end is not ours.
    """

    prompt_id: str | None
    served: bool = False
    waiting: bool = False
    undecided: bool = False
    finish: Finish | None = None
    _calls: dict[str, Call] = field(default_factory=dict)

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(self._calls.values())

    def advance(self, event: Event) -> None:
        self._keep_calls(event)
        if self.prompt_id is None or (event.get("id") == self.prompt_id and event.get("processed_at")):
            self.served = True
        match event.get("type"):
            case "session.status_idle":
                reason = stop_reason(event)
                self.waiting = reason == "requires_action"
                if self.waiting:
                    return
                self.undecided = not self.served
                if self.served and (self.finish is None or self.prompt_id is None):
                    self.finish = Finish.DONE if reason == "end_turn" else Finish.FAILED
            case "session.status_terminated" | "session.deleted":
                self.finish = Finish.FAILED
            case "session.status_running":
                self.waiting = False
                if self.prompt_id is None:
                    self.finish = None

    def _keep_calls(self, event: Event) -> None:
        match event.get("type"):
            case "agent.tool_use" | "agent.mcp_tool_use" | "agent.custom_tool_use" as kind:
                identity = str(event.get("id", ""))
                self._calls[identity] = Call(
                    identity,
                    str(event.get("name", "?")),
                    event.get("input"),
                    unix_time(event.get("processed_at")),
                    asks=event.get("evaluated_permission") == "ask",
                    custom=kind == "agent.custom_tool_use",
                )
            case "user.tool_confirmation":
                call = self._calls.get(str(event.get("tool_use_id")))
                if call is not None:
                    self._calls[call.id] = replace(call, asks=False)
            case "user.message" | "session.status_terminated" | "session.deleted":
                self._calls.clear()
            case _:
                for name in RESULT_OF:
                    self._calls.pop(str(event.get(name, "")), None)


RESULT_OF: Final = ("tool_use_id", "custom_tool_use_id", "mcp_tool_use_id")
"""Which field of a result names its call, by the kind of call (docs/wire/anthropic.md#82-event-json)."""


def unix_time(stamp: object) -> float | None:
    """Of the service's time stamps; None for what is none."""
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return None


def _is_message(event: Event, text: str) -> bool:
    """Is this the user's message with this text?"""
    if event.get("type") != "user.message":
        return False
    content = event.get("content")
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict)) == text


async def _with_pauses(stream: AsyncIterator[Event], seconds: float) -> AsyncGenerator[Event | None, None]:
    """The stream's events, and None whenever `seconds` pass without one."""
    pending: asyncio.Future[Event | None] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(stream, None))
            done, _ = await asyncio.wait({pending}, timeout=seconds)
            if not done:
                yield None
                continue
            event, pending = pending.result(), None
            if event is None:
                return
            yield event
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
