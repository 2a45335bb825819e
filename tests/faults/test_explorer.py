"""The product under thousands of schedules with faults, in memory; and the plans of the bugs that were found so.

`python -m tests.faults.explorer --runs 10000 --seed N` runs more.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from shared.ports import SandboxStatus
from tests.faults.explorer.explore import explore, kind
from tests.faults.explorer.mutants import MUTANTS
from tests.faults.explorer.plan import (
    BootFault,
    HookFault,
    LineFault,
    PointFault,
    RunPlan,
    SessionPlan,
    TimedFault,
    Wake,
    plan_of,
)
from tests.faults.explorer.run import prepared, run
from tests.support.model.lines import Meets
from tests.support.model.sandboxes import Manner
from tests.support.model.worker import Habits, Rules

RUNS = 400


def session(*turns: tuple[float, tuple[int, ...]], name: str = "sesn_Zz", habits: Habits | None = None) -> SessionPlan:
    return SessionPlan(name, turns, 0.2, habits or Habits())


FOUND = {
    "a slow poll is followed by another though the time for claims is over": RunPlan(
        seed="cut-off",
        copies=2,
        sessions=(session((2.0, ()), name="sesn_Aa"), session((6.0, (1,)))),
        slow=14.0,
        line_faults=(LineFault("c0", "poll", 0, Meets.SLOW_ANSWER), LineFault("c1", "poll", 0, Meets.SLOW_ANSWER)),
    ),
    "a healthcheck that was acked and whose stop was lost is starting for ever": RunPlan(
        seed="dismissal",
        copies=1,
        sessions=(
            session(
                (2.0, ()),
            ),
        ),
        healthchecks=(10.0,),
        wakes=(Wake(15.0, 0),),
        line_faults=(LineFault("c0", "force_stop", 0, Meets.LOST_REQUEST),),
    ),
    "a sandbox is suspended by a look that is older than five seconds": RunPlan(
        seed="old look",
        copies=2,
        sessions=(session((14.0, ()), (31.0, ()), (46.5, (2,)), habits=Habits(tool=1.0)),),
        eager=True,
        wakes=(Wake(43.0, 1),),
        line_faults=tuple(
            LineFault(f"c{copy}", method, 1, Meets.SLOW_ANSWER) for copy in (0, 1) for method in ("list_items", "find")
        ),
    ),
    "calls that a worker left behind in a sandbox that is gone wait for ever": RunPlan(
        seed="left behind",
        copies=2,
        sessions=(session((10.0, (1, 1))),),
        line_faults=(
            LineFault("w0", "session", 0, Meets.LOST_REQUEST),
            LineFault("w0", "session", 1, Meets.LOST_ANSWER),
            LineFault("w0", "session", 2, Meets.LOST_ANSWER),
        ),
        timed_faults=(TimedFault(30.5, 0, "fail"),),
    ),
    "a stranded item gets its first beat while a slow look says that nobody is there": RunPlan(
        seed="late beat",
        copies=1,
        sessions=(session((4.6, (1,)), habits=Habits(tool=8.0)),),
        slow=8.0,
        wakes=(Wake(50.0, 0), Wake(64.0, 0), Wake(73.0, 0)),
        line_faults=tuple(LineFault("c0", "find", number, Meets.SLOW_ANSWER) for number in range(3)),
        point_faults=(PointFault(0, "ready", 0, "outage"), PointFault(0, "leased", 0, "kill")),
    ),
    "a worker that has waited for long gives up while its ack is asked for again": RunPlan(
        seed="given up before the ack",
        copies=1,
        sessions=(session((1.0, (1,)), habits=Habits(start=0.2)),),
        slow=4.0,
        wakes=(Wake(79.0, 0),),
        line_faults=(
            LineFault("c0", "start", 0, Meets.CRASH_AFTER),
            *(LineFault("c0", "ack", number, Meets.LOST_REQUEST) for number in range(3)),
        ),
    ),
    "an item that somebody asked to stop is released turns later, since its worker could not hear it": RunPlan(
        seed="quiet-2439",
        copies=2,
        sessions=(
            SessionPlan("sesn_aBcD1", ((3.49, (1, 1)), (16.92, ()), (19.27, (2, 1))), 3.0, Habits(start=0.2, tool=8.0)),
        ),
        slow=9.0,
        eager=True,
        wakes=(Wake(61.8, 1),),
        point_faults=(PointFault(0, "tool", 0, "stop"), PointFault(0, "leased", 0, "fail")),
        timed_faults=(TimedFault(73.6, 0, "outage"),),
    ),
    "a worker that slept over its lease stops the item that was offered again meanwhile": RunPlan(
        seed="finalB-1576",
        copies=1,
        sessions=(SessionPlan("sesn_aBcD1", ((18.01, (2,)), (59.0, (2,))), 1.0, Habits(start=0.6, tool=8.0)),),
        slow=9.0,
        line_faults=(LineFault("w0", "stop", 0, Meets.ERROR),),
        point_faults=(PointFault(0, "idle", 0, "suspend"), PointFault(0, "tool", 0, "outage")),
    ),
    "a worker is started in a sandbox that was marked during a slow look at its processes": RunPlan(
        seed="beat-945",
        copies=1,
        sessions=(
            session((7.714057302124173, ()), habits=Habits(load=1.0, tool=8.0)),
            SessionPlan("sesn_AbCd1", ((15.939999242150842, (2,)),), 3.0, Habits(start=0.2, load=4.0)),
            SessionPlan(
                "sesn_abcd1",
                ((18.618281050072277, (1,)),),
                0.2,
                Habits(start=3.0, load=1.0, broken=True),
                ends=(66.916444084614, "deleted"),
            ),
        ),
        slow=8.0,
        eager=True,
        wakes=(Wake(34.32014374246201, 0), Wake(65.68995752275092, 0)),
        line_faults=(LineFault("c0", "process_names", 3, Meets.SLOW_ANSWER),),
    ),
    "a marked sandbox is ended though the one that was made for its session meanwhile has failed": RunPlan(
        seed="clm-21423",
        copies=2,
        sessions=(
            SessionPlan(
                "sesn_abcd1",
                ((10.848332685760793, (1,)), (53.78520328375666, (2, 2))),
                0.2,
                Habits(start=0.6, tool=0.1),
            ),
        ),
        manner=replace(Manner(), boot=2.0, failed_keeps_name=True),
        slow=14.0,
        eager=True,
        wakes=(Wake(25.20019038764423, 0), Wake(42.1375831346889, 0), Wake(81.39183267738768, 0)),
        hook_faults=(HookFault(1, (0.1, 0.3, 5.0)),),
        boot_faults=(BootFault(2, 12.0, SandboxStatus.FAILED),),
    ),
    "a worker is started in a sandbox that took long to make and was marked meanwhile": RunPlan(
        seed="clm-29239",
        copies=2,
        sessions=(
            SessionPlan("sesn_aBcD1", ((1.2308204590787541, (1, 1)),), 0.2, Habits(start=0.2, load=4.0)),
            SessionPlan(
                "sesn_abcd1",
                ((7.330400600835163, (1, 2)),),
                1.0,
                Habits(start=3.0, tool=45.0),
                (98.47716439968279, "deleted"),
            ),
        ),
        manner=replace(Manner(), suspend=0.3, resume=0.5, name_release=0.0),
        slow=14.0,
        eager=True,
        wakes=(Wake(95.51446883114055, 1),),
        point_faults=(PointFault(1, "tool", 0, "end"),),
        boot_faults=(BootFault(3, 12.0, SandboxStatus.RUNNING),),
    ),
    "an item is acked for a worker whose lease has ended before it heard of it": RunPlan(
        seed="clm-37494",
        copies=2,
        sessions=(
            session((16.31651506142155, (1, 1)), name="sesn_AbCd1", habits=Habits(start=0.6, tool=8.0)),
            SessionPlan("sesn_Zz", ((18.510603236005213, (1,)),), 0.2, Habits(start=0.6, tool=8.0)),
            SessionPlan("sesn_aBcD1", ((18.678444817608604, (1,)),), 3.0, Habits(start=0.2, tool=0.1)),
        ),
        manner=replace(Manner(), worker_on_board=False),
        line_faults=(LineFault("w0", "beat", 1, Meets.SLOW_ANSWER),),
        timed_faults=(TimedFault(21.392552016118984, 0, "expire"),),
    ),
    "an ack whose answer was lost is sent again after a lease that ended before its time": RunPlan(
        seed="1-1352",
        copies=3,
        sessions=(session((7.467794212121326, (2, 2)), name="sesn_AbCd1", habits=Habits(start=0.6)),),
        slow=1.0,
        line_faults=(LineFault("c1", "ack", 0, Meets.LOST_ANSWER),),
        point_faults=(PointFault(0, "leased", 0, "expire"),),
    ),
}


def test_the_rules_hold_in_hundreds_of_runs_with_faults() -> None:
    found = explore("suite", RUNS)
    assert not found.failures, "\n\n".join(map(str, found.failures))
    assert found.runs == RUNS
    assert set(found.checks) == {"I1", "I2", "I3", "I4", "I5", "I7", "I8", "I9"}
    assert found.longest_settling <= 50, "a worker that never comes up is given up three times in one turn"


@pytest.mark.parametrize("plan", FOUND.values(), ids=lambda plan: plan.seed.replace(" ", "-"))
def test_what_was_found_once_stays_mended(plan: RunPlan) -> None:
    with prepared() as loop:
        assert run(plan, loop).violations == ()


def test_a_seed_gives_the_same_run_again() -> None:
    with prepared() as loop:
        for number in range(20):
            first, second = (run(plan_of(f"again-{number}"), loop, tracing=True) for _ in range(2))
            assert first == second
            assert len(first.trace) > 10


def test_faults_of_all_kinds_are_met() -> None:
    """A plan's fault that never happens tests nothing."""
    met: set[str] = set()
    with prepared() as loop:
        for number in range(120):
            for _, _, what in run(plan_of(f"met-{number}"), loop, tracing=True).trace:
                met |= {fault for fault in Meets if what.endswith(f"meets: {fault}")}
                met |= {
                    word
                    for word in ("kill", "end", "fail", "suspend", "expire", "outage", "stop")
                    if what.startswith(f"{word} sesn")
                }
    assert met == {*Meets, "kill", "end", "fail", "suspend", "expire", "outage", "stop"}


def test_what_fails_is_shrunk_to_a_plan_that_fails_alike() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.rules != Rules())
    (failure,) = explore("shrunk", 50, rules=mutant.rules).failures
    before = plan_of(failure.seed)
    with prepared() as loop:
        again = run(failure.plan, loop, rules=mutant.rules).violations
    assert kind(failure.violation) in {kind(violation) for violation in again}
    assert len(failure.plan.line_faults) + len(failure.plan.wakes) < len(before.line_faults) + len(before.wakes)
    assert failure.violation.rule in str(failure) and failure.seed in str(failure)


def test_a_copy_that_always_fails_is_no_endless_run() -> None:
    """What the model calls 4xx or lost for good still ends, within the bounds of I7 and with everything
    reported."""
    plan = RunPlan(
        seed="refused",
        copies=1,
        sessions=(session((1.0, (1,))),),
        manner=replace(Manner(), boot=0.2),
        wakes=tuple(Wake(20.0 * number, 0) for number in range(1, 5)),
        line_faults=tuple(LineFault("c0", "create", number, Meets.ERROR) for number in range(400)),
        hook_faults=(HookFault(0, ()),),
    )
    with prepared() as loop:
        result = run(plan, loop)
    assert result.violations == ()
    assert result.checks["I7"] >= 8


def test_the_command_says_what_it_did() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.explorer", "--runs", "20", "--seed", "command"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "runs, " in done.stdout and "a second of one core" in done.stdout and "checks" in done.stdout
