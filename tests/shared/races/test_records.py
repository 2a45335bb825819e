"""The record of a race that another copy of the functions is asked to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from shared.races.events import ErrorBody
from shared.races.records import LOOK_SECONDS, OwnRecord, RaceRecords, SeenRecord
from shared.tasks import drop
from tests.shared.races.helpers import ENVIRONMENT, SETTINGS
from tests.support.fake_host import FakeHost
from tests.support.virtual_time import run_virtual

RACE: Final = "0123456789ab"
STOPPED: Final = ErrorBody(type="stopped", message="over")


class RecordCopies:
    """Two copies that share the service alone; the first one runs the race."""

    def __init__(self, clock: Callable[[], float]) -> None:
        host = FakeHost(latency=0.01)
        self._clock = clock
        host.now = lambda: datetime.fromtimestamp(self.now(), UTC)
        self.first, self.second = (
            RaceRecords(host, SETTINGS, ENVIRONMENT, clock=clock, now=self.now) for _ in range(2)
        )

    def now(self) -> float:
        return 1_800_000_000.0 + self._clock()

    async def begun(self) -> OwnRecord:
        own = await self.first.claim(RACE, "", "digest")
        assert isinstance(own, OwnRecord)
        return own

    async def seen(self) -> SeenRecord:
        seen = await self.second.look(RACE)
        assert seen is not None
        return seen


def test_the_copy_that_runs_a_race_learns_within_seconds_that_it_is_to_end() -> None:
    async def main(clock: Callable[[], float]) -> None:
        copies = RecordCopies(clock)
        own = await copies.begun()
        living = asyncio.create_task(own.keep_alive())
        await asyncio.sleep(100.0)  # it has renewed its record twice
        asked = await copies.second.cancel(await copies.seen())
        assert asked.head.state == "running" and not own.cancelled.is_set()
        began = clock()
        await own.cancelled.wait()
        assert clock() - began < LOOK_SECONDS + 1
        await asyncio.sleep(100.0)
        assert (await copies.seen()).state(copies.now()) == "running", "it is renewed all the same"
        await drop(living)

    run_virtual(main)


def test_a_race_that_ends_while_it_is_asked_to_end_keeps_its_end() -> None:
    async def main(clock: Callable[[], float]) -> None:
        copies = RecordCopies(clock)
        own = await copies.begun()
        before = await copies.seen()
        await asyncio.gather(own.failed(503, STOPPED), copies.second.cancel(before))
        assert (await copies.seen()).head.state == "failed"
        again = await copies.second.cancel(before)
        assert (again.head.state, again.head.error) == ("failed", STOPPED), "what is over is not written to"

    run_virtual(main)


def test_it_is_written_once_that_a_race_is_to_end() -> None:
    async def main(clock: Callable[[], float]) -> None:
        copies = RecordCopies(clock)
        own = await copies.begun()
        before = await copies.seen()
        both = await asyncio.gather(copies.first.cancel(before), copies.second.cancel(before))
        assert [each.head.cancel_asked for each in both] == [True, True]
        assert (await both[0].cell.read()).number == 2
        await own.failed(503, STOPPED)
        assert (await copies.seen()).head.cancel_asked, "the one who runs it keeps what it learnt"

    run_virtual(main)
