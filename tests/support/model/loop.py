"""An event loop without a selector, for thousands of short runs: its clock jumps to the next timer.

`tests/support/virtual_time.py` does the same for one test with the ordinary loop; this one opens no file and makes no
system call, is used again for the next run, and begins each run at time 0, so that equal plans give equal runs. Its
handles are its own: those of asyncio spend a third of a run on what nothing here asks for (debugging, a context each).
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from heapq import heappop, heappush
from typing import Any, Final, TypeVar, TypeVarTuple

from tests.support.virtual_time import NothingLeftToDoError

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


_MANY: Final = 10_000  # tasks; then those that are done are forgotten


class _Step(list[Any]):
    """What asyncio asks of a handle: when, a serial number, the callback (None: cancelled), its arguments and context.
    A list is made, and compared, without a line of Python."""

    __slots__ = ()

    def cancel(self) -> None:
        self[2] = self[3] = None

    def cancelled(self) -> bool:
        return self[2] is None

    def when(self) -> float:
        at: float = self[0]
        return at


class VirtualLoop(asyncio.BaseEventLoop):
    """One at a time in a thread. `steps` counts the callbacks of the current run."""

    _stopping: bool  # BaseEventLoop's own

    def __init__(self) -> None:
        super().__init__()
        self._ready: deque[_Step] = deque()
        self._timers: list[_Step] = []
        self._made: list[asyncio.Task[Any]] = []  # asyncio's own set of all tasks is slow to read
        self._serial = 0
        self._now = 0.0
        self.steps = 0
        self.most_steps = 0
        self.create_future = functools.partial(asyncio.Future, loop=self)  # type: ignore[method-assign]

    def time(self) -> float:
        return self._now

    def create_task(  # type: ignore[override]  # no factory, no names
        self, coro: Coroutine[Any, Any, _T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[_T]:
        task = asyncio.Task(coro, loop=self, name=name or "", context=context)
        made = self._made
        if len(made) == _MANY:
            made[:] = [each for each in made if not each.done()]
        made.append(task)
        return task

    def call_soon(  # type: ignore[override]  # see _Step
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> _Step:
        step = _Step((self._now, 0, callback, args, context))
        self._ready.append(step)
        return step

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> _Step:
        self._serial += 1
        step = _Step((when, self._serial, callback, args, context))
        heappush(self._timers, step)
        return step

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> _Step:
        self._serial += 1
        step = _Step((self._now + delay, self._serial, callback, args, context))
        heappush(self._timers, step)
        return step

    def run(self, main: Coroutine[Any, Any, _T], *, most_steps: int) -> _T:
        """Runs `main` from time 0 and drops whatever tasks and timers it leaves. Raises RuntimeError after
        `most_steps` callbacks: something goes round in circles."""
        self._now, self.steps, self.most_steps = 0.0, 0, most_steps
        try:
            return self.run_until_complete(main)
        finally:
            self.most_steps = self.steps + most_steps
            left = [task for task in self._made if not task.done()]
            for task in left:
                task.cancel()
            if left:
                self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._ready.clear()
            self._timers.clear()
            self._made.clear()

    def _run_once(self) -> None:
        """All rounds until the loop is stopped: what is ready, then the clock jumps to the next timers."""
        ready, timers, next_ready = self._ready, self._timers, self._ready.popleft
        while not self._stopping:
            if not ready:
                while timers and timers[0][2] is None:
                    heappop(timers)
                if not timers:
                    raise NothingLeftToDoError
                if timers[0][0] > self._now:
                    self._now = timers[0][0]
            now = self._now
            while timers and timers[0][0] <= now:
                step = heappop(timers)
                if step[2] is not None:
                    ready.append(step)
            count = len(ready)
            self.steps += count
            if self.steps > self.most_steps:
                raise RuntimeError(f"more than {self.most_steps} steps in one run")
            while count:
                count -= 1
                _, _, callback, args, context = next_ready()
                if callback is None:
                    continue
                try:
                    if context is None:
                        callback(*args)
                    else:
                        context.run(callback, *args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"{callback} failed", "exception": error})

    def _write_to_self(self) -> None:
        """Nothing sleeps in a system call, so nobody need be woken."""
