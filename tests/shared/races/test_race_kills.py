"""A race whose process is killed leaves only what its names say how to end, and a living session goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import Any, Final

import pytest

from shared import naming
from shared.ports import Created, ItemState, SandboxSpec
from shared.races.errors import SourceNotReady
from shared.races.models import RaceRequest
from shared.races.naming import parse_race_name
from shared.races.race import run_race
from shared.reconcile.report import Act
from tests.faults.test_reconciler import acts, everything, reconcile
from tests.support.world import IMAGE, ROOT, Place, World, running, until

SESSION: Final = "sesn_0123456789AbCdEf"
PATIENT: Final = {"BIND_SECONDS": "20", "RECLAIM_SECONDS": "30", "STRANDED_SECONDS": "40"}  # for a slow machine
LONG_AFTER: Final = 10_000.0  # seconds
POINTS: Final[tuple[tuple[str, str, int, dict[str, Any]], ...]] = (
    ("after", "snapshot", 1, {}),
    ("after", "create", 2, {}),
    ("after", "run", 3, {"promote": "workspace"}),
    ("before", "terminate", 1, {"setup": "true"}),
    ("before", "delete_snapshot", 1, {}),
    ("after", "snapshot", 2, {"promote": "snapshot"}),
)


def of_this_place(place: Place) -> tuple[list[str], list[str]]:
    """Names of the sandboxes and ids of the snapshots that were not ended."""
    state = place.world.tensorlake_admin.call("GET", "state")
    prefix = f"{place.settings.prefix}-{naming.environment_tag(place.environment_id)}-"
    ours = {box["id"] for box in state["sandboxes"] if (box["name"] or "").startswith(prefix)}
    left = [row["id"] for row in state["snapshots"] if row["sandbox_id"] in ours and row["status"] != "deleted"]
    return [box["name"] for box in everything(place)], left


def with_a_source(place: Place) -> Place:
    async def make() -> None:
        async with place.dispatcher() as dispatcher:
            spec = SandboxSpec(name=place.sandbox(SESSION), image=IMAGE)
            assert isinstance(await dispatcher.host.create(spec), Created)

    asyncio.run(make())
    return place


def dying(place: Place, when: str, method: str, count: int, fields: dict[str, Any]) -> subprocess.Popen[bytes]:
    asked = {"source": {"session_id": SESSION}, "n": 2, "script": "echo {i} > file", **fields}
    command = [sys.executable, "-m", "tests.support.dying_race", when, method, str(count), json.dumps(asked)]
    return subprocess.Popen(command, cwd=ROOT, env={"PATH": os.environ["PATH"], **place.environ})


def test_a_race_that_is_killed_leaves_only_what_the_reconciler_ends(world: World) -> None:
    places = [with_a_source(world.place(**PATIENT)) for _ in POINTS]
    races = [dying(place, *point) for place, point in zip(places, POINTS, strict=True)]
    try:
        assert [race.wait(60) for race in races] == [-signal.SIGKILL] * len(POINTS)
    finally:
        for race in races:
            race.kill()
            race.wait()
    for place, point in zip(places, POINTS, strict=True):
        names, snapshots = of_this_place(place)
        left = set(names) - {place.sandbox(SESSION)}
        assert left or snapshots, point
        assert all(parse_race_name(place.settings.prefix, name) for name in left), point
        soon = acts(reconcile(place))  # a race may still be at work: nothing of it is touched
        assert Act.END_RACE not in soon, point
        assert Act.DELETE_SNAPSHOT not in soon, point
        reconcile(place, ahead=LONG_AFTER)
        names, snapshots = of_this_place(place)
        assert [name for name in names if parse_race_name(place.settings.prefix, name)] == [], point
        assert snapshots == [], point


def test_a_promoted_snapshot_is_not_taken_for_a_leftover(world: World) -> None:
    place = with_a_source(world.place(**PATIENT))

    async def race() -> str | None:
        asked = {"source": {"session_id": SESSION}, "n": 1, "script": "true", "promote": "snapshot"}
        request = RaceRequest.model_validate_json(json.dumps(asked))
        async with place.dispatcher() as dispatcher:
            report = await run_race(
                request, host=dispatcher.host, settings=place.settings, environment=place.environment
            )
            assert report.promotion is not None
            return report.promotion.snapshot_id

    async def delete(snapshot_id: str) -> None:
        async with place.dispatcher() as dispatcher:
            assert await dispatcher.host.delete_snapshot(snapshot_id) is None

    snapshot_id = asyncio.run(race())
    assert snapshot_id is not None
    reconcile(place, ahead=LONG_AFTER)
    assert of_this_place(place)[1] == [snapshot_id]
    asyncio.run(delete(snapshot_id))


def test_a_session_that_works_goes_on_during_a_race_and_is_not_cloned(place: Place) -> None:
    session = place.session("$ sleep 2; echo done > mine; echo still here")

    async def test() -> None:
        async with place.dispatcher() as dispatcher:
            while not place.items(session) or place.item(session)["state"] != ItemState.ACTIVE:
                await dispatcher.drain()
                await asyncio.sleep(0.1)
            before = place.item(session)["id"]

            async def race(**fields: Any) -> Any:
                asked = {"source": {"session_id": session}, "n": 2, "script": "ls /proc; echo {i}", **fields}
                request = RaceRequest.model_validate_json(json.dumps(asked))
                return await run_race(
                    request, host=dispatcher.host, settings=place.settings, environment=place.environment
                )

            for kind in ("memory", "live"):
                with pytest.raises(SourceNotReady, match="a worker lives in"):
                    await race(checkpoint=kind)
            report = await race()
            assert [branch.status for branch in report.branches] == ["ok", "ok"]
            assert place.item(session)["id"] == before
            sandbox = running(await dispatcher.host.find(place.sandbox(session)))
            await asyncio.to_thread(place.wait_done, session)
            assert await dispatcher.host.find(sandbox.id) is not None

    asyncio.run(test())
    assert "still here" in place.answers(session)[0]
    assert len(place.items(session)) == 1
    until(lambda: place.item(session)["state"] == "stopped", 20, "the worker did not stop its item")
    assert [box["name"] for box in place.sandboxes()] == [place.sandbox(session)]
