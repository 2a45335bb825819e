"""The time of day as the Claude API tells it, so that a machine whose clock is wrong takes no living item for an old
one (docs/architecture.md#i5).

Ages of items are differences between times of the service and now. Every answer carries a `Date`
(docs/wire/anthropic.md#14-sdk-transport); between two answers the time that passes is counted by a clock that
nobody sets. A race asks few things of that API, so it asks for the date alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import httpx2

    from shared.deadline import Clock

FRESH: Final = 120.0
"""Seconds that an answer's date is counted on from. A counting clock may stand still while a machine sleeps."""
LONGEST: Final = 3600.0
"""The same where this machine's time of day has gone on as far as its counting clock: then it has not slept."""
_ALIKE: Final = 5.0
_ASK_SECONDS: Final = 3.0
_ASK_AGAIN: Final = 60.0


def _machine() -> datetime:
    return datetime.now(UTC)


class ServiceClock:
    """Called, it tells the time of day: the service's, or this machine's where no answer of the last two minutes had a
    date that can be read."""

    def __init__(self, clock: Clock = time.monotonic, machine: Callable[[], datetime] = _machine) -> None:
        self._clock = clock
        self._machine = machine
        self._told: tuple[datetime, float, datetime] | None = None
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
        """An answer's `Date`. One that came late tells too early a time, so a later one of the last minute stands."""
        from email.utils import parsedate_to_datetime  # not at a cold start

        try:
            moment = parsedate_to_datetime(date or "").replace(tzinfo=UTC)
        except ValueError:
            return
        counted = self._counted(FRESH / 2)
        if counted is None or moment > counted:
            self._told = (moment, self._clock(), self._machine())

    async def see(self, answer: httpx2.Response) -> None:
        """For an HTTP client: each answer, as soon as its headers are there."""
        self.told(answer.headers.get("date"))

    def _counted(self, fresh: float = FRESH) -> datetime | None:
        if self._told is None:
            return None
        moment, at, machine = self._told
        passed = self._clock() - at
        if fresh == FRESH and abs((self._machine() - machine).total_seconds() - passed) < _ALIKE:
            fresh = LONGEST
        return moment + timedelta(seconds=passed) if passed < fresh else None


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
