"""The day's ledger of a session's own races, shared by copies of the functions that share nothing else."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from shared import names
from shared.ports import SandboxRecord
from shared.races.cells import CellUnclear
from shared.races.ledger import BudgetSpent, Ledger, LedgerEntry, RaceRunning
from shared.reconcile.lookups import Lookups
from shared.reconcile.plan import due
from shared.reconcile.world import World
from shared.settings import Settings
from tests.shared.races.helpers import ENVIRON, ENVIRONMENT, SESSION, SETTINGS
from tests.support.fake_host import FakeFault, FakeHost, Method

MIDNIGHT: Final = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)


class Hours:
    """A clock of the wall."""

    def __init__(self) -> None:
        self.now = MIDNIGHT.timestamp() - 3_600

    def __call__(self) -> float:
        return self.now


class LedgerCopies:
    """Two copies of the functions, and the service that they share."""

    def __init__(self, most: float = 100.0, meet: Any = lambda method, what: None) -> None:
        self.host = FakeHost(latency=0.001, meet=meet)
        self.clock = Hours()
        self.host.now = lambda: datetime.fromtimestamp(self.clock.now, UTC)
        settings = Settings.from_environ({**ENVIRON, "RACE_AGENT_SANDBOX_SECONDS_PER_DAY": str(most)})
        self.first, self.second, self.third = (Ledger(lambda: self.host, settings, now=self.clock) for _ in range(3))

    async def begin(self, ledger: Ledger, work: str = "work_1", wanted: float = 1_000.0) -> LedgerEntry:
        return await ledger.begin(ENVIRONMENT, SESSION, work, wanted, 200.0)


def test_all_copies_share_one_days_sandbox_seconds() -> None:
    async def main() -> None:
        copies = LedgerCopies()
        one = await copies.begin(copies.first, wanted=40.0)
        assert one.taken == 40.0
        other = await copies.begin(copies.second, "work_2")
        assert other.taken == 60.0, "what a race has taken is not there for another one"
        with pytest.raises(BudgetSpent) as spent:
            await copies.begin(copies.second, "work_3")
        assert 1 <= spent.value.retry_after <= 86_401
        await copies.first.end(one, 10.0)
        await copies.second.end(other, 30.0)
        assert (await copies.begin(copies.third)).taken == 60.0
        copies.clock.now = MIDNIGHT.timestamp() + 3_600
        assert (await copies.begin(copies.first)).taken == 100.0, "another day"

    asyncio.run(main())


def test_a_copy_that_has_refused_a_race_learns_that_the_other_ones_is_over() -> None:
    async def main() -> None:
        copies = LedgerCopies()
        one = await copies.begin(copies.first, wanted=100.0)
        for refusal, work in ((RaceRunning, "work_1"), (BudgetSpent, "work_2")):
            with pytest.raises(refusal):
                await copies.begin(copies.second, work)
        await copies.first.end(one, 10.0)
        assert (await copies.begin(copies.second)).taken == 90.0
        with pytest.raises(BudgetSpent):
            await copies.begin(copies.first, "work_2")

    asyncio.run(main())


def test_a_work_item_has_one_race_across_copies_also_when_they_begin_at_once() -> None:
    async def main() -> None:
        copies = LedgerCopies()
        begun = await asyncio.gather(
            *(copies.begin(ledger, wanted=10.0) for ledger in (copies.first, copies.second, copies.third)),
            return_exceptions=True,
        )
        entries = [each for each in begun if isinstance(each, LedgerEntry)]
        assert len(entries) == 1 and sum(isinstance(each, RaceRunning) for each in begun) == 2
        await copies.begin(copies.second, "work_2", 10.0)

    asyncio.run(main())


def test_what_a_copy_that_died_had_taken_stays_spent_and_its_race_is_given_up() -> None:
    async def main() -> None:
        copies = LedgerCopies()
        dead = await copies.begin(copies.first, wanted=40.0)
        with pytest.raises(RaceRunning):
            await copies.begin(copies.second)
        copies.clock.now += 201.0
        late = await copies.begin(copies.second)
        assert late.taken == 60.0
        await copies.first.end(dead, 0.0)  # not dead after all, and too late
        await copies.second.end(late, 60.0)
        with pytest.raises(BudgetSpent):
            await copies.begin(copies.third)

    asyncio.run(main())


def test_lost_answers_neither_double_nor_lose_an_entry() -> None:
    lost: list[Method] = []

    def meet(method: Method, what: str) -> FakeFault | None:
        if method in lost:
            lost.remove(method)
            return FakeFault.LOST_AFTER
        return None

    async def main() -> None:
        copies = LedgerCopies(meet=meet)
        lost.extend(["create", "run"])
        entry = await copies.begin(copies.first, wanted=40.0)
        lost.append("run")
        await copies.first.end(entry, 30.0)
        assert (await copies.begin(copies.second)).taken == 70.0
        assert len(copies.host.alive()) == 1

    asyncio.run(main())


def test_where_the_ledger_cannot_be_asked_no_race_begins() -> None:
    async def main() -> None:
        copies = LedgerCopies(meet=lambda method, what: FakeFault.REFUSED if method == "run" else None)
        with pytest.raises(CellUnclear):
            await copies.begin(copies.first)

    asyncio.run(main())


def test_a_ledger_of_an_earlier_day_is_carried_over_and_reaped() -> None:
    """One that was written after midnight by a race of before is of the new day, and of an old sandbox."""

    async def main() -> None:
        copies = LedgerCopies()
        name = names.race_ledger_name(SETTINGS.prefix, ENVIRONMENT.id, SESSION)
        copies.clock.now = MIDNIGHT.timestamp() - 60
        await copies.begin(copies.first, "before", 10.0)
        copies.clock.now = MIDNIGHT.timestamp() + 60
        entry = await copies.begin(copies.second, "after", 30.0)
        await copies.second.end(entry, 30.0)
        copies.clock.now += 700.0
        old = await copies.host.find(name)
        assert isinstance(old, SandboxRecord)
        assert ends(old, MIDNIGHT + timedelta(seconds=500)) == []
        assert ends(old, MIDNIGHT + timedelta(seconds=700)) == [name]
        later = await copies.begin(copies.third, "later")
        assert later.taken == 70.0
        now = await copies.host.find(name)
        assert isinstance(now, SandboxRecord) and now.id != old.id

    def ends(record: SandboxRecord, now: datetime) -> list[str]:
        world = World.of(now, SETTINGS.prefix, ENVIRONMENT.id, [record])
        return [repair.target for repair in due(world, Lookups(), SETTINGS)]

    asyncio.run(main())
