"""What holds an agent's race within its bounds across all copies of the functions: one race a work item, and a day's
sandbox-seconds a session (shared/races/ledger.py). Imported for a race of an agent's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from functions.requests import HttpError
from shared.capability import Capability
from shared.races import agent_policy
from shared.races.cells import CellUnclear
from shared.races.ledger import BudgetSpent, Ledger, RaceRunning
from shared.races.request import RaceRequest
from shared.service import Service

if TYPE_CHECKING:
    from shared.races.report import RaceReport

_UNTIL_IT_IS_DEAD: Final = agent_policy.TIMES.waits + 60.0


class Booked:
    """A race that may run. `report` is what it came to; without one it is charged for what it might have cost."""

    def __init__(self, race: RaceRequest) -> None:
        self.race = race
        self.report: RaceReport | None = None


@asynccontextmanager
async def booked(race: RaceRequest, caller: Capability, ledger: Ledger, service: Service) -> AsyncIterator[Booked]:
    """The race, with no more `max_sandbox_seconds` than are left to its session today and no later a deadline than is
    left to its call. Raises HttpError 429 where a race of the work item runs already or nothing is left, 503 where that
    is not known."""
    if race.dry_run:
        yield Booked(race)
        return
    began = time.monotonic()
    at_once = 2 * race.most_branches + 2  # each with its judge's, the set-up's and a promotion's
    wanted = min(race.max_sandbox_seconds or float("inf"), agent_policy.TIMES.waits * at_once)
    environment = service.settings.environments[caller.environment_id]
    try:
        entry = await ledger.begin(environment, caller.session_id, caller.work_id, wanted, _UNTIL_IT_IS_DEAD)
    except RaceRunning as error:
        raise HttpError(429, "race_running", str(error), headers={"retry-after": "5"}) from None
    except BudgetSpent as error:
        raise HttpError(429, "budget_spent", str(error), headers={"retry-after": str(error.retry_after)}) from None
    except CellUnclear as error:
        raise HttpError(503, "try_again", str(error), headers={"retry-after": "5"}) from None
    resting = service.in_background(ledger.rest(entry))
    deadline = max(1.0, (race.deadline or agent_policy.TIMES.waits) - (time.monotonic() - began))
    one = Booked(race.model_copy(update={"max_sandbox_seconds": entry.taken, "deadline": deadline}))
    began = time.monotonic()
    try:
        yield one
    finally:
        might = min(entry.taken, (time.monotonic() - began) * at_once)

        async def end() -> None:
            await asyncio.wait({resting})
            await ledger.end(entry, might if one.report is None else one.report.sandbox_seconds)

        ending = service.in_background(end())
        await asyncio.wait({ending}, timeout=agent_policy.TIMES.books)
