"""Each repair by itself: what it looks at once more, and what it does where the world has moved on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

import pytest

from shared import names
from shared.ports import (
    Absent,
    Doubtful,
    ItemState,
    OpenCalls,
    ProcessState,
    Refused,
    SandboxStatus,
    SnapshotRecord,
)
from shared.reports import Act
from shared.wake_lock import wake_lock
from tests.shared.reconcile.services import (
    NOW,
    FakeServices,
    active,
    acts,
    asleep,
    box,
    idle,
    item,
    marked,
    proper,
    reconciled,
    worker,
)

LONG = {"RECONCILE_SECONDS": "40"}
CALLS = OpenCalls(("call_1",))
SILENT = Doubtful("no answer")


def stranded(**ago: float) -> FakeServices:
    lost = item(1, ItemState.STARTING, **({"created": 900.0, "acked": 890.0} | ago))
    return FakeServices([box(1)], [lost], waiting={"sesn_1": CALLS})


def test_a_release_answers_the_calls_that_waited_for_its_item() -> None:
    services = stranded()
    assert acts(reconciled(services, LONG)) == [(Act.RELEASE, "work1")]
    assert services.done == [("force_stop", "work1"), ("give_up_calls", "sesn_1")]


def test_a_heartbeat_kept_from_before_it_was_queued_again_does_not_hide_a_stranded_item() -> None:
    assert acts(reconciled(stranded(beat=2000.0), LONG)) == [(Act.RELEASE, "work1")]


def test_a_release_that_comes_late_leaves_the_turn_alone_that_has_gone_on_without_it() -> None:
    services = stranded()

    def goes_on(call: str) -> None:
        if call == "force_stop work1":  # another copy was faster: the next call is open, and its item is live
            services.waiting["sesn_1"] = OpenCalls(("call_2",), given_up=True)
            services.items = [item(1, ItemState.ACTIVE, created=1.0, acked=0.5, beat=0.2)]

    services._meanwhile = goes_on
    reconciled(services, LONG)
    assert [method for method, _ in services.done] == ["force_stop"]


def test_calls_that_another_copy_has_answered_are_neither_answered_nor_interrupted() -> None:
    services = FakeServices([box(1)], waiting={"sesn_1": OpenCalls(("call_1",), given_up=True)})
    looks = []

    def goes_on(call: str) -> None:
        looks.append(call)
        if looks.count("open_calls sesn_1") == 2:
            services.waiting["sesn_1"] = OpenCalls(("call_2",), given_up=True)

    services._meanwhile = goes_on
    assert reconciled(services, LONG).actions == ()
    assert looks.count("open_calls sesn_1") == 2 and services.done == []


@pytest.mark.parametrize(("asked", "released"), [(100.0, False), (7200.0, True)])
def test_an_item_that_is_stopping_with_nobody_behind_it_is_ended(asked: float, released: bool) -> None:
    left = item(1, ItemState.STOPPING, created=9000.0, acked=8990.0, beat=asked, asked=asked)
    services = FakeServices([box(1)], [left], waiting={"sesn_1": CALLS})
    reconciled(services, LONG)
    assert services.done == ([("force_stop", "work1"), ("give_up_calls", "sesn_1")] if released else [])


def test_a_worker_that_winds_down_is_left_to_it_for_a_while_and_not_without_end() -> None:
    for asked, stopped in ((400.0, False), (1200.0, True)):
        left = item(1, ItemState.STOPPING, created=9000.0, acked=8990.0, asked=asked)
        services = FakeServices([box(1)], [left], processes={"box1": [worker()]})
        report = reconciled(services, LONG)
        assert (("force_stop", "work1") in services.done) is stopped
        assert any(alarm.startswith("sesn_1: ") for alarm in report.alarms) is stopped


@pytest.mark.parametrize(("age", "released"), [(300.0, False), (900.0, True)])
def test_a_sandbox_that_does_not_answer_holds_an_item_only_while_a_worker_could_wait(
    age: float, released: bool
) -> None:
    services = stranded(created=age + 5, acked=age)
    services.processes["box1"] = SILENT
    report = reconciled(services, LONG)
    assert (("force_stop", "work1") in services.done) is released
    assert any("sesn_1" in alarm for alarm in report.alarms) is released


LIFE = {"WORKER_LIFETIME_SECONDS": "1000", **LONG}


def overdue(seconds: float, processes: list[ProcessState] | Doubtful) -> FakeServices:
    held = item(1, ItemState.ACTIVE, created=1010.0 + seconds, acked=1000.0 + seconds, beat=5.0)
    return FakeServices([box(1)], [held], waiting={"sesn_1": CALLS}, processes={"box1": processes})


def test_an_item_past_its_lifetime_is_asked_then_killed_then_stopped() -> None:
    steps = []
    for seconds in (20.0, 250.0, 310.0):
        services = overdue(seconds, [worker()])
        report = reconciled(services, LIFE)
        steps.append(services.done[0])
        assert len(acts(report)) == 1
    (run, asked), (kill, _), stopped = steps
    assert (run, asked.split()[-2:]) == ("run", ["ask", "41"]), "the worker alone is signalled, not its group"
    assert (kill, stopped) == ("kill", ("force_stop", "work1"))


def test_a_lease_that_somebody_else_keeps_is_taken_away_at_once_where_no_worker_runs() -> None:
    services = overdue(20.0, [])
    report = reconciled(services, LIFE)
    assert services.done == [("force_stop", "work1"), ("give_up_calls", "sesn_1")]
    assert any(alarm.startswith("sesn_1: ") and "WORKER_LIFETIME_SECONDS" in alarm for alarm in report.alarms)


def test_a_sandbox_that_does_not_answer_does_not_keep_an_item_past_its_lifetime() -> None:
    waits, ends = overdue(20.0, SILENT), overdue(310.0, SILENT)
    alarms = reconciled(waits, LIFE).alarms
    assert waits.done == [] and any("sesn_1" in alarm for alarm in alarms)
    reconciled(ends, LIFE)
    assert ("force_stop", "work1") in ends.done


def test_an_active_item_that_nobody_renews_is_released_in_the_end() -> None:
    dead = item(1, ItemState.ACTIVE, created=9000.0, acked=8990.0, beat=7000.0)
    for sandbox in (box(1), asleep(1)):
        services = FakeServices([sandbox], [dead], processes={"box1": [worker()]})
        assert acts(reconciled(services, LONG)) == [(Act.RELEASE, "work1")]


def test_a_session_that_is_over_has_no_living_whatever_a_process_says() -> None:
    services = FakeServices(
        [box(1)], processes={"box1": [worker()]}, sessions={"sesn_1": idle("sesn_1", archived=True)}
    )
    assert acts(reconciled(services, LONG)) == [(Act.MARK, proper(1))]
    assert services.calls["process_names"] == 0, "asking would keep it awake"
    ended = FakeServices([marked(1)], processes={"box1": [worker()]})
    assert acts(reconciled(ended, LONG)) == [(Act.END_MARKED, marked(1).name)]
    assert ended.calls["process_names"] == 0


@pytest.mark.parametrize(("quiet", "suspended"), [(100.0, False), (900.0, True)])
def test_a_process_that_only_claims_to_be_a_worker_keeps_no_sandbox_awake(quiet: float, suspended: bool) -> None:
    last = item(1, ItemState.STOPPED, created=quiet + 60, stopped=quiet)
    session = idle("sesn_1", timedelta(seconds=quiet))
    services = FakeServices([box(1)], [last], sessions={"sesn_1": session}, processes={"box1": [worker()]})
    reconciled(services, LONG)
    assert services.done == ([("suspend", "box1")] if suspended else [])


@pytest.mark.parametrize(
    ("ahead", "of", "ended", "suspended"),
    [
        (0, "box1", False, False),
        (0, "box1", True, True),
        (0, "box2", False, True),
        (-4000, "box1", False, True),
    ],
)
def test_a_persons_command_keeps_its_own_sandbox_awake_while_it_runs(
    ahead: int, of: str, ended: bool, suspended: bool
) -> None:
    lock = wake_lock("no-key", of, NOW.timestamp() + ahead, None)
    processes = {"box1": [ProcessState(lock.name, running=not ended)]}
    services = FakeServices([box(1)], [item(2, ItemState.STOPPED, created=600.0)], processes=processes)
    reconciled(services, LONG)
    assert services.done == ([("suspend", "box1")] if suspended else [])


@pytest.mark.parametrize("hangs", [(), ("process_names",)])
def test_a_lock_that_nobody_signed_and_a_sandbox_that_does_not_answer_keep_nothing_awake(hangs: Sequence[str]) -> None:
    forged = wake_lock("another key", "box1", NOW.timestamp(), None).name
    processes = {"box1": [ProcessState(forged, running=True)]}
    services = FakeServices([box(1)], [item(2, ItemState.STOPPED, created=600.0)], hangs, processes=processes)
    reconciled(services, {"RECONCILE_SECONDS": "8"} if hangs else LONG)
    assert services.done == [("suspend", "box1")]


def test_work_that_comes_between_the_look_and_the_deed_is_not_suspended() -> None:
    services = FakeServices([box(1)], [item(2, ItemState.STOPPED, created=600.0)])

    def comes(call: str) -> None:
        if call == "find box1":
            services.items.append(item(1, ItemState.QUEUED, created=0.0))

    services._meanwhile = comes
    reconciled(services, LONG)
    assert services.done == []


def test_what_cannot_be_ended_takes_nothing_from_the_allowance_of_the_others() -> None:
    hopeless = [box(number, SandboxStatus.FAILED) for number in range(10, 14)]
    answers = {f"terminate box{number}": Refused(400, "not now") for number in range(10, 14)}
    services = FakeServices([*hopeless, marked(1), marked(2), marked(3)], answers=answers)
    report = reconciled(services, LONG)
    assert sorted(acts(report)) == sorted((Act.END_MARKED, str(marked(number).name)) for number in (1, 2, 3))
    assert len([action for action in report.actions if action.problem == "not now"]) == 4


def test_the_leftovers_of_a_race_are_outside_the_cap_on_ends() -> None:
    past = int(NOW.timestamp()) - 1
    left = [
        box(number, name=names.race_sandbox_name("hands", "env_1", "0123456789ab", number, past))
        for number in range(24)
    ]
    report = reconciled(FakeServices(left), LONG)
    assert len(acts(report)) == 24 and report.alarms == ()


def test_a_race_that_renewed_its_names_meanwhile_is_left_alone() -> None:
    past, later = int(NOW.timestamp()) - 1, int(NOW.timestamp()) + 600
    (old, new) = (names.race_sandbox_name("hands", "env_1", "0123456789ab", 1, moment) for moment in (past, later))
    services = FakeServices([box(1, name=old)])

    def renews(call: str) -> None:
        if call.startswith("find"):
            services.boxes["box1"] = box(1, name=new)

    services._meanwhile = renews
    assert reconciled(services, LONG).actions == ()
    assert services.done == []


def test_only_a_snapshot_that_has_a_races_name_to_prove_it_is_deleted() -> None:
    past = int(NOW.timestamp()) - 40_000
    of_a_race = box(1, SandboxStatus.TERMINATED, names.race_sandbox_name("hands", "env_1", "0123456789ab", 1, past))
    kept = box(2, SandboxStatus.TERMINATED, names.kept_snapshot_name("hands", "env_1", "0123456789ab", past))
    sandboxes = [of_a_race, kept, asleep(3), marked(4), box(5, name="keep-mine")]
    long_ago = NOW - timedelta(days=30)
    snapshots = [SnapshotRecord(f"snap-{each.id}", each.id, True, long_ago) for each in sandboxes]
    snapshots.append(SnapshotRecord("suspend-box1-1", "box1", True, long_ago))
    services = FakeServices(sandboxes, snapshots=snapshots, answers={"terminate": Refused(400, "not now")})
    reconciled(services, LONG)
    assert [target for method, target in services.done if method == "delete_snapshot"] == ["snap-box1"]


def test_a_snapshot_of_a_session_is_deleted_when_a_dead_races_sandbox_proves_that_it_took_it() -> None:
    past, later = int(NOW.timestamp()) - 1, int(NOW.timestamp()) + 60
    race = "hands", "env_1", "0123456789ab"
    sandboxes = [
        box(1, name=names.race_sandbox_name(*race, 0, past, "of-a-dead-race")),
        box(2, SandboxStatus.TERMINATED, names.race_sandbox_name(*race, 1, past, "ended-before-it")),
        box(3, SandboxStatus.TERMINATED, names.race_sandbox_name(*race, 2, past, "just-between-two")),
        box(4, SandboxStatus.TERMINATED, names.race_sandbox_name(*race, 3, past, "of-a-living-race")),
        box(5, name=names.race_sandbox_name(*race, 4, later, "of-a-living-race")),
        box(6, name=names.race_sandbox_name("hands", "env_2", race[2], 5, past, "of-another-environment")),
        asleep(7),
    ]
    new, old = NOW - timedelta(minutes=3), NOW - timedelta(days=30)
    made = {"ended-before-it": old, "a-persons": old}
    snapshots = [
        SnapshotRecord(each, "box7", True, made.get(each, new))
        for each in ("of-a-dead-race", "just-between-two", "of-a-living-race", "of-another-environment", *made)
    ]
    services = FakeServices(sandboxes, snapshots=snapshots)
    reconciled(services, LONG)
    deleted = [target for method, target in services.done if method == "delete_snapshot"]
    assert sorted(deleted) == ["ended-before-it", "of-a-dead-race"]


@pytest.mark.parametrize("period", [60, 300])
def test_no_active_sandbox_reaches_its_idle_time_out_between_two_ticks(period: int) -> None:
    """However often ticks come, five minutes apart at most."""
    touched: dict[str, list[int]] = {f"box{number}": [0] for number in range(6)}
    for at in range(period, 9000, period):
        items = [active(number) for number in range(6)]
        services = FakeServices([box(number) for number in range(6)], items)
        reconciled(services, LONG | {"WORKER_LIFETIME_SECONDS": "999999", "STRANDED_SECONDS": "20000"}, after=at)
        for _, target in services.done:
            touched[target].append(at)
    gaps = [later - earlier for times in touched.values() for earlier, later in pairwise(times)]
    assert max(gaps) < 3600


@pytest.mark.parametrize(("patience", "asked"), [("0", False), ("600", True), ("90000", False)])
def test_a_session_that_waits_for_a_person_for_long_may_sleep(patience: str, asked: bool) -> None:
    for state, status in ((OpenCalls(), asked), (CALLS, False)):
        done = []
        for minute in range(35):
            held = item(1, ItemState.ACTIVE, created=7200.0, acked=7190.0, beat=10.0 - 60.0 * minute)
            services = FakeServices(
                [box(1)],
                [held],
                sessions={"sesn_1": idle("sesn_1", timedelta(hours=1))},
                waiting={"sesn_1": state},
                processes={"box1": [worker()]},
            )
            reconciled(services, LONG | {"WAITING_SLEEP_SECONDS": patience}, after=60.0 * minute)
            done += [method for method, _ in services.done]
        assert ("run" in done) is status, "what waits for a worker is left to it"
        assert set(done) <= {"run", "touch"}


def test_a_deleted_sessions_stale_entry_is_nobodys_work() -> None:
    left = item(1, ItemState.QUEUED, created=7200.0)
    services = FakeServices([box(1)], [left], sessions={"sesn_1": Absent()})
    assert acts(reconciled(services, LONG)) == [(Act.MARK, proper(1))]
