"""How much time is left. Every bounded thing gets one of these, made from a clock that tests can replace."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

Clock = Callable[[], float]


class Deadline(NamedTuple):
    """A moment on a monotonic clock, in seconds."""

    at: float
    clock: Clock = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Clock = time.monotonic) -> Deadline:
        return cls(clock() + seconds, clock)

    def left(self) -> float:
        """Seconds until the deadline, never below 0."""
        return max(0.0, self.at - self.clock())

    @property
    def passed(self) -> bool:
        return self.clock() >= self.at

    def sooner(self, at: float) -> Deadline:
        """This deadline or the moment `at`, whichever comes first."""
        return Deadline(min(self.at, at), self.clock)
