"""Notices that this process stood still: a sandbox that slept, a laptop that was closed.

Whoever slept does not feel it. Two clocks tell: where processes are frozen both go on, and the time between two looks
is too long; where a whole machine is, its monotonic clock may stop, and the wall clock jumps against it. A clock that
was set by hand looks the same, and costs no more than new connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

BEAT_SECONDS: Final = 2.0
LONGEST_STALL: Final = 15.0
"""Seconds that a process that runs may be late: below it a stall is a slow machine, not a sleep."""
_LOOKS: Final = 4
"""A pause between two looks is at most one of so many parts of the longest stall, or each pause would be one."""


class SuspendDetector:
    """`noticed` is called with the seconds that were missed, where they are `longest` or more, by whichever look comes
    first: the beat's, which makes one every BEAT_SECONDS, or one before a request is served, which must not wait for
    the beat."""

    def __init__(
        self,
        noticed: Callable[[float], None],
        *,
        longest: float = LONGEST_STALL,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._noticed = noticed
        self._longest = longest
        self._wall = wall
        self._monotonic = monotonic
        self._last = wall(), monotonic()
        self.count = 0

    def look(self) -> None:
        wall, monotonic = self._wall(), self._monotonic()
        before, self._last = self._last, (wall, monotonic)
        by_wall, by_monotonic = wall - before[0], monotonic - before[1]
        if by_monotonic < self._longest and abs(by_wall - by_monotonic) < self._longest:
            return
        self.count += 1
        self._noticed(max(by_wall, by_monotonic))

    async def watch(self) -> None:
        """For ever: cancel it."""
        while True:
            await asyncio.sleep(min(BEAT_SECONDS, self._longest / _LOOKS))
            self.look()
