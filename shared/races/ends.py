"""The ends of what a race made: tasks that go on behind it. Its report names those that are under way."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from shared.deadline import Clock, Deadline

_LEAST_SECONDS: Final = 1.0  # what an end is given at least, however late it is
_T = TypeVar("_T")
InBackground = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


@dataclass(frozen=True, slots=True)
class RaceTimeouts:
    """How patient a race is. Seconds; a pause doubles with each attempt.

    `promote` is for the promotion, `reap` for each end of something, and `ends` for all of them together once the
    deadline and the promotion's time are over. `linger` is how long a report waits for ends that can go on behind it.
    """

    attempts: int = 3
    pause: float = 0.25
    boot: float = 45.0
    reap: float = 60.0
    promote: float = 60.0
    ends: float = math.inf
    linger: float = 0.15


async def within(work: Awaitable[_T], seconds: float) -> _T | None:
    """None when the seconds passed first; the work is cancelled then."""
    try:
        async with asyncio.timeout(seconds) as scope:
            return await work
    except TimeoutError:
        if not scope.expired():
            raise
        return None


class RaceEnds:
    """`reaped`, `leftovers` and `ending` are for the report. `until` is when all ends shall be over.

    Ends are tasks of `in_background`, which sees them to their end: whoever leaves a block waits for its end as long as
    there is time, and not when he is cancelled or after `hurry`.
    """

    def __init__(
        self, timeouts: RaceTimeouts, clock: Clock, in_background: InBackground, until: Deadline | None = None
    ) -> None:
        self._timeouts = timeouts
        self._clock = clock
        self._in_background = in_background
        self._until = until
        self._running: dict[asyncio.Task[None], Callable[[], str]] = {}
        self._hurries = False
        self.reaped: list[str] = []
        self.leftovers: list[str] = []

    def hurry(self) -> None:
        """The race's result is known: nothing waits for an end any more."""
        self._hurries = True

    @property
    def ending(self) -> tuple[str, ...]:
        """What is being ended just now: names of sandboxes and ids of snapshots."""
        return tuple(sorted({label() for task, label in self._running.items() if not task.done()}))

    def pending(self) -> list[asyncio.Task[None]]:
        return [task for task in self._running if not task.done()]

    async def settle(self, seconds: float) -> None:
        """Waits for the ends, for so many seconds at most."""
        until = Deadline.after(seconds, self._clock)
        while (pending := self.pending()) and not until.passed:
            await asyncio.wait(pending, timeout=None if math.isinf(seconds) else until.left())
        for task in self._running:
            if task.done() and not task.cancelled():
                task.result()  # a bug is raised, wherever it was met

    @asynccontextmanager
    async def behind(self, begin: Callable[[], asyncio.Task[None] | None]) -> AsyncIterator[None]:
        """A block after which something is ended. It is waited for unless there is no time for that."""
        cancelled = False
        try:
            yield
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            end = begin()
            if end is not None and not cancelled and not self._hurries:
                await asyncio.wait({end})

    def begin(self, work: Coroutine[Any, Any, None], label: Callable[[], str]) -> asyncio.Task[None]:
        task = self._in_background(work)
        self._running[task] = label
        return task

    def seconds(self) -> float:
        """What one end is given now."""
        left = math.inf if self._until is None else self._until.left()
        return min(self._timeouts.reap, max(_LEAST_SECONDS, left))
