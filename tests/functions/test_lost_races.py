"""What is done with a race that the copy of the functions which ran it took to its grave."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import pytest

from functions.recorded_races import RecordedRaces
from functions.requests import HttpError
from shared import names
from shared.adapters.service_clock import ServiceClock
from shared.capability import Capability
from shared.ports import SnapshotKind
from shared.races.records import DEAD_MAN_SECONDS, OwnRecord
from shared.service import Service
from shared.settings import Settings
from tests.functions.test_agent_auth import CAPABILITY, ENVIRON, SESSION
from tests.support.fake_host import FakeFault, FakeHost

RACE_ID: Final = "0123456789ab"
OTHERS: Final = "0123456789ac"


class Later(ServiceClock):
    """Asks nobody; `ahead` seconds after this machine's time."""

    ahead = 0.0

    async def ask(self, url: str) -> None:
        pass

    def seconds(self) -> float:
        return super().seconds() + self.ahead


class LostRace:
    """A session's race whose copy is dead: its record, a snapshot and two branches; and another race's branch."""

    def __init__(self) -> None:
        self.broken = ""
        self.listed = 0
        self.host = FakeHost(latency=0.0, meet=self._meet)
        self.host.list_sandboxes = self._list  # type: ignore[method-assign]
        self.clock = Later()
        self.service = Service(Settings.from_environ(ENVIRON), now=self.clock)
        self.service.host = self.host
        self.environment = self.service.settings.environments["env_1"]
        self.races = RecordedRaces(self.service, lives_on=True)

    def _meet(self, method: str, what: str) -> FakeFault | None:
        return FakeFault.LOST_BEFORE if method == self.broken else None

    async def happen(self) -> None:
        source = self.host.add(names.sandbox_name("hands", "env_1", SESSION))
        claimed = await self.races.claim(self.environment, RACE_ID, SESSION, "digest")
        assert isinstance(claimed, OwnRecord)
        theirs: Any = await self.host.snapshot(source.record.id, SnapshotKind.FILESYSTEM)
        taken: Any = await self.host.snapshot(source.record.id, SnapshotKind.FILESYSTEM)
        self.by_hand = theirs.id
        for race_id, index in ((RACE_ID, 0), (RACE_ID, 1), (OTHERS, 0)):
            snapshot = taken.id if race_id == RACE_ID else None
            self.host.add(names.race_sandbox_name("hands", "env_1", race_id, index, 2_000_000_000, snapshot))
        self.clock.ahead = DEAD_MAN_SECONDS + 1

    async def deleted(self, caller: Capability | None = None) -> Any:
        answer = await self.races.cancel(RACE_ID, caller)
        return answer.status_code, json.loads(bytes(answer.body))["state"]

    async def _list(self) -> Any:
        self.listed += 1
        return await FakeHost.list_sandboxes(self.host)

    def left(self) -> list[str]:
        return sorted(self.host.alive())


async def lost() -> LostRace:
    race = LostRace()
    await race.happen()
    return race


def test_deleting_a_lost_race_ends_what_it_has_left_and_nothing_else() -> None:
    async def main() -> None:
        race = await lost()
        assert await race.deleted(CAPABILITY) == (200, "lost") and race.listed == 1
        kinds = [names.parse("hands", name) for name in race.left()]
        races = [kind.race_id for kind in kinds if isinstance(kind, names.RaceSandbox)]
        assert races == [OTHERS], "another race's"
        assert {type(kind) for kind in kinds} == {names.RaceSandbox, names.RaceRecordSandbox, names.SessionSandbox}
        assert list(race.host.snapshots) == [race.by_hand], "a person's snapshot of the same sandbox stays"
        race.listed = 0
        assert await race.deleted(CAPABILITY) == (200, "lost"), "however often it is asked"
        assert race.listed == 0, "a list of all sandboxes is not for each repeat"

    asyncio.run(main())


def test_a_copy_that_lives_all_the_same_learns_that_its_race_is_to_end() -> None:
    async def main() -> None:
        race = await lost()
        await race.deleted()
        found = await race.races.look(race.environment, RACE_ID)
        assert found is not None and found.head.cancel_asked

    asyncio.run(main())


def test_who_may_not_read_a_lost_race_ends_nothing_of_it() -> None:
    async def main() -> None:
        race = await lost()
        before = race.left()
        with pytest.raises(HttpError) as refused:
            await race.deleted(CAPABILITY._replace(session_id="sesn_0a1B2c3E"))
        assert refused.value.status == 404 and race.left() == before

    asyncio.run(main())


@pytest.mark.parametrize("method", ["terminate", "delete_snapshot"])
def test_what_may_be_left_is_said(method: str) -> None:
    async def main() -> None:
        race = await lost()
        race.broken = method
        with pytest.raises(HttpError) as refused:
            await race.deleted()
        assert (refused.value.status, refused.value.kind) == (503, "try_again")

    asyncio.run(main())
