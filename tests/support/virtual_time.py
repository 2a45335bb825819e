"""An event loop whose clock jumps: what sleeps for an hour is awake at once, and what waits indefinitely is an
error."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class NothingLeftToDoError(AssertionError):
    """Every task waits for something that nobody will do."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingLeftToDoError
        self.now += max(0.0, timeout)
        return super().select(0)


class _JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


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
