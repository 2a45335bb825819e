"""Tool calls that wait for a person: asked at the terminal, one after the other, while the session is watched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from infra.cli.session.follow import Call, FeedBroken
from infra.cli.session.render import LineStyle, clean, summarise
from infra.cli.session.screen import Shown

_LONGEST_LINE: Final = 4096


@dataclass(frozen=True, slots=True)
class ConfirmationAnswer:
    allow: bool
    reason: str = ""


class Confirms(Protocol):
    async def confirm(self, call_id: str, *, allow: bool, reason: str = "") -> None:
        """Raises FeedBroken, FeedRefused."""
        ...


def is_asked_at_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def read_answer(line: str) -> ConfirmationAnswer | None:
    """`y`, `n`, or `n` with a reason behind it; None for anything else."""
    word, _, reason = line.strip().partition(" ")
    if word.lower() in ("y", "yes", "allow"):
        return ConfirmationAnswer(True)
    if word.lower() in ("n", "no", "deny"):
        return ConfirmationAnswer(False, reason.strip())
    return None


def question(call: Call) -> str:
    return f"? allow {clean(call.name)}  {summarise(call.input)}   [y, n, n REASON] "


@dataclass
class Asker:
    """Asks for each call once. A call that somebody else has answered is not asked for any longer."""

    feed: Confirms
    screen: Shown
    read_line: Callable[[], Awaitable[str | None]]
    _queue: asyncio.Queue[Call] = field(default_factory=asyncio.Queue)
    _known: set[str] = field(default_factory=set)
    _open: set[str] = field(default_factory=set)
    _reading: asyncio.Task[ConfirmationAnswer | None] | None = None
    _asked: str = ""

    def update(self, calls: Iterable[Call]) -> None:
        """The calls without a result, as they are now."""
        asking = {call.id: call for call in calls if call.asks}
        self._open = set(asking)
        for identity, call in asking.items():
            if identity not in self._known:
                self._known.add(identity)
                self._queue.put_nowait(call)
        if self._reading is not None and self._asked not in self._open:
            self._reading.cancel()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Asks inside the block. Raises what sending raises, as an exception group."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._ask_all())
            try:
                yield
            finally:
                task.cancel()

    async def _ask_all(self) -> None:
        while True:
            call = await self._queue.get()
            if call.id not in self._open:
                continue
            self._asked, self._reading = call.id, asyncio.create_task(self._ask(call))
            try:
                answer = await self._reading
            except asyncio.CancelledError:
                if not self._reading.cancelled() or _is_cancelling():
                    raise
                self.screen.remark("  answered elsewhere")
                continue
            finally:
                self._reading.cancel()
                self._reading = None
            if answer is None:
                return  # standard input has ended: nobody is there to ask
            await self._send(call, answer)

    async def _ask(self, call: Call) -> ConfirmationAnswer | None:
        while True:
            self.screen.remark(question(call), LineStyle.STRONG)
            line = await self.read_line()
            if line is None:
                return None
            answer = read_answer(line)
            if answer is not None:
                return answer

    async def _send(self, call: Call, answer: ConfirmationAnswer) -> None:
        try:
            await self.feed.confirm(call.id, allow=answer.allow, reason=answer.reason)
        except FeedBroken as error:
            self._known.discard(call.id)
            self.screen.remark(f"  the answer may not have arrived ({error})", LineStyle.WRONG)


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def read_terminal_line() -> str | None:
    """A line of standard input; None at its end. Waits without a thread, so it can be cancelled."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    descriptor = sys.stdin.fileno()
    loop.add_reader(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
    data = os.read(descriptor, _LONGEST_LINE)
    return data.decode(errors="replace") if data else None
