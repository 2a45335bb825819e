"""Waiting for what must come: for a condition and never for a time, with a limit that a busy machine keeps too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar

PATIENCE: Final = 90.0
"""Seconds. A limit costs nothing where the condition comes, so it is far above what an idle machine needs."""

_T = TypeVar("_T")


def _pauses() -> Iterator[float]:
    """Seconds between two looks, which cost time of a core: a quarter of the time waited, within bounds."""
    waited = 0.0
    while True:
        pause = min(max(0.05, waited / 4), 0.4)
        waited += pause
        yield pause


def until(look: Callable[[], _T], failure: str = "it did not happen", seconds: float = PATIENCE) -> _T:
    """The first true answer of `look`; AssertionError with `failure` and the last answer when the time is over."""
    end, pauses = time.monotonic() + seconds, _pauses()
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"{failure} within {seconds:g} s: {found!r}")
        time.sleep(next(pauses))
    return found


def happens(look: Callable[[], object], seconds: float) -> bool:
    """Whether it happens within the time: for what must not happen."""
    end = time.monotonic() + seconds
    while not look():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


async def until_async(
    look: Callable[[], Awaitable[_T]], failure: str = "it did not happen", seconds: float = PATIENCE
) -> _T:
    """As `until`, for a question that is awaited."""
    end, pauses = time.monotonic() + seconds, _pauses()
    while not (found := await look()):
        if time.monotonic() > end:
            raise AssertionError(f"{failure} within {seconds:g} s: {found!r}")
        await asyncio.sleep(next(pauses))
    return found
