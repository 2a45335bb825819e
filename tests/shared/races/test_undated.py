"""Records and ledgers of races whose age the service does not tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from shared import names
from shared.ports import SandboxRecord, SandboxStatus
from shared.races.ledger import Ledger
from shared.races.records import OwnRecord, RaceRecords
from shared.races.undated import is_its_turn
from shared.reconcile.executor import RepairExecutor
from shared.reconcile.lookups import Lookups
from shared.reconcile.plan import due
from shared.reconcile.repairs import Done, EndUndated, Skipped
from shared.reconcile.world import World
from tests.fuzz.stage import NothingQueued
from tests.shared.races.helpers import ENVIRONMENT, SESSION, SETTINGS
from tests.support.fake_host import FakeHost

RACE: Final = "0123456789ab"
BORN: Final = datetime(2026, 3, 4, 1, tzinfo=UTC)
LASTS: Final = timedelta(seconds=SETTINGS.races.record_seconds)


def host_at_that_time() -> FakeHost:
    host = FakeHost(latency=0.001)
    host.now = lambda: BORN
    return host


def records(host: FakeHost, now: datetime = BORN) -> RaceRecords:
    return RaceRecords(host, SETTINGS, ENVIRONMENT, now=now.timestamp)


async def kept(host: FakeHost, what: str) -> SandboxRecord:
    """A record or a ledger, as a service shows it that leaves the date out."""
    if what == "record":
        assert isinstance(await records(host).claim(RACE, "", "digest"), OwnRecord)
        name = names.race_record_name(SETTINGS.prefix, ENVIRONMENT.id, RACE)
    else:
        ledger = Ledger(lambda: host, SETTINGS, now=BORN.timestamp)
        await ledger.end(await ledger.begin(ENVIRONMENT, SESSION, "work", 10.0, 60.0), 5.0)
        name = names.race_ledger_name(SETTINGS.prefix, ENVIRONMENT.id, SESSION)
    (box,) = [box for box in host.boxes.values() if box.record.name == name]
    box.record = replace(box.record, created_at=None)
    return box.record


def its_turn(name: str, after: datetime) -> datetime:
    """The next moment at which a tick looks at it."""
    minutes = (after + timedelta(minutes=number) for number in range(3 * 1_440))
    return next(moment for moment in minutes if is_its_turn(name, moment.timestamp()))


async def reconciled(host: FakeHost, seen: SandboxRecord, now: datetime) -> Sequence[object]:
    world = World.of(now, SETTINGS.prefix, ENVIRONMENT.id, [seen])
    executor = RepairExecutor(SETTINGS, ENVIRONMENT.id, NothingQueued(), host, lambda: now, world)
    repairs = due(world, Lookups(), SETTINGS)
    assert all(isinstance(repair, EndUndated) for repair in repairs)
    return [await executor.do(repair) for repair in repairs]


@pytest.mark.parametrize(("what", "lasts"), [("record", LASTS), ("ledger", timedelta(days=1))])
def test_what_has_no_date_goes_when_what_stands_in_it_is_past_its_time(what: str, lasts: timedelta) -> None:
    async def main() -> None:
        host = host_at_that_time()
        seen = await kept(host, what)
        young = its_turn(str(seen.name), BORN)
        if young < BORN + lasts:
            assert [type(each) for each in await reconciled(host, seen, young)] == [Skipped]
        old = its_turn(str(seen.name), BORN + lasts)
        assert await reconciled(host, seen, old + timedelta(minutes=30)) == [], "it is not asked at every tick"
        assert [type(each) for each in await reconciled(host, seen, old)] == [Done]
        assert host.alive() == []

    asyncio.run(main())


def test_one_that_nobody_has_written_goes_once_it_sleeps() -> None:
    async def main() -> None:
        host = host_at_that_time()
        seen = await kept(host, "record")
        host.boxes[seen.id].files.clear()
        turn = its_turn(str(seen.name), BORN)
        assert [type(each) for each in await reconciled(host, seen, turn)] == [Skipped], "somebody may be writing"
        host.boxes[seen.id].record = asleep = replace(seen, status=SandboxStatus.SUSPENDED)
        assert [type(each) for each in await reconciled(host, asleep, turn)] == [Done]

    asyncio.run(main())


def test_a_record_without_a_date_is_told_and_holds_its_key_no_longer_than_another_one() -> None:
    async def main() -> None:
        host = host_at_that_time()
        await kept(host, "record")
        past = BORN + LASTS + timedelta(seconds=1)
        host.now = lambda: past
        later = records(host, past)
        assert await records(host).look(RACE) is not None
        assert await later.look(RACE) is None
        assert isinstance(await later.claim(RACE, "", "another"), OwnRecord)

    asyncio.run(main())


@pytest.mark.parametrize(("minutes", "days"), [(1, 1), (5, 1), (15, 80), (60, 80)])
def test_every_name_has_its_turn_in_whatever_rhythm_ticks_come(minutes: int, days: int) -> None:
    start = int(time.time()) // 86_400 * 86_400
    ticks = range(start, start + days * 86_400, minutes * 60)
    asked = {name for tick in ticks for name in "abcdefgh" if is_its_turn(f"hands-env-q{name}", tick)}
    assert asked == set("abcdefgh")
