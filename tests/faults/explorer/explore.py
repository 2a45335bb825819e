"""Many runs, and the shortest plan that still fails."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from tests.faults.explorer.plan import ORDINARY, RunPlan, plan_of
from tests.faults.explorer.run import RunResult, prepared, run
from tests.support.model.loop import VirtualLoop
from tests.support.model.truth import Violation
from tests.support.model.worker import Rules

_PARTS: Final = (
    "point_faults", "timed_faults", "crashes", "line_faults", "boot_faults", "hook_faults", "quotas",
    "healthchecks", "wakes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunFailure:
    """A plan that breaks a rule, made as small as it would go."""

    seed: str
    plan: RunPlan
    violation: Violation
    trace: tuple[tuple[float, str, str], ...]
    shrinking_runs: int

    def __str__(self) -> str:
        lines = [f"{self.violation.rule} broken at {self.violation.at:.2f} s: {self.violation.what}"]
        lines += self.plan.described()
        lines += [f"{at:9.3f}  {who:<6} {what}" for at, who, what in self.trace]
        return "\n".join(lines)


@dataclass(slots=True)
class Exploration:
    runs: int = 0
    seconds: float = 0.0  # of one core
    virtual_seconds: float = 0.0
    checks: Counter[str] = field(default_factory=Counter)
    longest_settling: int = 0
    failures: list[RunFailure] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.runs / self.seconds if self.seconds else 0.0
        checks = ", ".join(f"{rule} {count}" for rule, count in sorted(self.checks.items()))
        return (
            f"{self.runs} runs, {rate:.0f} a second of one core, "
            f"{self.virtual_seconds / 3600:.0f} hours of virtual time; "
            f"{sum(self.checks.values())} checks ({checks}); well again after at most {self.longest_settling} ticks; "
            f"{len(self.failures)} failures"
        )


def explore(
    seed: str, runs: int, *, rules: Rules | None = None, most_failures: int = 1, shrinking: bool = True
) -> Exploration:
    """Runs the plans `seed`-0, `seed`-1, ... until as many have failed as asked for."""
    found = Exploration()
    began = time.process_time()
    with prepared() as loop, rare_collections():
        for number in range(runs):
            plan = plan_of(f"{seed}-{number}")
            result = run(plan, loop, rules=rules)
            found.runs += 1
            found.checks += result.checks
            found.virtual_seconds += result.seconds
            found.longest_settling = max(found.longest_settling, result.ticks)
            if number % 20 == 19:
                gc.collect()
            if result.violations:
                found.failures.append(_shrunk(plan, result, loop, rules, 400 if shrinking else 0))
                if len(found.failures) >= most_failures:
                    break
    found.seconds = time.process_time() - began
    return found


class rare_collections:
    """Each run leaves cycles (tasks, futures), and collecting them at each step would cost a fifth of the time. What is
    frozen already stays so: of a process of tests that is nearly all there is (tests/conftest.py)."""

    def __enter__(self) -> Self:
        self._frozen_before = gc.get_freeze_count()
        if not self._frozen_before:
            gc.collect()
            gc.freeze()
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        gc.enable()
        if not self._frozen_before:
            gc.unfreeze()


def kind(violation: Violation) -> str:
    """What is the same about violations of one kind: the rule and the words before the details."""
    return f"{violation.rule} {violation.what.split(':')[0]}"


def _shrunk(plan: RunPlan, result: RunResult, loop: VirtualLoop, rules: Rules | None, most: int) -> RunFailure:
    """Leaves out whatever the first violation does not need; each candidate is run."""
    wanted = kind(result.violations[0])
    tried = 0

    def fails(candidate: RunPlan) -> bool:
        nonlocal tried
        tried += 1
        return any(kind(violation) == wanted for violation in run(candidate, loop, rules=rules).violations)

    smaller = True
    while smaller and tried < most:
        smaller = False
        for candidate in _smaller(plan):
            if tried >= most:
                break
            if fails(candidate):
                plan, smaller = candidate, True
                break
    final = run(plan, loop, rules=rules, tracing=True)
    violation = next(violation for violation in final.violations if kind(violation) == wanted)
    trace = tuple(entry for entry in final.trace if entry[0] <= violation.at)
    return RunFailure(plan.seed, plan, violation, trace, tried)


def _smaller(plan: RunPlan) -> Iterator[RunPlan]:
    """Plans with less in them, the boldest cuts first."""
    for name in _PARTS:
        part: tuple[Any, ...] = getattr(plan, name)
        if len(part) > 2:
            yield _with(plan, name, ())
            yield _with(plan, name, part[: len(part) // 2])
            yield _with(plan, name, part[len(part) // 2 :])
    last = len(plan.sessions) - 1
    struck = {fault.session for fault in plan.point_faults} | {fault.session for fault in plan.timed_faults}
    if last and last not in struck:
        yield replace(plan, sessions=plan.sessions[:-1])
    for name in _PARTS:
        part = getattr(plan, name)
        for index in range(len(part)):
            yield _with(plan, name, (*part[:index], *part[index + 1 :]))
    for index, session in enumerate(plan.sessions):
        quieter = [replace(session, ends=None)] if session.ends else []
        if len(session.turns) > 1:
            quieter += [replace(session, turns=session.turns[:-1]), replace(session, turns=session.turns[1:])]
        for candidate in quieter:
            yield replace(plan, sessions=(*plan.sessions[:index], candidate, *plan.sessions[index + 1 :]))
    if plan.retire:
        yield replace(plan, retire=False)
    if plan.manner != ORDINARY:
        yield replace(plan, manner=ORDINARY)


def _with(plan: RunPlan, name: str, part: tuple[Any, ...]) -> RunPlan:
    changed: dict[str, Any] = {name: part}
    return replace(plan, **changed)
