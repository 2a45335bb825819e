"""A race whose process is killed leaves only what its names say how to end, and a living session goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from typing import Any, Final

import pytest

from shared.claims.worker_process import WORKER_NAMES
from shared.names import KeptSnapshotSandbox, RaceSandbox, environment_tag, parse
from shared.ports import Absent, Created, Doubtful, ItemState, SandboxSpec
from shared.races.errors import SourceNotReady
from shared.races.race import run_race
from shared.races.request import RaceRequest
from shared.reports import Act
from tests.faults.test_reconciler import acts, everything, reconcile
from tests.support.preloaded import Preloaded
from tests.support.waiting import until
from tests.support.world import IMAGE, ROOT, OfflineWorld, Place, running

SESSION: Final = "sesn_0123456789AbCdEf"
PATIENT: Final = {"BIND_SECONDS": "20", "RECLAIM_SECONDS": "60", "STRANDED_SECONDS": "70"}  # for a slow machine
LONG_AFTER: Final = 10_000.0  # seconds
# What is run with promote: workspace: two branches, clear, two scans, check, pack, apply. With a judge: two branches,
# then for each clear and its judge.
POINTS: Final[tuple[tuple[str, str, int, dict[str, Any]], ...]] = (
    ("after", "snapshot", 1, {}),
    ("after", "create", 2, {}),
    ("after", "run", 3, {"promote": "workspace"}),
    ("before", "terminate", 1, {"setup": "true"}),
    ("before", "delete_snapshot", 1, {}),
    ("after", "snapshot", 2, {"promote": "snapshot"}),
    ("after", "run", 6, {"judge": {"type": "command", "script": "cat file"}}),
    ("before", "run", 9, {"promote": "workspace"}),
    ("after", "run", 9, {"promote": "workspace"}),
)


def of_this_place(place: Place) -> tuple[list[str], list[str]]:
    """Names of the sandboxes and ids of the snapshots that were not ended."""
    state = place.sandbox_state()
    ours = {box["id"] for box in state["sandboxes"]}
    left = [row["id"] for row in state["snapshots"] if row["sandbox_id"] in ours and row["status"] != "deleted"]
    return [box["name"] for box in everything(place)], left


def sources_of(place: Place, snapshots: list[str]) -> set[str]:
    """Names of the sandboxes that these snapshots were taken of."""
    state = place.sandbox_state()
    named = {box["id"]: box["name"] for box in state["sandboxes"]}
    return {named[row["sandbox_id"]] for row in state["snapshots"] if row["id"] in snapshots}


def with_a_source(place: Place) -> Place:
    async def make() -> None:
        async with place.dispatcher() as dispatcher:
            spec = SandboxSpec(name=place.sandbox(SESSION), image=IMAGE)
            assert isinstance(await dispatcher.host.create(spec), Created)

    asyncio.run(make())
    return place


def dying(place: Place, when: str, method: str, count: int, fields: dict[str, Any]) -> subprocess.Popen[bytes]:
    asked = {"source": {"session_id": SESSION}, "n": 2, "script": "echo {i} > file", **fields}
    command = ["-m", "tests.support.dying_race", when, method, str(count), json.dumps(asked)]
    return Preloaded(command, cwd=ROOT, env={"PATH": os.environ["PATH"], **place.environ})


def test_a_race_that_is_killed_leaves_only_what_the_reconciler_ends(world: OfflineWorld) -> None:
    places = [with_a_source(world.place(**PATIENT)) for _ in POINTS]
    races = [dying(place, *point) for place, point in zip(places, POINTS, strict=True)]
    try:
        assert [race.wait(60) for race in races] == [-signal.SIGKILL] * len(POINTS)
    finally:
        for race in races:
            race.kill()
            race.wait()
    for place, point in zip(places, POINTS, strict=True):
        if point[1:3] == ("run", 9):
            applied = asyncio.run(file_in_the_source(place)) in (b"0\n", b"1\n")
            assert applied == (point[0] == "after"), "it was not killed at the apply"
        names, snapshots = of_this_place(place)
        left = set(names) - {place.sandbox(SESSION)}
        assert left or snapshots, point
        assert all(isinstance(parse(place.settings.prefix, name), RaceSandbox) for name in left), point
        soon = acts(reconcile(place))  # a race may still be at work: nothing of it is touched
        assert Act.END_RACE not in soon, point
        assert Act.DELETE_SNAPSHOT not in soon, point
        reconcile(place, ahead=LONG_AFTER)
        names, snapshots = of_this_place(place)
        assert [name for name in names if isinstance(parse(place.settings.prefix, name), RaceSandbox)] == [], point
        # Before a sandbox is made of it, a snapshot of a session's may be a person's, as far as anything tells.
        unproven = 1 if point[:3] == ("after", "snapshot", 1) else 0
        assert len(snapshots) == unproven, (point, sources_of(place, snapshots))


async def file_in_the_source(place: Place) -> object:
    async with place.dispatcher() as dispatcher:
        source = running(await dispatcher.host.find(place.sandbox(SESSION)))
        return await dispatcher.host.read_file(source.id, "/workspace/file", 10)


def test_what_was_kept_before_its_race_was_killed_stays_and_nothing_else_does(world: OfflineWorld) -> None:
    """The two moments in which nobody was told the id of what stays (docs/races.md)."""
    places = [with_a_source(world.place(**PATIENT)) for _ in range(2)]
    name = f"kill-{environment_tag(places[1].environment_id)}"
    ways: list[dict[str, Any]] = [{"promote": "snapshot"}, {"promote": "keep", "keep": {"name": name}}]
    races = [dying(place, "after", "rename", 1, way) for place, way in zip(places, ways, strict=True)]
    try:
        assert [race.wait(60) for race in races] == [-signal.SIGKILL] * 2
    finally:
        for race in races:
            race.kill()
            race.wait()
    names, snapshots = of_this_place(places[0])
    kept = [each for each in names if isinstance(parse(places[0].settings.prefix, each), KeptSnapshotSandbox)]
    assert len(kept) == 1
    assert len(snapshots) == 2
    for place in places:
        assert not {Act.END_RACE, Act.DELETE_SNAPSHOT} & set(acts(reconcile(place)))
        reconcile(place, ahead=LONG_AFTER)
        names, _ = of_this_place(place)
        prefix = place.settings.prefix
        assert not [each for each in names if isinstance(parse(prefix, each), RaceSandbox | KeptSnapshotSandbox)]
    assert len(of_this_place(places[0])[1]) == 1
    assert of_this_place(places[1])[1] == []

    async def end() -> None:
        async with places[1].dispatcher() as dispatcher:
            kept = running(await dispatcher.host.find(f"keep-{name}"))
            assert await dispatcher.host.terminate(kept.id) is None
            (snapshot_id,) = of_this_place(places[0])[1]
            assert await dispatcher.host.delete_snapshot(snapshot_id) is None

    asyncio.run(end())


def test_a_promoted_snapshot_is_not_taken_for_a_leftover(world: OfflineWorld) -> None:
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
    session = place.session(
        "$ i=0; while [ ! -e go ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done; echo still here"
    )

    async def test() -> None:
        async with place.dispatcher() as dispatcher:
            while not place.items(session) or place.item(session)["state"] != ItemState.ACTIVE:
                await dispatcher.drain()
                await asyncio.sleep(0.1)
            before = place.item(session)["id"]
            host = dispatcher.host
            sandbox = running(await host.find(place.sandbox(session)))

            async def workers() -> list[str]:
                found = await host.process_names(sandbox.id)
                assert not isinstance(found, Absent | Doubtful), found
                return [each.name for each in found if each.name.startswith(WORKER_NAMES) and each.running]

            worker = await workers()
            assert len(worker) == 1

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
            beat = place.item(session)["latest_heartbeat_at"]
            await asyncio.to_thread(
                until, lambda: place.item(session)["latest_heartbeat_at"] != beat, "the worker's lease got no beat"
            )
            assert (place.item(session)["id"], place.item(session)["state"]) == (before, ItemState.ACTIVE)
            assert running(await host.find(place.sandbox(session))).id == sandbox.id
            assert await workers() == worker
            assert await host.write_file(sandbox.id, "/workspace/go", b"") is None
            await asyncio.to_thread(place.wait_done, session)

    asyncio.run(test())
    assert "still here" in place.answers(session)[0]
    assert len(place.items(session)) == 1
    until(lambda: place.item(session)["state"] == "stopped", "the worker did not stop its item")
    assert [box["name"] for box in place.sandboxes()] == [place.sandbox(session)]
