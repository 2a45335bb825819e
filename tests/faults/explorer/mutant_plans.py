"""Plans that are full of the rare moments in which one mistake shows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from shared.ports import (
    SandboxStatus,
)
from tests.faults.explorer.plan import (
    BootFault,
    FullQuota,
    HookFault,
    LineFault,
    PointFault,
    RunPlan,
    SessionPlan,
    TimedFault,
    Wake,
    plan_of,
    slow_looks,
)
from tests.support.model.lines import Meets
from tests.support.model.worker import Habits


def where_looks_fail(method: str) -> Callable[[str], RunPlan]:
    """Every plan, with this look-up failing half of the time."""

    def plans(seed: str) -> RunPlan:
        plan, chance = plan_of(seed), random.Random(seed)
        failing = [
            LineFault(f"c{copy}", method, number, Meets.ERROR)
            for copy in range(plan.copies)
            for number in range(20)
            if chance.random() < 0.5
        ]
        return replace(plan, line_faults=(*plan.line_faults, *failing))

    return plans


def outdated_looks(seed: str) -> RunPlan:
    """Sandboxes that come and go within seconds, looked at slowly."""
    plan, chance = plan_of(seed), random.Random(seed)
    return replace(
        plan, eager=True, slow=6.0, line_faults=(*plan.line_faults, *slow_looks(chance, plan.copies)), timed_faults=()
    )


def unheard_while_looks_fail(seed: str) -> RunPlan:
    """A worker whose beats are lost for longer than T, and ticks that often cannot list its processes."""
    plan, chance = where_looks_fail("process_names")(seed), random.Random(seed)
    return replace(
        plan, point_faults=(PointFault(0, chance.choice(("started", "ready")), 0, "outage"),), timed_faults=()
    )


def spoken_to_while_marked(seed: str) -> RunPlan:
    """A session that gets a message when its sandbox is marked, which the next poll loses, and a tick that looks at
    the queue before the message and ends sandboxes long after it, while another tick takes the mark back."""
    chance = random.Random(seed)
    looks = 72.0 + 3 * chance.random()
    says = looks + 0.6 + chance.random()
    wakes = (Wake(60.0, 1), Wake(looks, 0), Wake(says + 1.0 + chance.random(), 1))
    slow_list = LineFault("c0", "list_sandboxes", 1, Meets.SLOW_ANSWER)
    return _spoken_to(seed, says, wakes, slow_list, LineFault("c1", "poll", 2, Meets.LOST_ANSWER))


def spoken_to_while_looked_at(seed: str) -> RunPlan:
    """A session that gets a message when its sandbox has slept for long, just after a tick has looked at it that is
    slow to act upon it."""
    chance = random.Random(seed)
    looks = 60.0 + 3 * chance.random()
    says = looks + 0.6 + chance.random()
    slow_session = [LineFault("c0", "session", number, Meets.SLOW_ANSWER) for number in range(4)]
    return _spoken_to(seed, says, (Wake(looks, 0), Wake(says + 0.5 + chance.random(), 1)), *slow_session)


def _spoken_to(seed: str, says: float, wakes: tuple[Wake, ...], *faults: LineFault) -> RunPlan:
    """The session is served at once and its sandbox asleep by second 40. The faults make the first copy's second pass
    take long between a look and its repairs. No webhook arrives."""
    return RunPlan(
        seed=seed,
        copies=2,
        sessions=(SessionPlan("sesn_Marked", ((5.0, (1,)), (says, (1,))), 0.2, Habits()),),
        slow=5.4 + random.Random(seed).random(),
        eager=True,
        wakes=(Wake(6.0, 0), Wake(40.0, 1), *wakes),
        line_faults=faults,
        hook_faults=tuple(HookFault(number, ()) for number in range(4)),
    )


def stopped_and_killed(seed: str) -> RunPlan:
    """Somebody asks a session's item to stop while its worker is at work, and sometimes the worker dies of something
    else before it can."""
    chance = random.Random(seed)
    faults = [PointFault(0, "serving", 0, "stop"), PointFault(0, chance.choice(("tool", "stopping")), 0, "kill")]
    return replace(
        _spoken_to(seed, 300.0, ()),
        sessions=(SessionPlan("sesn_Stopped", ((5.0, (1,)),), 0.2, Habits(tool=chance.choice((1.0, 45.0)))),),
        slow=1.0,
        eager=False,
        point_faults=tuple(faults[: chance.choice((1, 2, 2))]),
        hook_faults=(),
    )


def killed_in_a_tool(seed: str) -> RunPlan:
    return replace(
        _spoken_to(seed, 300.0, (Wake(60.0, 1),)),
        slow=1.0,
        eager=False,
        point_faults=(PointFault(0, "tool", 0, "kill"),),
    )


def acked_late(seed: str) -> RunPlan:
    """The copy dies right after it has started the worker; the next one finds it when it has waited for long, and the
    service answers no ack."""
    lost = [LineFault("c0", "ack", number, Meets.LOST_REQUEST) for number in range(3)]
    return RunPlan(
        seed=seed,
        copies=1,
        sessions=(SessionPlan("sesn_Late", ((1.0, (1,)),), 0.2, Habits(start=0.2)),),
        wakes=(Wake(77.0 + 3.0 * random.Random(seed).random(), 0),),
        line_faults=(LineFault("c0", "start", 0, Meets.CRASH_AFTER), *lost),
    )


def stands_still(seed: str) -> RunPlan:
    """A worker that has the lock stands still before it is ready."""
    chance = random.Random(seed)
    return RunPlan(
        seed=seed,
        copies=chance.choice((1, 2)),
        sessions=(SessionPlan("sesn_Still", ((1.0, (1,)),), 0.2, Habits(start=0.2 + chance.random())),),
        point_faults=(PointFault(0, "locked", 0, "freeze"),),
    )


def many_sleepers(seed: str) -> RunPlan:
    return RunPlan(
        seed=seed,
        copies=2,
        sessions=tuple(SessionPlan(f"sesn_Many{n}", ((5.0 + n, (1,)),), 0.2, Habits()) for n in range(20)),
        wakes=(Wake(40.0, 0), Wake(60.0, 1), Wake(80.0, 0)),
    )


def often_throttled(seed: str) -> RunPlan:
    plan = plan_of(seed)
    held = [LineFault(f"c{copy}", "poll", number, Meets.THROTTLED) for copy in range(plan.copies) for number in (0, 2)]
    return replace(plan, line_faults=(*plan.line_faults, *held))


def one_hangs(seed: str) -> RunPlan:
    """A session whose sandbox does not come up, and another one that comes a little later."""
    chance = random.Random(seed)
    later = 3.0 + chance.random()
    return RunPlan(
        seed=seed,
        copies=1,
        sessions=tuple(
            SessionPlan(f"sesn_Hangs{at:.0f}", ((at, (1,)),), 0.2, Habits()) for at in (1.0, later, later + 2.0)
        ),
        boot_faults=(BootFault(1, 30.0, SandboxStatus.TERMINATED),),
    )


def storm(seed: str) -> RunPlan:
    """Many webhooks for each turn."""
    return replace(
        one_hangs(seed), hook_faults=tuple(HookFault(n, tuple(0.15 * k for k in range(20))) for n in range(6))
    )


def full(seed: str) -> RunPlan:
    return replace(one_hangs(seed), boot_faults=(), quotas=(FullQuota(0.5, 60.0),))


def asleep_and_spoken_to(seed: str, *faults: LineFault) -> RunPlan:
    return replace(
        _spoken_to(seed, 60.0, (), *faults), hook_faults=tuple(HookFault(number, (0.1,)) for number in range(4))
    )


def resume_refused_once(seed: str) -> RunPlan:
    return asleep_and_spoken_to(seed, *(LineFault(f"c{copy}", "resume", 0, Meets.REFUSAL) for copy in range(2)))


def stuck(seed: str) -> RunPlan:
    return replace(asleep_and_spoken_to(seed), timed_faults=(TimedFault(50.0, 0, "stuck"),))


def partial_lists(seed: str) -> RunPlan:
    """Several sessions at work for long, of which every list shows half."""
    partial = [
        LineFault(f"c{copy}", "list_items", number, Meets.PARTIAL) for copy in range(2) for number in range(1, 20)
    ]
    return RunPlan(
        seed=seed,
        copies=2,
        sessions=tuple(
            SessionPlan(f"sesn_Part{n}", ((2.0 + n, (1, 1)),), 3.0, Habits(tool=45.0, load=4.0)) for n in range(4)
        ),
        eager=True,
        slow=1.0,
        wakes=tuple(Wake(10.0 * n, n % 2) for n in range(1, 10)),
        point_faults=tuple(PointFault(n, "serving", 0, "suspend") for n in range(4)),
        line_faults=tuple(partial),
    )


def served_marked_and_spoken_to(seed: str) -> RunPlan:
    """The copy that served the session does nothing until a webhook wakes it; the other one has marked its sandbox."""
    plan = _spoken_to(seed, 66.0 + random.Random(seed).random(), (Wake(60.0, 1),))
    return replace(plan, hook_faults=plan.hook_faults[:2])


def pooled(seed: str) -> RunPlan:
    """Every plan with a pool: renames are in doubt and copies die between a claim and a rename."""
    chance = random.Random(seed)
    meets = (Meets.CRASH_BEFORE, Meets.CRASH_SENT, Meets.LOST_ANSWER, Meets.LOST_ANSWER, Meets.LOST_REQUEST)
    plan = replace(plan_of(seed), pooled=True)
    faults = [LineFault(f"c{copy}", "rename", 0, chance.choice(meets)) for copy in range(plan.copies)]
    return replace(plan, line_faults=(*plan.line_faults, *faults))
