"""Follow a session live, whatever the stream does: it may end, break or repeat itself at any time.

The stream is live only and cannot be resumed (docs/wire/anthropic.md#83-sse-framing), so the way to attach is always:
open the stream, read the history, then the tail, and drop what was seen by its id. `Feed` is all this needs of a
service.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from infra.cli.session.render import Event, stop_reason

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0


class FeedBroken(Exception):
    """The feed failed in a way that may pass: a lost connection, a 5xx, a 429."""


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


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing has happened for `seconds`. `waiting`: the session waits for tool results."""

    seconds: float
    waiting: bool


@dataclass
class Follower:
    """Yields each new event once, until the turn in question has ended; `finish` says how.

    prompt: what sends the message whose turn is followed, once the stream is open, and answers its event id. None:
        the session's latest turn is followed, and the history is shown from its beginning.
    quiet_after: seconds without an event after which `Quiet` is yielded, and again after each such time.
    patience: seconds for which a feed may stay broken; longer is LOST.
    """

    feed: Feed
    prompt: Callable[[], Awaitable[str]] | None = None
    quiet_after: float = 15.0
    patience: float = 120.0
    finish: Finish | None = None
    _seen: set[str] = field(default_factory=set)
    _prompt_id: str | None = None
    _turn: _Turn = field(default_factory=lambda: _Turn(None))

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
            self._new(await self.feed.history())
            self._prompt_id = await self.prompt()
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
                    yield Quiet(quiet, self._turn.waiting)

    async def _catch_up(self) -> Sequence[Event]:
        """Read the history, take the turn's state from it, and return what was not shown yet."""
        history = await self.feed.history()
        self._turn = _Turn(self._prompt_id)
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
class _Turn:
    """What a session's events, in order, say about the turn that is followed.

    An idle ends the turn only when the prompt was served before it: a message to a session that is still at work
    waits behind the earlier turn, whose end is not ours.
    """

    prompt_id: str | None
    served: bool = False
    waiting: bool = False
    undecided: bool = False
    finish: Finish | None = None

    def advance(self, event: Event) -> None:
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
