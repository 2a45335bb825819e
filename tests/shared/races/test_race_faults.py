"""Whatever fails, and whenever the caller goes away: what a race made is ended, or the report says what is left."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.ports import CommandOutput
from shared.races.errors import RaceError
from shared.races.models import RaceReport
from shared.races.promotion import WorkspacePromotion
from tests.shared.races.helpers import SOURCE, asked, race, run
from tests.support.fake_host import Bug, Call, FakeHost, Fault, Method
from tests.support.virtual_time import run_virtual

METHODS: tuple[Method, ...] = ("create", "find", "terminate", "run", "write", "snapshot", "delete_snapshot", "rename")
KINDS = (Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER)


async def unlike(call: Call) -> CommandOutput:
    """Branches of mixed length, all of which score."""
    await asyncio.sleep(1 + int(call.env.get("BRANCH_INDEX", 0)) * 0.7)
    return CommandOutput(0, call.env.get("BRANCH_INDEX", ""), "", timed_out=False)


class Once:
    """The n-th call of a method meets a fault; `ever`: so does each that follows."""

    def __init__(self, method: Method, fault: Fault, n: int, *, ever: bool) -> None:
        self._method, self._fault, self._n, self._ever = method, fault, n, ever

    def __call__(self, method: Method, what: str) -> Fault | None:
        if method != self._method:
            return None
        self._n -= 1
        return self._fault if self._n == 0 or (self._ever and self._n < 0) else None


class Chance:
    """Each call fails with this probability, reproducibly."""

    def __init__(self, seed: int, probability: float, methods: frozenset[Method]) -> None:
        self._random, self._probability, self._methods = random.Random(seed), probability, methods

    def __call__(self, method: Method, what: str) -> Fault | None:
        if method in self._methods and self._random.random() < self._probability:
            return self._random.choice(KINDS)
        return None


def a_race(host: FakeHost, **more: Any) -> RaceReport | None:
    """The report of a race on a session; None where it was refused as a whole or cancelled."""
    host.add(SOURCE)
    cancel_after = more.pop("cancel_after", None)
    fields: dict[str, Any] = {"n": 5, "command": ["try"], "max_parallel": 4, "deadline": 300, **more}
    try:
        return run(host, asked(**fields), cancel_after=cancel_after)
    except (RaceError, asyncio.CancelledError):
        return None


def check_nothing_is_lost(host: FakeHost, report: RaceReport) -> None:
    """What exists is in the report's leftovers, and what the report calls reaped does not exist."""
    alive = set(host.alive()) - {SOURCE}
    assert alive <= set(report.leftovers)
    assert not alive & set(report.reaped)
    unknown = sum(name.startswith("a snapshot of") for name in report.leftovers)
    assert not set(host.snapshots) & set(report.reaped)
    assert not set(host.snapshots) - set(report.leftovers) or unknown


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", KINDS)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_one_failing_call_leaves_nothing(method: Method, fault: Fault, n: int) -> None:
    host = FakeHost(program=unlike, meet=Once(method, fault, n, ever=False))
    report = a_race(host, setup="make")
    assert host.alive() == [SOURCE]
    if not (method == "snapshot" and fault is Fault.LOST_AFTER):
        assert host.snapshots == {}
    if report is not None:
        check_nothing_is_lost(host, report)


PROMOTIONS: tuple[dict[str, Any], ...] = (
    {"promote": "snapshot"},
    {"promote": "keep", "keep": {"name": "best"}},
    {"promote": "workspace"},
)


async def quickly(**asked: Any) -> WorkspacePromotion:
    await asyncio.sleep(0.2)
    return WorkspacePromotion(edited=1)


def check_only_what_was_promoted_is_kept(host: FakeHost, report: RaceReport) -> None:
    """Everything else is as in check_nothing_is_lost."""
    promotion = report.promotion
    if promotion is not None and promotion.sandbox is not None:
        assert promotion.sandbox in host.alive()
        host.boxes.pop(promotion.sandbox_id or "")
    if promotion is not None and promotion.snapshot_id is not None:
        host.snapshots.pop(promotion.snapshot_id)
    check_nothing_is_lost(host, report)


@pytest.mark.parametrize("way", PROMOTIONS, ids=lambda way: str(way["promote"]))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", KINDS)
@pytest.mark.parametrize(("n", "ever"), [(1, False), (2, False), (6, False), (2, True)])
def test_a_failing_call_costs_no_more_than_the_promotion(
    way: dict[str, Any], method: Method, fault: Fault, n: int, ever: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.races.podium.promote_workspace", quickly)
    host = FakeHost(program=unlike, meet=Once(method, fault, n, ever=ever))
    report = a_race(host, **way)
    if report is None:
        assert method in ("find", "snapshot")
    else:
        assert (report.winner is None) == all(branch.status != "ok" for branch in report.branches)
        check_only_what_was_promoted_is_kept(host, report)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    probability=st.sampled_from([0.05, 0.3]),
    latency=st.sampled_from([0.01, 0.4]),
    quota=st.sampled_from([None, 2, 3]),
    way=st.sampled_from(PROMOTIONS),
    accept=st.sampled_from([None, 1.0]),
    cancel_after=st.none() | st.floats(0, 10),
)
def test_whatever_fails_in_a_race_with_a_promotion_nothing_is_lost(
    seed: int,
    probability: float,
    latency: float,
    quota: int | None,
    way: dict[str, Any],
    accept: float | None,
    cancel_after: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.races.podium.promote_workspace", quickly)
    methods: frozenset[Method] = frozenset({"create", "run", "write", "rename"})
    host = FakeHost(program=unlike, meet=Chance(seed, probability, methods), latency=latency, quota=quota)
    report = a_race(host, **way, accept=accept, cancel_after=cancel_after)
    if report is None:
        assert host.alive() == [SOURCE]
        assert host.snapshots == {}
    else:
        check_only_what_was_promoted_is_kept(host, report)
        assert host.alive() == [SOURCE]
        assert host.snapshots == {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", KINDS)
def test_a_call_that_fails_for_ever_is_reported(method: Method, fault: Fault) -> None:
    host = FakeHost(program=unlike, meet=Once(method, fault, 2, ever=True))
    report = a_race(host)
    if report is not None:
        check_nothing_is_lost(host, report)
    elif method != "snapshot":
        assert host.alive() == [SOURCE]


@pytest.mark.parametrize("fault", KINDS)
def test_sandboxes_that_cannot_be_ended_are_leftovers(fault: Fault) -> None:
    host = FakeHost(program=unlike, meet=Once("terminate", fault, 1, ever=True))
    report = a_race(host)
    assert report is not None
    assert len(report.leftovers) == 5
    assert report.winner == "b0"


def test_one_lost_create_does_not_cost_its_branch() -> None:
    for fault in (Fault.LOST_BEFORE, Fault.LOST_AFTER):
        report = a_race(FakeHost(program=unlike, meet=Once("create", fault, 2, ever=False)))
        assert report is not None
        assert {branch.status for branch in report.branches} == {"ok"}


def test_creates_that_never_made_anything_leave_nothing_to_report() -> None:
    host = FakeHost(program=unlike, meet=Once("create", Fault.LOST_BEFORE, 1, ever=True))
    report = a_race(host)
    assert report is not None
    assert {branch.reason for branch in report.branches} == {"the sandbox could not be made: dropped"}
    assert report.leftovers == ()
    assert report.reaped == (report.checkpoint,)


def test_a_lost_run_is_not_run_again() -> None:
    host = FakeHost(program=unlike, meet=Once("run", Fault.LOST_AFTER, 2, ever=False))
    report = a_race(host)
    assert report is not None
    assert [branch.status for branch in report.branches].count("failed") == 1
    assert len(host.calls) == 4


@pytest.mark.parametrize("method", [method for method in METHODS if method != "rename"])
def test_a_bug_is_raised_and_still_leaves_nothing(method: Method) -> None:
    host = FakeHost(program=unlike, meet=Once(method, Fault.BUG, 1, ever=False))
    host.add(SOURCE)
    with pytest.raises((Bug, ExceptionGroup)):
        run(host, asked(n=3, command=["try"]))
    left = set(host.alive()) - {SOURCE}
    assert len(left) == (1 if method == "terminate" else 0)  # the one whose end itself is broken
    assert len(host.snapshots) == (1 if method == "delete_snapshot" else 0)


@pytest.mark.parametrize("tenths", range(0, 60, 2))
def test_a_caller_that_goes_away_leaves_nothing(tenths: int) -> None:
    host = FakeHost(program=unlike, latency=0.4)
    report = a_race(host, setup="make", cancel_after=tenths / 10)
    assert report is None
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}


def test_cancelling_twice_does_not_stop_the_ending() -> None:
    host = FakeHost(program=unlike, latency=1.0)
    host.add(SOURCE)

    async def main(clock: Any) -> None:
        task = asyncio.create_task(race(host, asked(n=3, command=["try"]), clock))
        await asyncio.sleep(4.2)
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0.1)
        await asyncio.wait({task})
        assert task.cancelled()

    run_virtual(main)
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    probability=st.sampled_from([0.02, 0.1, 0.3, 0.6]),
    methods=st.frozensets(st.sampled_from(METHODS), min_size=1),
    latency=st.sampled_from([0.01, 0.3, 4.0]),
    quota=st.sampled_from([None, 2, 3]),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "setup": st.just("make"),
            "accept": st.sampled_from([0.0, 1.0, 2.0]),
            "deadline": st.sampled_from([0.5, 3.0, 20.0]),
            "max_parallel": st.integers(1, 5),
            "judge": st.just({"type": "command", "command": ["score"], "files": {"s": "x"}}),
        },
    ),
)
def test_whatever_fails_nothing_is_lost(
    seed: int,
    probability: float,
    methods: frozenset[Method],
    latency: float,
    quota: int | None,
    fields: dict[str, Any],
) -> None:
    host = FakeHost(program=unlike, meet=Chance(seed, probability, methods), latency=latency, quota=quota)
    report = a_race(host, **fields)
    if report is not None:
        check_nothing_is_lost(host, report)
        assert report.seconds <= (fields.get("deadline", 300)) + 60 + 60 + 60 + 1
        able = [branch for branch in report.branches if branch.status == "ok"]
        assert (report.winner is None) == (not able)
    elif not methods & {"terminate", "find", "snapshot", "delete_snapshot"}:
        assert host.alive() == [SOURCE]
        assert host.snapshots == {}


@settings(max_examples=100, deadline=None)
@given(
    at=st.floats(0, 12),
    latency=st.sampled_from([0.05, 0.5, 3.0]),
    method=st.sampled_from(["create", "run", "write"]),
    seed=st.integers(0, 1000),
)
def test_a_cancelled_race_with_failing_calls_leaves_nothing(
    at: float, latency: float, method: Method, seed: int
) -> None:
    host = FakeHost(program=unlike, meet=Chance(seed, 0.4, frozenset({method})), latency=latency)
    a_race(host, cancel_after=at)
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}
