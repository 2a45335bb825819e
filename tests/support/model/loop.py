"""An event loop without a selector, for thousands of short runs: its clock jumps to the next timer.

`tests/support/virtual_time.py` does the same for one test with the ordinary loop; this one opens no file and makes no
system call, is used again for the next run, and begins each run at time 0, so that equal plans give equal runs. Its
handles are its own: those of asyncio spend a third of a run on what nothing here asks for (debugging, a context each).
Most calls are those of asyncio's own C code and of the model, neither of which asks for a handle: they get none.
"""

from __future__ import annotations

import asyncio
import functools
from asyncio import tasks
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import Context
from heapq import heappop, heappush
from typing import Any, Final, TypeVar, TypeVarTuple
from unittest.mock import patch

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


@contextmanager
def unlisted() -> Iterator[None]:
    """Tasks are not written down in asyncio's own set of all tasks, whose weak references cost as much as their run.
    Python 3.14 has none."""
    listed = next((vars(tasks)[name] for name in ("_scheduled_tasks", "_all_tasks") if name in vars(tasks)), None)
    with patch.object(listed, "add", bool) if listed is not None else nullcontext():
        yield


class VirtualLoop(asyncio.BaseEventLoop):
    """One at a time in a thread. `steps` counts the callbacks of the current run."""

    _stopping: bool  # BaseEventLoop's own

    def __init__(self) -> None:
        super().__init__()
        self._ready: deque[list[Any]] = deque()
        self._timers: list[list[Any]] = []
        self._made: list[asyncio.Task[Any]] = []  # see `unlisted`
        self._serial = 0
        self._now = 0.0
        self.steps = 0
        self.most_steps = 0
        self.create_future = functools.partial(asyncio.Future, loop=self)  # type: ignore[method-assign]
        self.get_debug = bool  # type: ignore[method-assign]  # each future asks; the answer is no

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
    ) -> _Step | None:
        """With a context it is a task or a future that asks, and drops the answer: then there is none."""
        if context is not None:
            self._ready.append([0.0, 0, callback, args, context])
            return None
        step = _Step((0.0, 0, callback, args, None))
        self._ready.append(step)
        return step

    def after(self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts) -> None:
        """`call_later` for what is never cancelled."""
        self._serial = serial = self._serial + 1
        heappush(self._timers, [self._now + delay, serial, callback, args, None])

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
        """All rounds until the loop is stopped: what is ready; when nothing is, the clock jumps to the next timers."""
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
