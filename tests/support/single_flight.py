"""Coalesce wake-ups: webhooks come in storms, one for each tool round of each session (docs/wire/anthropic.md#t8).

One drain runs at a time in a process. A wake-up during it asks for one more afterwards, however many there are: it is
never dropped, because the running drain may have seen the queue empty already, and never queues more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from shared.deadline import Deadline

_R = TypeVar("_R")


class SingleFlight(Generic[_R]):
    """Runs `work` for whoever wakes it. Close it before the event loop ends."""

    def __init__(self, work: Callable[[Deadline | None], Awaitable[_R]]) -> None:
        self._work = work
        self._until: Deadline | None = None  # of the next run: the soonest of those who asked for it
        self._running: asyncio.Task[_R] | None = None
        self._next: asyncio.Task[_R] | None = None

    def wake(self, deadline: Deadline | None = None) -> asyncio.Task[_R]:
        """The run that begins after this call. Await it shielded: others may be waiting for it as well."""
        if deadline is not None:
            self._until = deadline if self._until is None else self._until.sooner(deadline.at)
        if self._next is not None:
            return self._next
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(None))
            return self._running
        self._next = asyncio.create_task(self._run(self._running))
        return self._next

    async def _run(self, before: asyncio.Task[_R] | None) -> _R:
        if before is not None:
            await asyncio.wait([before])
            self._running, self._next = self._next, None
        until, self._until = self._until, None
        return await self._work(until)

    async def aclose(self, grace: float) -> None:
        """Let what runs finish for `grace` seconds, drop what has not begun, cancel the rest. Never raises."""
        if self._next is not None:
            self._next.cancel()
        tasks = [task for task in (self._running, self._next) if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
