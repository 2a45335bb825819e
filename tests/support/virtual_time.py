"""An event loop whose clock jumps: what sleeps for an hour is awake at once, and what waits indefinitely is an
error."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_THREADS: Final = ThreadPoolExecutor(32, "virtual time")
"""Of all loops: to start one for each of thousands of short loops is half of their work."""


class NothingLeftToDoError(AssertionError):
    """Every task waits for something that nobody will do."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.threads = 0  # calls that the executor's threads are at
        self._before = set(threading.enumerate())

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.threads or any(each.daemon for each in set(threading.enumerate()) - self._before):
            return super().select(0.01)  # no time passes while a thread works
        if timeout is None:
            raise NothingLeftToDoError
        self.now += timeout
        return super().select(0)


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        self._calls: set[Future[Any]] = set()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        call = (executor or _THREADS).submit(func, *args)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return self._waited_for(call)

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """The threads stay; whatever this loop has asked of them is waited for, though nobody may want it any more."""
        await asyncio.gather(*(self._waited_for(call) for call in set(self._calls)), return_exceptions=True)

    def _waited_for(self, call: Future[_T]) -> asyncio.Future[_T]:
        self._jumping.threads += 1
        future = asyncio.wrap_future(call, loop=self)
        future.add_done_callback(lambda _: self._returned())
        return future

    def _returned(self) -> None:
        self._jumping.threads -= 1


def run_virtual(main: Callable[[Callable[[], float]], Coroutine[Any, Any, _T]]) -> _T:
    """Runs `main(clock)`; no real time passes but for computing. A task left running at the end is an error."""
    with asyncio.Runner(loop_factory=_JumpingLoop) as runner:
        loop = runner.get_loop()

        async def guarded() -> _T:
            result = await main(loop.time)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks outlive the call: {left}"
            return result

        return runner.run(guarded())
