"""What one process asks of one service: bounded a minute, by priority, and not at all while the service says to wait.

The limits are an organisation's, so whatever one caller wastes is taken from everybody's sessions. A bucket of tokens
keeps each minute below the limit. The last tokens are for claims, the ones before for repairs and races: look-ups wait
first. One call (a look at a sandbox, say) serves claims as well as repairs, so whoever is no claim says so (`behind`).

A `retry-after` is believed by every call with the same credential: until then nothing is sent, and the answer is
`Throttled` at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final

from shared.adapters.call_counts import CallCounts
from shared.backoff import pauses
from shared.deadline import Clock

_BURST: Final = 1 / 4
"""Of a minute's calls. The rest comes in evenly, so that no 60 seconds ever see more than the limit."""

_SHORTEST_SLEEP: Final = 0.01  # seconds; a rounding error must not make a loop of it
_FIRST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 60.0  # where the service does not say for how long
_LONGEST_SAID: Final = 600.0  # a longer one is taken for a mistake


class Priority(Enum):
    """The value is the part of the bucket that such a call leaves to those above it."""

    CLAIM = 0.0
    REPAIR = 0.1
    LOOKUP = 0.3


_behind: ContextVar[Priority] = ContextVar("_behind", default=Priority.CLAIM)


@contextmanager
def behind(priority: Priority) -> Iterator[None]:
    """Calls made within, and by the tasks that are begun within, have no higher priority than this."""
    token = _behind.set(priority)
    try:
        yield
    finally:
        _behind.reset(token)


class CallBudget:
    """`per_minute` calls in any 60 seconds; 0 for no limit."""

    def __init__(self, per_minute: float, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._size = max(1.0, per_minute * _BURST)
        self._rate = per_minute * (1 - _BURST) / 60
        self._limited = per_minute > 0
        self._tokens = self._size
        self._filled_at = clock()
        self.per_minute = int(per_minute) if self._limited else None
        self.counts = CallCounts(clock)

    @property
    def left(self) -> float | None:
        """Calls that may be made at once; None without a limit."""
        self._fill()
        return self._tokens if self._limited else None

    def _fill(self) -> None:
        now = self._clock()
        self._tokens = min(self._size, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now

    async def admit(self, priority: Priority) -> None:
        """Returns when the call may be sent."""
        left_to_others = max(priority.value, _behind.get().value) * self._size
        while self._limited:
            self._fill()
            lacking = 1.0 + min(left_to_others, self._size - 1.0) - self._tokens
            if lacking <= 0:
                self._tokens -= 1.0
                break
            await asyncio.sleep(max(lacking / self._rate, _SHORTEST_SLEEP))
        self.counts.add()


class Holds:
    """Until when each credential of one service is not to be used."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._waits: dict[str, Iterator[float]] = {}

    def left(self, credential: str) -> float:
        """Seconds; 0 where it may be used."""
        until = self._until.get(credential)
        return 0.0 if until is None else max(0.0, until - self._clock())

    def hold(self, credential: str, seconds: float | None) -> float:
        """The service said to wait for so long; None where it did not say for how long. Returns the seconds."""
        if seconds is None:
            seconds = next(self._waits.setdefault(credential, pauses(_FIRST_WAIT, _LONGEST_WAIT)))
        seconds = min(seconds, _LONGEST_SAID)
        self._until[credential] = max(self._until.get(credential, 0.0), self._clock() + seconds)
        return seconds

    def answered(self, credential: str) -> None:
        """A call had an answer. One that was sent before the service said to wait takes nothing of that back."""
        if not self.left(credential):
            self._until.pop(credential, None)
            self._waits.pop(credential, None)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds; None where the headers do not say, or not in a way that can be read."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if not text:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            seconds = _until_date(text, now or datetime.now(UTC))
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _until_date(text: str, now: datetime) -> float:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return -1.0
    return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now.timestamp())
