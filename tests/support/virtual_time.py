"""An event loop whose clock jumps: what sleeps for an hour is awake at once, and what waits indefinitely is an
error."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


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
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[_Ts]], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        self._jumping.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(lambda _: self._returned())
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        self._jumping.threads += 1  # a thread waits for the others
        try:
            await super().shutdown_default_executor()
        finally:
            self._returned()

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
