"""How often and how many at once: what one caller of fork_best_of_n may take from the others, in one process.

Every call counts, refused and dry ones too, since each costs a look-up or a parse. Races count while they run.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from functions.requests import HttpError

if TYPE_CHECKING:
    from shared.capability import Capability
    from shared.races.report import RaceReport
    from shared.races.request import RaceRequest

log = logging.getLogger(__name__)

OPERATOR: Final = "operator"
MOST_CALLERS: Final = 10_000  # buckets that are kept; a caller who is forgotten begins with a full one
_DAY: Final = 86_400  # seconds
_LEAST_BUDGET: Final = 1.0  # sandbox-seconds: no race does anything in less
_BURST: Final = 0.25  # of a minute's calls may come at once, ten at least
_FOR_OPERATOR: Final = 0.25  # of the races at once that no agent may take


class CallRates:
    """A token bucket a caller: `per_minute` calls, evenly, and some at once. 0 is without limit."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # whose: (calls left, when)

    def count(self, whose: str, per_minute: int) -> None:
        """Raises HttpError 429 that says when the next call may come."""
        if not per_minute:
            return
        now = self._clock()
        most = max(10.0, per_minute * _BURST)
        left, then = self._buckets.pop(whose, (most, now))
        left = min(most, left + (now - then) * per_minute / 60)
        self._buckets[whose] = (left - 1 if left >= 1 else left, now)
        if len(self._buckets) > MOST_CALLERS:
            self._buckets.popitem(last=False)
        if left < 1:
            wait = math.ceil((1 - left) * 60 / per_minute)
            raise HttpError(
                429, "too_many_calls", f"at most {per_minute} calls a minute", headers={"retry-after": str(wait)}
            )


class RaceCost:
    """Sandbox-seconds; None while no report has said them."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: float | None = None


class DailyBudgets:
    """What a session's own races may cost a day (of UTC), in this process: `most` sandbox-seconds, 0 without limit."""

    def __init__(self, most: float, now: Callable[[], float] = time.time) -> None:
        self._most = most
        self._now = now
        self._day = 0
        self._spent: OrderedDict[str, float] = OrderedDict()  # by session

    @contextmanager
    def bounded(self, race: RaceRequest, caller: Capability | None) -> Iterator[tuple[RaceRequest, RaceCost]]:
        """The race with no more `max_sandbox_seconds` than are left, and where to say what it has cost. One that ended
        without a report costs what so many sandboxes can have lived meanwhile. Raises HttpError 429 where none are
        left.

        What a race may cost is taken before it begins, so that no two races share what is left.
        """
        cost = RaceCost()
        if caller is None or not self._most or race.dry_run:
            yield race, cost
            return
        from shared.races import agent_policy  # not needed to refuse a caller

        began = self._now()
        day = int(began // _DAY)
        if day != self._day:
            self._day = day
            self._spent.clear()
        left = self._most - self._spent.get(caller.session_id, 0.0)
        if left < _LEAST_BUDGET:
            message = f"the races of this session have used their {self._most:g} sandbox-seconds of this day"
            wait = math.ceil((day + 1) * _DAY - began)
            raise HttpError(429, "budget_spent", message, headers={"retry-after": str(wait)})
        at_once = 2 * len(race.candidates()) + 2  # each with its judge's, the set-up's and a promotion's
        taken = min(left, race.max_sandbox_seconds or left, agent_policy.TIMES.waits * at_once)
        self._add(caller.session_id, taken)
        try:
            yield race.model_copy(update={"max_sandbox_seconds": taken}), cost
        finally:
            if self._day == day:
                might = min(taken, max(0.0, self._now() - began) * at_once)
                self._add(caller.session_id, (might if cost.seconds is None else cost.seconds) - taken)

    def _add(self, whose: str, seconds: float) -> None:
        self._spent[whose] = max(0.0, self._spent.pop(whose, 0.0) + seconds)
        if len(self._spent) > MOST_CALLERS:
            self._spent.popitem(last=False)


class RunningRaces:
    """The races that run in this process now: one a work item, `most` in all, and some of those for the operator."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._agents: set[tuple[str, str]] = set()
        self._operators = 0

    @contextmanager
    def admitted(self, race: RaceRequest, caller: Capability | None) -> Iterator[None]:
        """Raises HttpError 429. A dry run makes nothing and does not count.

        An agent that can read its token (docs/architecture.md#i6) must not start more than its tool would.
        """
        if race.dry_run:
            yield
            return
        running = self._operators + len(self._agents)
        if caller is None:
            self._require(running < self._most)
            self._operators += 1
            try:
                yield
            finally:
                self._operators -= 1
            return
        whose = (caller.session_id, caller.work_id)
        if whose in self._agents:
            message = "a race of this session is running already: wait for its report"
            raise HttpError(429, "race_running", message, headers={"retry-after": "5"})
        self._require(running < self._most and len(self._agents) < max(1, self._most * (1 - _FOR_OPERATOR)))
        self._agents.add(whose)
        try:
            yield
        finally:
            self._agents.discard(whose)

    def _require(self, room: bool) -> None:
        if not room:
            message = f"at most {self._most} races run here at once: ask again later"
            raise HttpError(429, "too_many_races", message, headers={"retry-after": "10"})


def log_asked(race: RaceRequest, caller: Capability | None) -> None:
    """Who asked for what, before anything of it is done: what costs money must be traceable to somebody."""
    ((kind, source),) = race.source.model_dump(exclude_none=True).items()
    log.info(
        "race.asked who=%s session=%s work=%s source=%s:%s branches=%d promote=%s dry_run=%s",
        OPERATOR if caller is None else "agent",
        caller.session_id if caller else "-",
        caller.work_id if caller else "-",
        kind,
        source,
        len(race.candidates()),
        race.promote,
        race.dry_run,
    )


def log_ended(report: RaceReport) -> None:
    log.info(
        "race.ended race=%s winner=%s branches=%d leftovers=%d seconds=%s",
        report.race_id,
        report.winner,
        len(report.branches),
        len(report.leftovers),
        report.seconds,
    )
