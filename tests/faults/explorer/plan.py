"""A plan: everything that a run leaves to chance, written down, so that it can be had again and made smaller."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final, Literal

from shared.ports import SandboxStatus
from tests.support.model.claude import Turn
from tests.support.model.lines import CRASHES, Meets
from tests.support.model.sandboxes import Manner
from tests.support.model.worker import Habits

ORDINARY: Final = Manner()
CHAOS: Final = 100.0  # seconds until the last fault
What = Literal["kill", "end", "fail", "suspend", "stuck", "expire", "outage", "stop", "freeze"]
"""Done to a session's worker (kill; freeze: it stands still before it is ready), sandbox (end, fail, suspend; stuck:
suspended, and refuses to be resumed for good), lease (expire), connection (outage), or item (stop: somebody asks it
to)."""

_METHODS: Final = (
    "poll", "poll", "create", "find", "start", "process_output", "process_state", "process_names", "ack", "ack",
    "resume", "suspend", "terminate", "rename", "list_items", "list_sandboxes", "session", "force_stop", "interrupt",
    "open_calls", "give_up_calls", "touch", "write_file",
)  # fmt: skip
_POINTS: Final = (
    "started", "locked", "ready", "passed", "leased", "serving", "tool", "tool done", "posted", "idle", "stopping",
    "stopped",
)  # fmt: skip
_NO_LEASE_YET: Final = ("started", "locked")
_OF_THE_WORLD: Final[tuple[What, ...]] = (
    "kill", "kill", "end", "fail", "suspend", "suspend", "expire", "outage", "outage", "stop",
)  # fmt: skip
_SUFFIXES: Final = ("AbCd1", "aBcD1", "abcd1", "Zz")  # some differ in case alone
_MANY: Final = (*_SUFFIXES, *(f"Many{number}" for number in range(16)))


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """`turns`: when the user says something, and the tool calls of each round that it leads to."""

    id: str
    turns: tuple[tuple[float, Turn], ...]
    think: float
    habits: Habits
    ends: tuple[float, Literal["archived", "deleted"]] | None = None


@dataclass(frozen=True, slots=True)
class Wake:
    """A schedule fires on this copy."""

    at: float
    copy: int


@dataclass(frozen=True, slots=True)
class LineFault:
    caller: str
    method: str
    number: int
    meets: Meets


@dataclass(frozen=True, slots=True)
class PointFault:
    """When a worker of the session reaches this point for the `number`th time."""

    session: int
    point: str
    number: int
    what: What


@dataclass(frozen=True, slots=True)
class TimedFault:
    at: float
    session: int
    what: What


@dataclass(frozen=True, slots=True)
class CopyCrash:
    at: float
    copy: int


@dataclass(frozen=True, slots=True)
class HookFault:
    """What becomes of the `number`th webhook: so many deliveries, each so late."""

    number: int
    delays: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BootFault:
    """The `number`th sandbox is pending for so long and becomes this."""

    number: int
    seconds: float
    becomes: SandboxStatus


@dataclass(frozen=True, slots=True)
class FullQuota:
    """There is no room for another sandbox for so many seconds."""

    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class RunPlan:
    seed: str
    copies: int
    sessions: tuple[SessionPlan, ...]
    manner: Manner = ORDINARY
    slow: float = 4.0
    resume_suspended: bool = True
    pooled: bool = False  # new sandboxes are claimed from a warm pool
    eager: bool = False  # sandboxes are suspended, marked and ended after seconds
    healthchecks: tuple[float, ...] = ()
    retire: bool = False  # go on until sleeping sandboxes are past their retention
    wakes: tuple[Wake, ...] = ()
    line_faults: tuple[LineFault, ...] = ()
    point_faults: tuple[PointFault, ...] = ()
    timed_faults: tuple[TimedFault, ...] = ()
    crashes: tuple[CopyCrash, ...] = ()
    hook_faults: tuple[HookFault, ...] = ()
    boot_faults: tuple[BootFault, ...] = ()
    quotas: tuple[FullQuota, ...] = ()

    def described(self) -> list[str]:
        """What differs from a plan where nothing special happens, one line each."""
        lines = [f"seed {self.seed}: {self.copies} copies, slow calls take {self.slow:g} s, {self.manner}"]
        for field in fields(self):
            if field.name in ("seed", "copies", "manner", "slow"):
                continue
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                lines += [str(each) for each in value]
            elif value != field.default:
                lines.append(f"{field.name}: {value}")
        return lines


def plan_of(seed: str) -> RunPlan:
    """The plan of a seed. How much goes wrong differs much between seeds."""
    chance = random.Random(seed)
    roll = chance.random
    copies = chance.choice((1, 2, 2, 3, 4))
    count = chance.choice((1, 1, 2, 2, 3))
    suffixes = chance.sample(_SUFFIXES, count)
    if roll() < 0.01:
        count, suffixes = len(_MANY), list(_MANY)
    sessions = tuple(_session(chance, suffix) for suffix in suffixes)
    harsh = chance.choice((0.0, 0.5, 1.0, 1.0, 2.0))
    plain = chance.random() < 0.25  # nothing dies: then no turn may be broken off
    lasting = random.Random(f"{seed} lasting")  # apart, so that the rest of a seed's plan stays as it is
    pool = random.Random(f"{seed} pool")
    pooled = pool.random() < 0.15
    stale = chance.random() < 0.2  # look-ups are slow and sandboxes short-lived: what was seen is often outdated
    return RunPlan(
        seed=seed,
        copies=copies,
        sessions=sessions,
        manner=Manner(
            boot=chance.choice((0.2, 0.5, 2.0)),
            name_release=chance.choice((0.0, 0.0, 1.0)),
            failed_keeps_name=roll() < 0.3,
            worker_on_board=roll() < 0.8,
        ),
        slow=chance.choice((1.0, 4.0, 4.0, 9.0, 14.0)) if not stale else chance.choice((4.0, 6.0, 8.0)),
        resume_suspended=roll() < 0.9,
        eager=stale or roll() < 0.4,
        healthchecks=(roll() * CHAOS,) if roll() < 0.1 else (),
        retire=roll() < 0.15,
        wakes=tuple(Wake(at + 6.0 * roll(), chance.randrange(copies)) for at in _every(chance, stale)),
        pooled=pooled,
        line_faults=(
            *_line_faults(chance, copies, count, harsh),
            *(slow_looks(chance, copies) if stale else ()),
            *(_pool_faults(pool, copies) if pooled and harsh else ()),
        ),
        point_faults=() if plain else _point_faults(chance, count, harsh),
        timed_faults=() if plain else (*_timed_faults(chance, count, harsh), *_stuck(lasting, count)),
        crashes=tuple(CopyCrash(roll() * CHAOS, chance.randrange(copies)) for _ in range(_few(chance, harsh * 0.7))),
        hook_faults=tuple(
            HookFault(number, chance.choice(((), (), (0.1, 0.1), (0.1, 0.3, 5.0), (20.0,), (0.0, 0.0, 0.0, 30.0))))
            for number in range(12)
            if roll() < 0.3
        ),
        boot_faults=tuple(
            BootFault(
                number,
                chance.choice((0.5, 3.0, 7.0, 12.0, 30.0)),
                chance.choice((SandboxStatus.RUNNING, SandboxStatus.FAILED, SandboxStatus.TERMINATED)),
            )
            for number in (1, 2, 3)
            if roll() < 0.15 * harsh
        ),
        quotas=(FullQuota(lasting.uniform(0.0, 40.0), lasting.uniform(5.0, 60.0)),) if lasting.random() < 0.1 else (),
    )


def _stuck(chance: random.Random, sessions: int) -> tuple[TimedFault, ...]:
    return (TimedFault(chance.uniform(5.0, CHAOS), chance.randrange(sessions), "stuck"),) * (chance.random() < 0.06)


def _session(chance: random.Random, suffix: str) -> SessionPlan:
    roll = chance.random
    first = 20.0 * roll()
    later = [first + gap for gap in (chance.choice((3.0, 9.0, 14.0, 40.0)) + 5 * roll(),) if roll() < 0.5]
    times = [first, *later, *([later[-1] + 20.0 * roll()] if later and roll() < 0.4 else [])]
    return SessionPlan(
        id=f"sesn_{suffix}",
        turns=tuple((at, tuple(chance.choice((1, 1, 2)) for _ in range(chance.choice((0, 1, 1, 2))))) for at in times),
        think=chance.choice((0.2, 1.0, 3.0)),
        habits=Habits(
            start=chance.choice((0.2, 0.6, 3.0)),
            load=chance.choice((0.2, 1.0, 4.0)),
            tool=chance.choice((0.1, 1.0, 8.0, 8.0, 45.0)),
            broken=roll() < 0.03,
        ),
        ends=(30.0 + 80.0 * roll(), chance.choice(("archived", "deleted"))) if roll() < 0.12 else None,
    )


def slow_looks(chance: random.Random, copies: int) -> Iterator[LineFault]:
    """A quarter of all look-ups, each by itself."""
    looks = ("session", "open_calls", "list_snapshots", "list_items", "list_sandboxes", "process_names", "find")
    for copy in range(copies):
        for method in looks:
            for number in range(10):
                if chance.random() < 0.25:
                    yield LineFault(f"c{copy}", method, number, Meets.SLOW_ANSWER)


def _every(chance: random.Random, often: bool) -> list[float]:
    """When the schedule fires; an outage of the schedule is a fault too."""
    period = 10.0 if often else chance.choice((15.0, 20.0, 30.0, 60.0))
    return [period * number for number in range(1, int(CHAOS / period) + 1) if chance.random() < 0.9]


def _few(chance: random.Random, mean: float) -> int:
    number = 0
    while number < 8 and chance.random() < mean / (1.0 + mean):
        number += 1
    return number


def _line_faults(chance: random.Random, copies: int, sessions: int, harsh: float) -> tuple[LineFault, ...]:
    faults = []
    kinds = tuple(Meets)
    for _ in range(_few(chance, 4.0 * harsh)):
        caller = f"c{chance.randrange(copies)}"
        if chance.random() < 0.7:
            number = 0 if chance.random() < 0.6 else chance.randrange(6)
            method, meets = chance.choice(_METHODS), chance.choice(kinds)
            burst = 1 if meets in CRASHES else chance.choice((1, 1, 1, 2, 2, 4))
            faults += [LineFault(caller, method, number + more, meets) for more in range(burst)]
        else:
            faults.append(LineFault(caller, "*", chance.randrange(40), chance.choice(kinds)))
    of_workers = (Meets.LOST_REQUEST, Meets.LOST_ANSWER, Meets.LOST_ANSWER, Meets.ERROR, Meets.SLOW_ANSWER)
    for _ in range(_few(chance, 2.0 * harsh)):
        method = chance.choice(("beat", "beat", "result", "stop", "session"))
        number = chance.randrange(4)
        meets = chance.choice(of_workers)
        # A lost beat is often one of several: the SDK's own attempts fail together.
        run = chance.choice((1, 1, 2, 4)) if method == "beat" else 1
        caller = f"w{chance.randrange(sessions)}"
        faults += [LineFault(caller, method, number + more, meets) for more in range(run)]
    return tuple(faults)


def _pool_faults(chance: random.Random, copies: int) -> Iterator[LineFault]:
    for method in ("pool", "claim_from_pool", "rename", "find"):
        if chance.random() < 0.4:
            number = chance.choice((0, 0, 0, 1, 2))
            yield LineFault(f"c{chance.randrange(copies)}", method, number, chance.choice(tuple(Meets)))


def _point_faults(chance: random.Random, sessions: int, harsh: float) -> tuple[PointFault, ...]:
    def fault() -> PointFault:
        session, point = chance.randrange(sessions), chance.choice(_POINTS)
        number = 0 if chance.random() < 0.7 else chance.randrange(3)
        what = chance.choice(_OF_THE_WORLD)
        if what == "expire" and point in _NO_LEASE_YET:
            what = "freeze"
        return PointFault(session, point, number, what)

    return tuple(fault() for _ in range(_few(chance, harsh)))


def _timed_faults(chance: random.Random, sessions: int, harsh: float) -> tuple[TimedFault, ...]:
    return tuple(
        TimedFault(CHAOS * chance.random(), chance.randrange(sessions), chance.choice(_OF_THE_WORLD))
        for _ in range(_few(chance, harsh))
    )
