"""Races on the page: what their sandboxes' names tell, and a record that is opened on the offline service."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx2

from infra.cli.environ import Loaded
from infra.cli.fleet.survey import Seen
from infra.cli.ui import app as ui
from infra.cli.ui import races
from infra.cli.ui.pages import Reader
from shared import names
from shared.ports import Listing, SandboxStatus
from shared.races.events import ErrorBody
from shared.races.records import OwnRecord, RaceRecords
from shared.service import Service
from tests.infra.cli.fleet.test_survey import ENVIRONMENT, NAME, NOW, SESSION, SETTINGS, box
from tests.infra.cli.ui.hostile import RACE, hostile_report
from tests.support.world import Place

TOKEN = "the-token-of-this-page"


def test_the_list_tells_running_races_and_kept_records_by_their_names() -> None:
    wanted = int(NOW + 60)
    branches = [names.race_sandbox_name(SETTINGS.prefix, ENVIRONMENT, RACE, place, wanted) for place in (None, 0, 1)]
    old = names.race_sandbox_name(SETTINGS.prefix, ENVIRONMENT, "0" * 12, 0, int(NOW - 60))
    foreign = names.race_sandbox_name(SETTINGS.prefix, "env_other", "1" * 12, 0, wanted)
    record, other = (names.race_record_name(SETTINGS.prefix, each, RACE) for each in (ENVIRONMENT, "env_other"))
    boxes = [box(name=name) for name in (*branches[:2], old, foreign, other, NAME)]
    asleep = [box(SandboxStatus.SUSPENDED, name) for name in (branches[2], record)]
    seen = Seen(SETTINGS, NOW, None, {}, Listing([*boxes, *asleep], complete=True))
    found = {race.id: race for race in races.running(seen)}
    race = found[RACE]
    assert (race.environment, race.sandboxes, race.age, race.over_in) == (ENVIRONMENT, "2 running, 1 suspended", 60, 60)
    assert found["0" * 12].over_in == -60 and found["1" * 12].environment == "another one" and len(found) == 3
    (kept,) = races.kept(seen)
    assert (kept.id, kept.environment, kept.awake) == (RACE, ENVIRONMENT, False)
    assert kept.kept_for == SETTINGS.races.record_seconds - 60
    late = replace(seen, now=NOW + SETTINGS.races.record_seconds)
    assert races.kept(late) == [] and races.running(replace(seen, sandboxes=None)) == []


def test_a_record_tells_that_its_race_runs_then_has_its_report_which_is_read_once(place: Place) -> None:
    ended, failed = names.new_race_id(), names.new_race_id()

    async def go() -> None:
        service = Service(place.settings)
        records = RaceRecords(service.host, place.settings, place.environment)
        loaded = Loaded(place.environ, None)
        app = ui.make_app(loaded, Reader(loaded), token=TOKEN, hosts=frozenset(), act=False)
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://page", cookies={ui.COOKIE: ui.cookie_of(TOKEN)}
        ) as client:
            own, other = [await records.claim(each, SESSION, "digest") for each in (ended, failed)]
            assert isinstance(own, OwnRecord) and isinstance(other, OwnRecord)
            page = await client.get(f"/races/{ended}")
            assert (
                page.status_code == 200 and f"sessions/{SESSION}" in page.text and '<dd class="">runs</dd>' in page.text
            )
            await own.finished(hostile_report().model_copy(update={"race_id": ended}))
            await other.failed(422, ErrorBody(type="setup_failed", message="the set-up script failed"))
            looked = await reloaded(client, f"/races/{ended}", "Nobody won")
            assert f"<dd>{ended}</dd>" in looked and "document.title" in looked
            assert "setup_failed: the set-up script failed" in (await client.get(f"/races/{failed}?live")).text
            for each in (own, other):
                await each.released()
            assert (await client.get(f"/races/{ended}")).text == looked
            for unknown in (names.new_race_id(), "no-id"):
                assert (await client.get(f"/races/{unknown}")).status_code == 404
        await service.aclose()

    asyncio.run(go())


async def reloaded(client: httpx2.AsyncClient, path: str, wanted: str) -> str:
    """The page once it says this: an answer is good for two seconds."""
    async with asyncio.timeout(60):
        while wanted not in (text := (await client.get(path)).text):
            await asyncio.sleep(0.1)
    return text
