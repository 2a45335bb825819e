"""The reconciler over real sockets: what it repairs (docs/architecture.md#i1), what it cleans up
(docs/architecture.md#i4), and whom it spares (docs/architecture.md#i5)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from infra.cli import repair
from infra.cli.environ import Loaded
from shared import names
from shared.names import kept_snapshot_name, new_race_id, race_sandbox_name
from shared.ports import Absent, Doubtful, ProcessSpec, SandboxSpec, Snapshot, SnapshotKind, WorkItem
from shared.reconcile.reconciler import Reconciler
from shared.reports import Act, ItemEnd, ReconcileReport
from tests.faults.test_claims_under_faults import BEAT, PROMPT, drain, heal, runs
from tests.support.admin import fault
from tests.support.waiting import until
from tests.support.world import API_KEY, OfflineWorld, Place, running

QUICK = {"IDLE_GRACE_SECONDS": "0", "END_GRACE_SECONDS": "60"}


@contextlib.asynccontextmanager
async def reconciler(place: Place, ahead: float = 0.0) -> AsyncIterator[Reconciler]:
    """A reconciler whose clock is `ahead` seconds ahead of the services'."""
    async with place.dispatcher() as dispatcher:
        yield Reconciler(
            place.settings,
            place.environment,
            dispatcher.queue,
            dispatcher.host,
            now=lambda: datetime.now(UTC) + timedelta(seconds=ahead),
        )


def deaf(place: Place, session: str) -> dict[str, object]:
    """The session's worker reaches the service once, before it says that it is ready, and never again. Of this item
    alone: another one's worker would use up the beat that passes."""
    path = f"/work/{place.item(session)['id']}/heartbeat$"
    return {**BEAT, "path": path, "action": "status", "status": 503, "skip": 1}


def reconcile(place: Place, ahead: float = 0.0) -> ReconcileReport:
    async def play() -> ReconcileReport:
        async with reconciler(place, ahead) as it:
            return await it.reconcile()

    return asyncio.run(play())


def acts(report: ReconcileReport) -> list[Act]:
    return [action.act for action in report.actions if action.done]


def served(place: Place, prompt: str = PROMPT) -> str:
    """A session after its first turn, its worker gone."""
    session = place.session(prompt)
    heal(place, session)
    until(lambda: place.item(session)["state"] == "stopped", "the worker did not stop its item")
    until(lambda: not asyncio.run(working(place, session)), "the worker did not leave")
    return session


async def working(place: Place, session: str) -> bool:
    """Whether a worker's process still runs in the session's sandbox: it stops its item a moment before its end."""
    async with place.dispatcher() as dispatcher:
        sandbox = running(await dispatcher.host.find(place.sandbox(session)))
        processes = await dispatcher.host.process_names(sandbox.id)
        assert not isinstance(processes, Absent | Doubtful)
        return any(process.running for process in processes)


def status(place: Place, session: str) -> str:
    (box,) = [box for box in place.sandboxes() if box["name"] == place.sandbox(session)]
    return str(box["status"])


def test_i1_a_sleeping_sandbox_whose_item_is_active_is_resumed_at_once(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session = place.session("$ sleep 3; echo ran >> /workspace/runs")
    drain(place)
    until(lambda: place.item(session)["state"] == "active", "no worker")

    async def suspend() -> None:
        async with place.dispatcher() as dispatcher:
            sandbox = running(await dispatcher.host.find(place.sandbox(session)))
            assert await dispatcher.host.suspend(sandbox.id) is None

    asyncio.run(suspend())
    assert acts(reconcile(place)) == [Act.RESUME]
    place.wait_done(session)
    assert runs(place, session) == ["ran"]


def test_i1_a_stranded_item_is_released_and_the_session_goes_on(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session = place.session(PROMPT)
    with fault(world.claude_admin, deaf(place, session)):
        (item,) = drain(place).items
        assert item.end is ItemEnd.HANDED_OVER

        async def kill() -> None:
            async with place.dispatcher() as dispatcher:
                sandbox = running(await dispatcher.host.find(place.sandbox(session)))
                await dispatcher.host.terminate(sandbox.id)

        asyncio.run(kill())
    assert place.item(session)["state"] == "starting"
    assert acts(reconcile(place)) == []
    report = reconcile(place, ahead=place.settings.times.stranded + 1)
    assert acts(report) == [Act.RELEASE]
    assert report.needs_interrupt == ()
    place.say(session, "$ echo again >> /workspace/runs")
    until(lambda: drain(place) is not None and runs(place, session)[-1:] == ["again"], "the session is stuck")
    assert runs(place, session).count("again") == 1


def test_i5_an_item_whose_worker_still_waits_is_not_released_however_old_it_looks(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session = place.session(PROMPT)
    with fault(world.claude_admin, deaf(place, session)):
        drain(place)
        assert acts(reconcile(place, ahead=3600)) == []
        assert place.item(session)["state"] == "starting"
    place.wait_done(session)
    assert runs(place, session) == ["ran"]


def test_the_sandbox_of_an_idle_session_is_suspended_and_wakes_for_the_next_message(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session = served(place)
    assert acts(reconcile(place, ahead=1)) == [Act.SUSPEND]
    assert status(place, session) == "suspended"
    place.say(session, "$ cat /workspace/runs")
    heal(place, session, turns=2)
    assert "ran" in place.answers(session)[-1]


def test_i5_no_sandbox_with_a_live_item_is_suspended(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    queued = place.session(PROMPT)

    async def create() -> None:
        async with place.dispatcher() as dispatcher:
            await dispatcher.host.create(SandboxSpec(name=place.sandbox(queued), image="agent-cli"))

    asyncio.run(create())
    active = place.adjusted(RUNNER_MAX_IDLE_SECONDS="20")
    assert acts(reconcile(place, ahead=1)) == []
    heal(active, queued)
    assert Act.SUSPEND not in acts(reconcile(place, ahead=1))
    assert status(place, queued) == "running"


def test_i4_the_sandbox_of_a_session_that_is_over_is_marked_first_and_ended_later(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session = served(place)
    world.api.beta.sessions.archive(session)
    assert acts(reconcile(place)) == [Act.MARK]
    (box,) = everything(place)
    assert isinstance(names.parse(place.settings.prefix, box["name"]), names.GoneSandbox)
    assert acts(reconcile(place)) == []
    assert acts(reconcile(place, ahead=100)) == [Act.END_MARKED]
    assert everything(place) == []


def test_i4_the_sandbox_of_a_deleted_session_is_ended_too(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session = served(place)
    world.api.beta.sessions.delete(session)
    assert acts(reconcile(place, ahead=1)) == [Act.MARK]
    assert acts(reconcile(place, ahead=100)) == [Act.END_MARKED]
    assert everything(place) == []


def test_a_webhook_that_a_session_is_over_marks_its_sandbox_promptly(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session, other = served(place), served(place)
    world.api.beta.sessions.archive(session)

    async def play() -> ReconcileReport:
        async with reconciler(place) as it:
            return await it.session_over(session.replace("sesn_", "session_"))

    assert acts(asyncio.run(play())) == [Act.MARK]
    assert status(place, other) == "running"


def test_a_webhook_about_a_session_that_is_not_over_does_nothing(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session = served(place)

    async def play() -> ReconcileReport:
        async with reconciler(place) as it:
            return await it.session_over(session)

    assert acts(asyncio.run(play())) == []
    assert status(place, session) == "running"


def test_a_sandbox_that_slept_longer_than_the_retention_is_ended(world: OfflineWorld) -> None:
    place = world.place(**QUICK, RETENTION_SECONDS="100")
    session = served(place)
    reconcile(place, ahead=1)
    assert status(place, session) == "suspended"
    assert acts(reconcile(place, ahead=50)) == []
    assert acts(reconcile(place, ahead=200)) == [Act.MARK]
    assert acts(reconcile(place, ahead=300)) == [Act.END_MARKED]
    assert everything(place) == []


def test_a_marked_sandbox_gets_its_name_back_when_its_session_has_work_after_all(world: OfflineWorld) -> None:
    place = world.place(**QUICK, RETENTION_SECONDS="0")
    session = served(place)
    reconcile(place, ahead=1)
    assert acts(reconcile(place, ahead=10)) == [Act.MARK]
    place.say(session, "$ cat /workspace/runs")
    assert acts(reconcile(place, ahead=11)) == [Act.UNMARK]
    heal(place, session, turns=2)
    assert "ran" in place.answers(session)[-1]


def test_a_kept_sandbox_is_never_touched(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session = served(place)

    async def keep() -> None:
        async with place.dispatcher() as dispatcher:
            sandbox = running(await dispatcher.host.find(place.sandbox(session)))
            assert await dispatcher.host.rename(sandbox.id, "keep-for-me") is None

    asyncio.run(keep())
    world.api.beta.sessions.archive(session)
    assert acts(reconcile(place, ahead=1_000_000)) == []


def test_i5_a_look_up_that_fails_ends_nothing(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session = served(place)
    world.api.beta.sessions.archive(session)
    for path in (r"/work$", rf"/sessions/{session}$"):
        with fault(world.claude_admin, {"method": "GET", "path": path, "action": "status", "status": 500}):
            assert acts(reconcile(place, ahead=1)) == []
    with fault(world.tensorlake_admin, {"method": "GET", "path": r"/sandboxes$", "action": "garbage"}):
        report = reconcile(place, ahead=1)
        assert acts(report) == []
        assert report.alarms
    assert status(place, session) == "running"


def test_when_every_session_is_unknown_nothing_is_done_and_the_report_alarms(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    sessions = [served(place) for _ in range(3)]
    with fault(
        world.claude_admin, {"method": "GET", "path": r"/sessions/sesn_[^/]+$", "action": "status", "status": 404}
    ):
        report = reconcile(place, ahead=1)
    assert acts(report) == []
    assert any("unknown" in alarm for alarm in report.alarms)
    assert {status(place, session) for session in sessions} == {"running"}


def test_sessions_that_are_really_deleted_are_told_from_a_wrong_key_by_one_that_is_known(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    sessions = [served(place) for _ in range(3)]
    for session in sessions:
        world.api.beta.sessions.delete(session)
    alone = reconcile(place, ahead=1)
    assert acts(alone) == [] and any("unknown" in alarm for alarm in alone.alarms)
    place.session("say hello")
    assert sorted(acts(reconcile(place, ahead=1))) == [Act.MARK] * 3


def test_i7_a_healthcheck_that_was_acked_and_never_stopped_is_stopped(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    world.claude_admin.post("healthchecks", {"environment_id": place.environment_id})

    async def ack() -> str:
        async with place.dispatcher() as dispatcher:
            item = await dispatcher.queue.poll()
            assert isinstance(item, WorkItem)
            assert await dispatcher.queue.ack(item.id) is None
            return item.id

    work_id = asyncio.run(ack())
    assert acts(reconcile(place)) == []
    (action,) = reconcile(place, ahead=place.settings.times.stranded + 1).actions
    assert (action.act, action.target, action.done) == (Act.STOP_ITEM, work_id, True)
    assert acts(reconcile(place, ahead=place.settings.times.stranded + 1)) == []


def test_at_most_three_of_a_few_sandboxes_end_in_one_pass(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    tag = names.environment_tag(place.environment_id)

    async def litter() -> None:
        async with place.dispatcher() as dispatcher:
            for number in range(5):
                await dispatcher.host.create(SandboxSpec(name=f"gone-0000001-{tag}-s{number}zzz"))

    asyncio.run(litter())
    assert acts(reconcile(place)) == [Act.END_MARKED] * 3
    assert acts(reconcile(place)) == [Act.END_MARKED] * 2
    assert everything(place) == []


def test_a_dry_run_reports_and_does_nothing(world: OfflineWorld) -> None:
    place = world.place(**QUICK, DRY_RUN="true")
    session = served(place)
    report = reconcile(place, ahead=1)
    assert [action.act for action in report.actions] == [Act.SUSPEND]
    assert acts(report) == []
    assert status(place, session) == "running"


def test_a_worker_past_its_lifetime_is_asked_to_stop(world: OfflineWorld) -> None:
    place = world.place(**QUICK, RUNNER_MAX_IDLE_SECONDS="60")
    session = place.session(PROMPT)
    heal(place, session)
    old = dataclasses.replace(place, settings=place.settings._replace(worker_lifetime=1.0))
    assert acts(reconcile(old, ahead=5)) == [Act.STOP_WORKER]
    until(lambda: place.item(session)["state"] == "stopped", "the worker did not stop")


def test_i4_leftovers_of_a_race_are_ended_after_their_dead_man_time(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    soon = int(time.time()) + 60
    mine = (place.settings.prefix, place.environment_id, new_race_id())
    kept: list[Snapshot] = []

    async def litter() -> None:
        async with place.dispatcher() as dispatcher:
            for name in (race_sandbox_name(*mine, 0, soon), kept_snapshot_name(*mine, soon)):
                await dispatcher.host.create(SandboxSpec(name=name))
                sandbox = running(await dispatcher.host.find(name))
                for kind in SnapshotKind:
                    taken = await dispatcher.host.snapshot(sandbox.id, kind)
                    assert isinstance(taken, Snapshot)
                    kept.append(taken)

    asyncio.run(litter())
    assert acts(reconcile(place)) == []
    assert acts(reconcile(place, ahead=61)) == [Act.END_RACE] * 2
    assert acts(reconcile(place, ahead=10_000)) == [Act.DELETE_SNAPSHOT] * 2
    left = {snapshot["id"] for snapshot in world.tensorlake_admin.get("state")["snapshots"]}
    assert left & {snapshot.id for snapshot in kept} == {snapshot.id for snapshot in kept[2:]}, "the caller's are kept"


def test_i5_an_active_sandbox_is_kept_from_its_idle_time_out(world: OfflineWorld) -> None:
    timeout = 9
    place = world.place(**QUICK, SANDBOX_TIMEOUT_SECONDS=str(timeout), RUNNER_MAX_IDLE_SECONDS="60")
    session = place.session(PROMPT)
    heal(place, session)

    def idle() -> float:
        (box,) = place.sandboxes()
        return float(box["idle_seconds"])

    rested = 0.0
    while rested < 1.5 * timeout:
        reconcile(place)
        assert status(place, session) == "running"
        rested += until(lambda: (seconds := idle()) > 2 and seconds, "something else keeps it awake")
    assert status(place, session) == "running"
    assert place.item(session)["state"] == "active"


def test_a_process_that_is_no_worker_of_ours_does_not_keep_a_sandbox_awake(world: OfflineWorld) -> None:
    place = world.place(**QUICK)
    session = served(place)

    async def start() -> None:
        async with place.dispatcher() as dispatcher:
            sandbox = running(await dispatcher.host.find(place.sandbox(session)))
            assert await dispatcher.host.start(sandbox.id, ProcessSpec("somebody", "sleep", ["60"])) is None

    asyncio.run(start())
    assert acts(reconcile(place, ahead=1)) == [Act.SUSPEND]


def everything(place: Place) -> list[dict[str, str]]:
    """All sandboxes of this environment, marked ones included."""
    return [box for box in place.sandbox_state()["sandboxes"] if box["status"] != "terminated"]


def test_a_session_whose_calls_this_key_may_not_answer_is_named_until_repair_does_it_with_the_api_key(
    world: OfflineWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    place = world.place(**QUICK)
    session = place.session(PROMPT)
    with fault(world.claude_admin, deaf(place, session)):
        drain(place)

        async def kill() -> None:
            async with place.dispatcher() as dispatcher:
                sandbox = running(await dispatcher.host.find(place.sandbox(session)))
                await dispatcher.host.terminate(sandbox.id)

        asyncio.run(kill())
    world.claude_admin.patch("settings", {"no_events_from_environment_keys": True})
    try:
        released = reconcile(place, ahead=place.settings.times.stranded + 1)
        assert released.needs_interrupt == (session,)
        assert place.item(session)["state"] == "stopped"
        later = place.settings.times.handover + 1
        assert reconcile(place, ahead=later).needs_interrupt == (session,)
        loaded = Loaded({**place.environ, "ANTHROPIC_API_KEY": API_KEY, "HANDOVER_SECONDS": "0.01"}, None)

        def repaired() -> bool:
            """The service tells its time in whole seconds: the item is none too young a second later at the latest."""
            assert asyncio.run(repair.run(loaded)) == 0
            said = capsys.readouterr().out
            assert said in ("No session waits for a lost worker.\n", done)
            return said == done

        done = f"{session}: 1 lost call(s) answered with an error\n"
        until(repaired, "the lost call is not answered")
    finally:
        world.claude_admin.patch("settings", {"no_events_from_environment_keys": False})
    assert reconcile(place, ahead=later).needs_interrupt == ()
    place.say(session, "$ echo again >> /workspace/runs")
    until(lambda: drain(place) is not None and runs(place, session)[-1:] == ["again"], "the session is stuck")
