"""When a process made its calls, as far back as a person looks. What it costs is the same however many there are."""

from __future__ import annotations

from collections import deque
from typing import Final

from shared.deadline import Clock

HOURS: Final = 6
PARTS: Final = 36
"""Of these hours, each ten minutes."""

_BUCKET: Final = 10  # seconds
_A_MINUTE: Final = 60 // _BUCKET
_A_PART: Final = HOURS * 60 // PARTS  # minutes
_BUCKETS: Final = HOURS * 3600 // _BUCKET


class CallCounts:
    """Counted in tens of seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: deque[list[int]] = deque(maxlen=_BUCKETS + _A_MINUTE)

    def add(self) -> None:
        bucket = int(self._clock()) // _BUCKET
        if not self._counts or self._counts[-1][0] != bucket:
            self._counts.append([bucket, 0])
        self._counts[-1][1] += 1

    def last_minute(self) -> int:
        """Of the last 50 to 60 seconds."""
        now = int(self._clock()) // _BUCKET
        return sum(count for bucket, count in self._counts if now - bucket < _A_MINUTE)

    def busiest(self) -> list[int]:
        """The most calls in one minute of each part, the oldest part first. The minutes are those of the clock."""
        minutes: dict[int, int] = {}
        for bucket, count in self._counts:
            minute = bucket // _A_MINUTE
            minutes[minute] = minutes.get(minute, 0) + count
        now = int(self._clock()) // 60
        most = [0] * PARTS
        for minute, count in minutes.items():
            part = PARTS - 1 - (now - minute) // _A_PART
            if part >= 0:
                most[part] = max(most[part], count)
        return most
