"""An event loop without a selector, for thousands of short runs: its clock jumps to the next timer.

`tests/support/virtual_time.py` does the same for one test with the ordinary loop; this one opens no file and makes no
system call, is used again for the next run, and begins each run at time 0, so that equal plans give equal runs.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

from tests.support.virtual_time import NothingLeftToDoError

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class VirtualLoop(asyncio.BaseEventLoop):
    """One at a time in a thread. `steps` counts the callbacks of the current run."""

    _ready: deque[asyncio.Handle]

    def __init__(self) -> None:
        super().__init__()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._serial = 0
        self._now = 0.0
        self.steps = 0
        self.most_steps = 0

    def time(self) -> float:
        return self._now

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, handle))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def run(self, main: Coroutine[Any, Any, _T], *, most_steps: int) -> _T:
        """Runs `main` from time 0 and drops whatever tasks and timers it leaves. Raises RuntimeError after
        `most_steps` callbacks: something goes round in circles."""
        self._now, self.steps, self.most_steps = 0.0, 0, most_steps
        try:
            return self.run_until_complete(main)
        finally:
            self.most_steps = self.steps + most_steps
            left = asyncio.all_tasks(self)
            for task in left:
                task.cancel()
            if left:
                self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._ready.clear()
            self._timers.clear()

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise NothingLeftToDoError
            self._now = max(self._now, timers[0][0])
        now = self._now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                ready.append(handle)
        self.steps += len(ready)
        if self.steps > self.most_steps:
            raise RuntimeError(f"more than {self.most_steps} steps in one run")
        for _ in range(len(ready)):
            due = ready.popleft()
            if not due.cancelled():
                due._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer stays in the heap until its time: runs are short."""

    def _write_to_self(self) -> None:
        """Nothing sleeps in a system call, so nobody need be woken."""
