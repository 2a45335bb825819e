"""One pass of the reconciler when services are slow or there is more to do than a pass may do."""

from __future__ import annotations

import asyncio
import gc
import warnings
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from shared.ports import Doubtful, SandboxRecord, SandboxStatus
from shared.reconcile.reconciler import Reconciler
from shared.reports import Act
from tests.shared.reconcile.services import (
    NOW,
    FakeServices,
    active,
    acts,
    asleep,
    box,
    marked,
    proper,
    reconciled,
    settings,
)


@pytest.mark.parametrize("hangs", ["list_snapshots", "list_sandboxes", "session sesn_2"])
def test_i1_a_sleeper_with_work_is_resumed_whatever_other_call_never_answers(hangs: str) -> None:
    sleeper = asleep(1)
    services = FakeServices([sleeper, box(2)], [active(1)], hangs=[hangs])
    report = reconciled(services)
    assert acts(report)[0] == (Act.RESUME, sleeper.name)
    assert services.done[0] == ("resume", "box1")
    assert report.alarms
    assert (report.sandboxes is None) == (hangs == "list_sandboxes")


def test_a_snapshot_list_that_fails_is_told() -> None:
    report = reconciled(FakeServices([box(1)], answers={"list_snapshots": Doubtful("HTTP 500")}))
    assert any("snapshots could not be listed: HTTP 500" in alarm for alarm in report.alarms)


def test_a_pass_that_is_cancelled_before_its_look_begins_leaves_no_call_behind() -> None:
    used, services = settings({}), FakeServices([box(1)])
    both: Any = services

    async def cut_off() -> None:
        work = asyncio.create_task(Reconciler(used, used.environments["env_1"], both, both).reconcile())
        await asyncio.sleep(0)  # it has come to its look, and the calls of that have not begun
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert work.cancelled() and not services.calls

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(cut_off())
        gc.collect()
    assert not [str(warning.message) for warning in told if issubclass(warning.category, RuntimeWarning)]


def test_a_repair_that_hangs_is_named_and_keeps_no_other_one_waiting() -> None:
    services = FakeServices([marked(1), marked(2), marked(3)], hangs=["terminate box2"])
    report = reconciled(services)
    assert sorted(target for _, target in acts(report)) == sorted(str(each.name) for each in (marked(1), marked(3)))
    (failed,) = [action for action in report.actions if not action.done]
    assert (failed.target, failed.problem) == (marked(2).name, "no answer within 0.15 s")
    assert report.undone == 0 and report.seconds < 0.6, "each repair has a few seconds of its own"


@pytest.mark.parametrize(("sandboxes", "ended"), [(5, 3), (14, 3), (15, 3), (40, 8)])
def test_i5_at_most_three_or_a_fifth_of_the_sandboxes_end_in_one_pass(sandboxes: int, ended: int) -> None:
    report = reconciled(FakeServices([marked(number) for number in range(sandboxes)]), {"RECONCILE_SECONDS": "40"})
    assert [act for act, _ in acts(report)] == [Act.END_MARKED] * ended
    assert report.undone == sandboxes - ended
    assert any(f"{sandboxes - ended} repair(s) wait" in alarm for alarm in report.alarms)


def test_i4_a_sandbox_that_failed_is_ended() -> None:
    services = FakeServices([box(1, SandboxStatus.FAILED)], [active(1)])
    assert [act for act, _ in acts(reconciled(services))] == [Act.END_FAILED]
    assert services.done == [("terminate", "box1")]


def test_i7_touches_are_staggered_and_bounded() -> None:
    boxes, items = [box(number) for number in range(600)], [active(number) for number in range(600)]
    due = [
        act
        for act, _ in acts(
            reconciled(FakeServices(boxes, items), {"RECONCILE_SECONDS": "40", "RECONCILE_TOUCHES": "500"})
        )
    ]
    assert 20 < due.count(Act.TOUCH) < 200, "each in turn: three times in an hour, seen by ticks a minute apart"
    capped = reconciled(FakeServices(boxes, items), {"RECONCILE_SECONDS": "40", "RECONCILE_TOUCHES": "7"})
    assert [act for act, _ in acts(capped)] == [Act.TOUCH] * 30, "one for twenty with work, whatever the setting says"
    assert capped.undone == due.count(Act.TOUCH) - 30 and not capped.alarms, "the others come on later ticks"
    boxes[0] = box(0, SandboxStatus.SUSPENDED)
    late = reconciled(FakeServices(boxes, items), {"RECONCILE_SECONDS": "40", "RECONCILE_TOUCHES": "7"})
    assert [act for act, _ in acts(late)] == [Act.RESUME] + [Act.TOUCH] * 30
    assert any("RECONCILE_TOUCHES" in alarm and str(boxes[0].name) in alarm for alarm in late.alarms)


def test_i4_what_was_claimed_from_our_pool_and_never_named_is_ended_once_nobody_can_be_naming_it() -> None:
    def of_a_pool(number: int, pool: str | None, age: float, name: str = "") -> SandboxRecord:
        born = NOW - timedelta(seconds=age)
        return replace(box(number), name=name or None, pool_id=pool, created_at=born)

    pooled = {"SANDBOX_POOL": "ours"}
    boxes = [
        of_a_pool(1, "ours", 3600.0),
        of_a_pool(2, "ours", 30.0),  # its claimer may be about to name it
        of_a_pool(3, "a person's", 3600.0),
        of_a_pool(4, None, 3600.0),
        of_a_pool(5, "ours", 3600.0, name="a-person-named-it"),
        replace(of_a_pool(6, "ours", 3600.0), status=SandboxStatus.SUSPENDED),
    ]
    report = reconciled(FakeServices(boxes), pooled)
    assert sorted(acts(report)) == [(Act.END_NAMELESS, "box1"), (Act.END_NAMELESS, "box6")]
    assert not acts(reconciled(FakeServices(boxes))), "without the setting no pool is ours"

    def named_meanwhile(call: str) -> None:
        if call.startswith("find"):
            late.boxes["box1"] = replace(boxes[0], name=proper(1))

    late = FakeServices([boxes[0]], meanwhile=named_meanwhile)
    assert not acts(reconciled(late, pooled)) and not late.done
