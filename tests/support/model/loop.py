"""An event loop without a selector, for thousands of short runs: its clock jumps to the next timer.

`tests/support/virtual_time.py` does the same for one test with the ordinary loop; this one opens no file and makes no
system call, is used again for the next run, and begins each run at time 0, so that equal plans give equal runs. Its
handles are its own: those of asyncio spend a third of a run on what nothing here asks for (debugging, a context each).
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


class _Step:
    """What asyncio asks of a handle."""

    __slots__ = ("_at", "_cancelled", "args", "callback", "context")

    def __init__(self, callback: Any, args: Any, context: Context | None, at: float) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self._at = at
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self.callback = self.args = None

    def cancelled(self) -> bool:
        return self._cancelled

    def when(self) -> float:
        return self._at


class VirtualLoop(asyncio.BaseEventLoop):
    """One at a time in a thread. `steps` counts the callbacks of the current run."""

    def __init__(self) -> None:
        super().__init__()
        self._ready: deque[_Step] = deque()
        self._timers: list[tuple[float, int, _Step]] = []
        self._serial = 0
        self._now = 0.0
        self.steps = 0
        self.most_steps = 0

    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]  # see _Step
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> _Step:
        step = _Step(callback, args, context, self._now)
        self._ready.append(step)
        return step

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> _Step:
        step = _Step(callback, args, context, when)
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, step))
        return step

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> _Step:
        when = self._now + delay
        step = _Step(callback, args, context, when)
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, step))
        return step

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
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise NothingLeftToDoError
            self._now = max(self._now, timers[0][0])
        now = self._now
        while timers and timers[0][0] <= now:
            step = heapq.heappop(timers)[2]
            if not step._cancelled:
                ready.append(step)
        self.steps += len(ready)
        if self.steps > self.most_steps:
            raise RuntimeError(f"more than {self.most_steps} steps in one run")
        for _ in range(len(ready)):
            step = ready.popleft()
            if step._cancelled:
                continue
            try:
                if step.context is None:
                    step.callback(*step.args)
                else:
                    step.context.run(step.callback, *step.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self.call_exception_handler({"message": f"{step.callback} failed", "exception": error})

    def _write_to_self(self) -> None:
        """Nothing sleeps in a system call, so nobody need be woken."""
