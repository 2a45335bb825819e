"""What must hold, checked where it happens: the services report here, and only what they know for certain counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Violation:
    """`rule` is one of docs/architecture.md#rules, `what` tells which part of it and about whom, `at` is in seconds of
    the run."""

    rule: str
    what: str
    at: float


@dataclass(slots=True)
class Truth:
    """One run's record. `checks` counts how often each rule was judged."""

    checks: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    trace: list[tuple[float, str, str]] = field(default_factory=list)
    tracing: bool = False

    def check(self, rule: str, holds: bool, what: str, at: float) -> None:
        """`what` begins with words that are the same for every violation of the kind."""
        self.checks[rule] += 1
        if not holds:
            self.violations.append(Violation(rule, what, at))

    def note(self, at: float, who: str, what: str) -> None:
        if self.tracing:
            self.trace.append((at, who, what))
