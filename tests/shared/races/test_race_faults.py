"""Whatever fails, and whenever the caller goes away: what a race made is ended, or the report says what is left."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image.session.worker.fork_tool import TOOL_SECONDS
from image.session.worker.fork_tool_schema import LONGEST_RACE, LONGEST_RACE_TO_PROMOTE
from shared.ports import (
    Absent,
    CommandOutput,
    Created,
    CreateOutcome,
    Doubtful,
    FindOutcome,
    NameTaken,
    Refused,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
)
from shared.races.agent_policy import in_time, timeouts
from shared.races.errors import RaceError
from shared.races.race import run_race
from shared.races.report import RaceReport
from shared.races.workspace_promotion import WorkspacePromotion
from tests.shared.races.helpers import ENVIRONMENT, SETTINGS, SOURCE, asked, race, run
from tests.support.fake_host import Bug, FakeCall, FakeFault, FakeHost, Method
from tests.support.virtual_time import run_virtual

METHODS: tuple[Method, ...] = ("create", "find", "terminate", "run", "write", "snapshot", "delete_snapshot", "rename")
KINDS = (FakeFault.REFUSED, FakeFault.LOST_BEFORE, FakeFault.LOST_AFTER)


async def unlike(call: FakeCall) -> CommandOutput:
    """Branches of mixed length, all of which score."""
    await asyncio.sleep(1 + int(call.env.get("BRANCH_INDEX", 0)) * 0.7)
    return CommandOutput(0, call.env.get("BRANCH_INDEX", ""), "", timed_out=False)


class FaultOnce:
    """The n-th call of a method meets a fault; `ever`: so does each that follows."""

    def __init__(self, method: Method, fault: FakeFault, n: int, *, ever: bool) -> None:
        self._method, self._fault, self._n, self._ever = method, fault, n, ever

    def __call__(self, method: Method, what: str) -> FakeFault | None:
        if method != self._method:
            return None
        self._n -= 1
        return self._fault if self._n == 0 or (self._ever and self._n < 0) else None


class Chance:
    """Each call fails with this probability, reproducibly."""

    def __init__(self, seed: int, probability: float, methods: frozenset[Method]) -> None:
        self._random, self._probability, self._methods = random.Random(seed), probability, methods

    def __call__(self, method: Method, what: str) -> FakeFault | None:
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
def test_one_failing_call_leaves_nothing(method: Method, fault: FakeFault, n: int) -> None:
    host = FakeHost(program=unlike, meet=FaultOnce(method, fault, n, ever=False))
    report = a_race(host, setup="make")
    assert host.alive() == [SOURCE]
    if not (method == "snapshot" and fault is FakeFault.LOST_AFTER):
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
    way: dict[str, Any], method: Method, fault: FakeFault, n: int, ever: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.races.leader.promote_workspace", quickly)
    host = FakeHost(program=unlike, meet=FaultOnce(method, fault, n, ever=ever))
    report = a_race(host, **way)
    if report is None:
        assert method in ("find", "snapshot")
    else:
        assert (report.winner is None) == all(branch.status != "ok" for branch in report.branches)
        check_only_what_was_promoted_is_kept(host, report)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
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
    monkeypatch.setattr("shared.races.leader.promote_workspace", quickly)
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
def test_a_call_that_fails_for_ever_is_reported(method: Method, fault: FakeFault) -> None:
    host = FakeHost(program=unlike, meet=FaultOnce(method, fault, 2, ever=True))
    report = a_race(host)
    if report is not None:
        check_nothing_is_lost(host, report)
    elif method != "snapshot":
        assert host.alive() == [SOURCE]


@pytest.mark.parametrize("fault", KINDS)
def test_sandboxes_that_cannot_be_ended_are_leftovers(fault: FakeFault) -> None:
    host = FakeHost(program=unlike, meet=FaultOnce("terminate", fault, 1, ever=True))
    report = a_race(host)
    assert report is not None
    assert len(report.leftovers) == 5
    assert report.winner == "b0"


def test_one_lost_create_does_not_cost_its_branch() -> None:
    for fault in (FakeFault.LOST_BEFORE, FakeFault.LOST_AFTER):
        report = a_race(FakeHost(program=unlike, meet=FaultOnce("create", fault, 2, ever=False)))
        assert report is not None
        assert {branch.status for branch in report.branches} == {"ok"}


def test_creates_that_never_made_anything_leave_nothing_to_report() -> None:
    host = FakeHost(program=unlike, meet=FaultOnce("create", FakeFault.LOST_BEFORE, 1, ever=True))
    report = a_race(host)
    assert report is not None
    assert {branch.reason for branch in report.branches} == {"the sandbox could not be made: dropped"}
    assert report.leftovers == ()
    assert report.reaped == (report.checkpoint,)


def test_a_lost_run_is_not_run_again() -> None:
    host = FakeHost(program=unlike, meet=FaultOnce("run", FakeFault.LOST_AFTER, 2, ever=False))
    report = a_race(host)
    assert report is not None
    assert [branch.status for branch in report.branches].count("failed") == 1
    assert len(host.calls) == 4


@pytest.mark.parametrize("method", [method for method in METHODS if method != "rename"])
def test_a_bug_is_raised_and_still_leaves_nothing(method: Method) -> None:
    host = FakeHost(program=unlike, meet=FaultOnce(method, FakeFault.BUG, 1, ever=False))
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


class BadStarts(FakeHost):
    """Of the sandboxes that a race makes, the first `count` come up with this status, and their calls' answers say
    nothing. A name leads to a sandbox for a second after its end."""

    def __init__(self, status: SandboxStatus, count: int) -> None:
        super().__init__(program=unlike)
        self._status, self._left = status, count
        self._ended: dict[str, SandboxRecord] = {}

    async def create(self, spec: SandboxSpec) -> CreateOutcome:
        if spec.name in self._ended:
            return NameTaken()
        made = await super().create(spec)
        if isinstance(made, Created) and self._left > 0:
            self._left -= 1
            self._set(made.sandbox.id, self._status)
            return Doubtful("the sandbox did not come up")
        return made

    async def find(self, name_or_id: str) -> FindOutcome:
        return self._ended.get(name_or_id) or await super().find(name_or_id)

    async def terminate(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        box = self.boxes[sandbox_id]
        outcome = await super().terminate(sandbox_id)
        name = box.record.name or ""
        self._ended[name] = replace(box.record, status=SandboxStatus.RUNNING)
        asyncio.get_running_loop().call_later(1.0, self._ended.pop, name, None)
        return outcome


@pytest.mark.parametrize("status", [SandboxStatus.FAILED, SandboxStatus.TIMEOUT])
def test_a_sandbox_that_comes_up_as_a_failure_is_ended_and_made_again(status: SandboxStatus) -> None:
    host = BadStarts(status, 1)
    report = a_race(host)
    assert report is not None
    assert {branch.status for branch in report.branches} == {"ok"}
    assert report.leftovers == ()
    assert host.alive() == [SOURCE]
    assert [box.record.status for box in host.boxes.values()].count(SandboxStatus.TERMINATED) == 6


def test_sandboxes_that_never_come_up_but_as_failures_are_given_up() -> None:
    host = BadStarts(SandboxStatus.FAILED, 1_000)
    report = a_race(host, n=1)
    assert report is not None
    assert report.branches[0].reason == "the sandbox could not be made: it failed to start"
    assert (report.leftovers, host.alive(), len(host.boxes)) == ((), [SOURCE], 1 + 3)


def test_a_sandbox_that_stays_pending_costs_its_branch_alone() -> None:
    host = BadStarts(SandboxStatus.PENDING, 1)
    report = a_race(host)
    assert report is not None
    assert sorted(branch.status for branch in report.branches) == ["failed", "ok", "ok", "ok", "ok"]
    assert {branch.reason for branch in report.branches} == {None, "the sandbox was not running after 45 s"}
    assert host.alive() == [SOURCE]


class Hanging(FakeHost):
    """From some moment on, calls of these methods are never answered."""

    def __init__(self, methods: tuple[Method, ...], at: float) -> None:
        super().__init__(program=unlike)
        self._methods, self._at = methods, at

    async def _call(self, method: Method, what: str, effect: Callable[[], Any]) -> Any:
        if method in self._methods and asyncio.get_running_loop().time() > self._at:
            await asyncio.sleep(10_000)
        return await super()._call(method, what, effect)


@pytest.mark.parametrize("promote", ["none", "workspace"])
@pytest.mark.parametrize("method", ["terminate", "find", "run", "create", "delete_snapshot"])
def test_an_agents_race_is_over_before_its_tool_call_is(
    promote: str, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever hangs, and however long its candidates take: what could not be ended is a leftover."""

    async def never(**asked: Any) -> WorkspacePromotion:
        await asyncio.sleep(10_000)
        raise AssertionError("was waited for")

    monkeypatch.setattr("shared.races.leader.promote_workspace", never)
    host = Hanging((method, "terminate", "delete_snapshot"), 60)
    host.add(SOURCE)
    branches = [{"name": "quick", "command": ["try"]}, {"name": "slow", "command": ["try"], "env": {"SLOW": "1"}}]
    request = in_time(asked(branches=branches, promote=promote, deadline=LONGEST_RACE, branch_timeout=300), 2.0)

    async def slowly(call: FakeCall) -> CommandOutput:
        await asyncio.sleep(500 if "SLOW" in call.env else 1)
        return CommandOutput(0, "", "", timed_out=False)

    host._program = slowly

    async def main(clock: Callable[[], float]) -> RaceReport:
        return await run_race(
            request, host=host, settings=SETTINGS, environment=ENVIRONMENT, timeouts=timeouts(45), clock=clock
        )

    report = run_virtual(main)
    assert report.winner == "quick"
    assert (request.deadline or 0) >= (LONGEST_RACE_TO_PROMOTE if promote != "none" else LONGEST_RACE) - 2
    assert (request.deadline or 0) <= report.seconds <= TOOL_SECONDS - 5
    assert set(host.alive()) - {SOURCE} <= set(report.leftovers)


@settings(max_examples=150)
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
            "judge": st.sampled_from(
                [
                    {"type": "command", "command": ["score"], "files": {"s": "x"}, "in": place}
                    for place in ("branch", "child")
                ]
            ),
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


@settings(max_examples=100)
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
