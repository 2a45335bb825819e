"""What a session's own races cost in a day, and which of them run: one cell (cells.py) a session, for all copies of
the functions.

Each entry takes what its race may cost before it begins, so that no two races share what is left, and gives back at its
end what it has not used. A copy that dies gives nothing back, and its race counts as running until `until`. A ledger of
an earlier day is made anew by the first race of the day, so one that is older than the day is nobody's
(reconcile/plan.py).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pydantic import Field, ValidationError

from shared import names
from shared.deadline import Clock
from shared.environment_settings import Environment
from shared.errors import HandsError
from shared.ports import SandboxHost
from shared.races import cells
from shared.races.cells import DAY, Cell, CellGone, CellUnclear, CellVersion
from shared.races.fields import Model
from shared.settings import Settings

log = logging.getLogger(__name__)

_LEAST: Final = 1.0  # sandbox-seconds: no race does anything in less
_ATTEMPTS: Final = 6
_CELLS_AT_HAND: Final = 1_000


class RaceRunning(HandsError):
    """A race of this work item runs already, here or in another copy."""


class BudgetSpent(HandsError):
    """`retry_after` in seconds."""

    def __init__(self, most: float, retry_after: int) -> None:
        super().__init__(f"the races of this session have used their {most:g} sandbox-seconds of this day")
        self.retry_after = retry_after


class Run(Model):
    """A race that has taken `taken` sandbox-seconds and has given nothing back yet."""

    by: str
    until: float
    taken: float


class Page(Model):
    """The text of a ledger: a day (since 1970), the sandbox-seconds that are spent or taken, the races by work item."""

    day: int
    spent: float = 0.0
    running: dict[str, Run] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One race in a ledger. `taken`: the sandbox-seconds that it may cost."""

    name: str
    environment: Environment
    work_id: str
    by: str
    day: int
    taken: float


class Ledger:
    """The ledgers of all sessions. `most`: sandbox-seconds a session and day, 0 for any number."""

    def __init__(
        self,
        host: Callable[[], SandboxHost],
        settings: Settings,
        *,
        clock: Clock = time.monotonic,
        now: Clock = time.time,
    ) -> None:
        self._host = host
        self._prefix = settings.prefix
        self._most = settings.races.agent_sandbox_seconds
        self._clock = clock
        self._now = now
        self._at_hand: OrderedDict[str, tuple[Cell, CellVersion]] = OrderedDict()

    async def begin(
        self, environment: Environment, session_id: str, work_id: str, wanted: float, seconds: float
    ) -> LedgerEntry:
        """Takes what the race may cost, `wanted` at most; it is over in `seconds`. Raises RaceRunning, BudgetSpent and
        CellUnclear."""
        name = names.race_ledger_name(self._prefix, environment.id, session_id)
        by, carried = secrets.token_hex(8), 0.0
        for _ in range(_ATTEMPTS):
            try:
                seen_before = name in self._at_hand
                cell, stands = await self._cell(name, environment)
                now = self._now()
                day = int(now // DAY)
                page = _page(stands, day)
                spent = page.spent if page.day == day else 0.0
                running = {work: run for work, run in page.running.items() if run.until > now}
                used_up = self._most and self._most - carried - spent < _LEAST
                if seen_before and (work_id in running or used_up):
                    self._at_hand.pop(name, None)  # another copy may have written since then
                    continue
                if work_id in running:
                    raise RaceRunning("a race of this session is running already: wait for its report")
                if _is_of_before(cell, page, now) and not running:
                    await self._ended(name, cell)
                    carried += spent
                    continue
                spent += carried
                left = self._most - spent if self._most else wanted
                if left < _LEAST:
                    raise BudgetSpent(self._most, int((day + 1) * DAY - now) + 1)
                taken = min(left, wanted)
                running[work_id] = Run(by=by, until=now + seconds, taken=taken)
                if await self._written(name, cell, stands, Page(day=day, spent=spent + taken, running=running)):
                    return LedgerEntry(name, environment, work_id, by, day, taken)
            except CellGone:
                self._at_hand.pop(name, None)
        raise CellUnclear("the day's ledger of this session is being changed by many at once")

    async def rest(self, entry: LedgerEntry) -> None:
        """The ledger takes no place of a running sandbox while the race needs it."""
        if (at_hand := self._at_hand.get(entry.name)) is not None:
            await at_hand[0].suspend()

    async def end(self, entry: LedgerEntry, cost: float) -> None:
        """Gives back what the race has not used. Where that cannot be written it stays spent."""
        try:
            for _ in range(_ATTEMPTS):
                cell, stands = await self._cell(entry.name, entry.environment)
                page = _page(stands, entry.day)
                run = page.running.get(entry.work_id)
                if run is None or run.by != entry.by:
                    return  # given up for dead
                running = {work: each for work, each in page.running.items() if work != entry.work_id}
                back = entry.taken - cost if page.day == entry.day else 0.0
                changed = Page(day=page.day, spent=max(0.0, page.spent - back), running=running)
                if await self._written(entry.name, cell, stands, changed):
                    return
        except (CellGone, CellUnclear) as error:
            self._at_hand.pop(entry.name, None)
            log.warning("race.ledger_not_written work=%s reason=%s", entry.work_id, error)

    async def _cell(self, name: str, environment: Environment) -> tuple[Cell, CellVersion]:
        """The ledger as it was last seen here, else as it stands."""
        at_hand = self._at_hand.get(name)
        if at_hand is None:
            cell = await cells.made(self._host(), name, environment, self._clock)
            at_hand = cell, await cell.read()
            self._keep(name, *at_hand)
        return at_hand

    async def _written(self, name: str, cell: Cell, stands: CellVersion, page: Page) -> bool:
        text = page.model_dump_json()
        now = await cell.write(stands.number + 1, text)
        self._keep(name, cell, now)
        return now.text == text

    async def _ended(self, name: str, cell: Cell) -> None:
        self._at_hand.pop(name, None)
        if not await cell.end():
            raise CellUnclear("the ledger of an earlier day could not be ended")

    def _keep(self, name: str, cell: Cell, stands: CellVersion) -> None:
        self._at_hand.pop(name, None)
        self._at_hand[name] = cell, stands
        if len(self._at_hand) > _CELLS_AT_HAND:
            self._at_hand.popitem(last=False)


def _is_of_before(cell: Cell, page: Page, now: float) -> bool:
    return page.day != now // DAY or cells.is_of_before(cell.sandbox.created_at, now)


def _page(stands: CellVersion, day: int) -> Page:
    if not stands.number:
        return Page(day=day)
    try:
        return Page.model_validate_json(stands.text)
    except ValidationError:
        raise CellUnclear("the ledger cannot be read: is it of another version?") from None
