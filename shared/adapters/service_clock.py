"""The time of day as the Claude API tells it, so that a machine whose clock is wrong takes no living item for an old
one (docs/architecture.md#i5).

Ages of items are differences between times of the service and now. Every answer carries a `Date`
(docs/wire/anthropic.md#14-sdk-transport); between two answers the time that passes is counted by a clock that
nobody sets. A race asks few things of that API, so it asks for the date alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import httpx2

    from shared.deadline import Clock

FRESH: Final = 120.0
"""Seconds that a date is counted on from after the last answer that agreed with it. A counting clock may stand still
while a machine sleeps."""
LONGEST: Final = 3600.0
"""The same where this machine's time of day has gone on as far as its counting clock: then it has not slept."""
_ALIKE: Final = 5.0
"""Seconds by which two times that agree may differ: a date has no fraction, and its answer takes a while."""
_ASK_SECONDS: Final = 3.0
_ASK_AGAIN: Final = 60.0


def _machine() -> datetime:
    return datetime.now(UTC)


class ServiceClock:
    """Called, it tells the time of day: the service's, or this machine's where no answer of the last two minutes had a
    date that can be read.

    After the first one, a date that is wrong moves nothing. Too early a time makes what lives look younger for a
    while; too late a time makes it look old, and that would cost a worker its session."""

    def __init__(self, clock: Clock = time.monotonic, machine: Callable[[], datetime] = _machine) -> None:
        self._clock = clock
        self._machine = machine
        self._told: tuple[datetime, float, datetime] | None = None
        self._agreed = 0.0
        self._asked: float | None = None

    def __call__(self) -> datetime:
        return self._counted() or self._machine()

    def seconds(self) -> float:
        """The same in seconds since 1970."""
        return self().timestamp()

    async def ask(self, url: str) -> None:
        """Has the date told by whoever answers at `url`, where none is known and nobody was asked for a minute. Shows
        no credential, and raises nothing for an answer that does not come."""
        now = self._clock()
        if self._counted() is not None or (self._asked is not None and now - self._asked < _ASK_AGAIN):
            return
        self._asked = now
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ASK_SECONDS):
                self.told(await asyncio.to_thread(_date_of, url))

    def told(self, date: str | None) -> None:
        """An answer's `Date`. One that came late tells too early a time, and one host of a service may be ahead: what
        does not agree with the dates of the last minute is believed after a minute in which none agreed. One that is
        ahead by as much as this machine's time of day has gone on is believed at once: the machine has slept."""
        from email.utils import parsedate_to_datetime  # not at a cold start

        try:
            moment = parsedate_to_datetime(date or "").replace(tzinfo=UTC)
        except ValueError:
            return
        at, machine = self._clock(), self._machine()
        counted = self._counted(FRESH / 2)
        ahead = math.inf if counted is None else (moment - counted).total_seconds()
        agrees = counted is None or abs(ahead) < _ALIKE or self._went_on_until(moment, machine)
        if agrees:
            self._agreed = at
        if agrees and ahead > 0:
            self._told = (moment, at, machine)

    async def see(self, answer: httpx2.Response) -> None:
        """For an HTTP client: each answer, as soon as its headers are there."""
        self.told(answer.headers.get("date"))

    def _counted(self, fresh: float = FRESH) -> datetime | None:
        if self._told is None:
            return None
        moment, at, _ = self._told
        now = moment + timedelta(seconds=self._clock() - at)
        if fresh == FRESH and self._went_on_until(now, self._machine()):
            fresh = LONGEST
        return now if self._clock() - self._agreed < fresh else None

    def _went_on_until(self, moment: datetime, machine: datetime) -> bool:
        """Whether this machine's time of day has gone on since the last date as far as that moment is after it."""
        if self._told is None:
            return False
        told, _, then = self._told
        return abs(((machine - then) - (moment - told)).total_seconds()) < _ALIKE


def _date_of(url: str) -> str | None:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_ASK_SECONDS) as answer:  # noqa: S310 - a checked setting
            found = answer.headers.get("date")
    except urllib.error.HTTPError as error:  # a refusal has a date as well
        found = error.headers.get("date")
    except (OSError, ValueError):
        return None
    return str(found) if found else None
