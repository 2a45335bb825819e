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
        race.most_branches,
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
