"""The time of day as the Claude API tells it, so that a machine whose clock is wrong takes no living item for an old
one (docs/architecture.md#i5).

Ages of items are differences between times of the service and now. Every answer carries a `Date`
(docs/wire/anthropic.md#14-sdk-transport); between two answers the time that passes is counted by a clock that
nobody sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import httpx2

    from shared.deadline import Clock

FRESH: Final = 120.0
"""Seconds that an answer's date is counted on from. A counting clock may stand still while a machine sleeps."""


def _machine() -> datetime:
    return datetime.now(UTC)


class ServiceClock:
    """Called, it tells the time of day: the service's, or this machine's where no answer of the last two minutes had a
    date that can be read."""

    def __init__(self, clock: Clock = time.monotonic, machine: Callable[[], datetime] = _machine) -> None:
        self._clock = clock
        self._machine = machine
        self._told: tuple[datetime, float] | None = None

    def __call__(self) -> datetime:
        return self._counted() or self._machine()

    def told(self, date: str | None) -> None:
        """An answer's `Date`. One that came late tells too early a time, so a later one of the last minute stands."""
        from email.utils import parsedate_to_datetime  # not at a cold start

        try:
            moment = parsedate_to_datetime(date or "").replace(tzinfo=UTC)
        except ValueError:
            return
        counted = self._counted(FRESH / 2)
        if counted is None or moment > counted:
            self._told = (moment, self._clock())

    async def see(self, answer: httpx2.Response) -> None:
        """For an HTTP client: each answer, as soon as its headers are there."""
        self.told(answer.headers.get("date"))

    def _counted(self, fresh: float = FRESH) -> datetime | None:
        if self._told is None:
            return None
        moment, at = self._told
        passed = self._clock() - at
        return moment + timedelta(seconds=passed) if passed < fresh else None
