"""What the soak saw, and what of it is a problem."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from tests.support.footprint import Growth


@dataclass(frozen=True, slots=True)
class Played:
    """What a user saw of a session. `said`: the turns asked for, one more for each that was interrupted."""

    session: str
    said: int
    interrupts: int
    seconds: float
    mark: str = "turn"
    """What its lines begin with: its own word, so that another session's line shows."""


@dataclass
class Report:
    """What the soak found. `problems` empty: every rule held."""

    wanted: int
    begun: int = 0
    ended: int = 0
    """Sessions that their users archived or deleted while the faults lasted."""
    turns: int = 0
    seconds: float = 0.0
    cleaned_in: float = 0.0
    interrupts: int = 0
    calls: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    weather: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    told: int = 0
    """Calls that were answered with an error, as their worker was lost."""
    looked: int = 0
    """Files, arguments and environments in sandboxes that were searched for credentials."""
    requests: int = 0
    rotated: list[str] = field(default_factory=list, repr=False)
    """The environment keys that copies had beside the first one; no sandbox may have one."""
    ticks: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Why repairs of the tick loops failed, each reason without the ids in it."""
    growths: list[Growth] = field(default_factory=list)
    peaks: dict[str, tuple[float, int]] = field(default_factory=dict)
    """By copy, the most memory (MB) and the most open files of any sample."""
    busiest: int = 0
    """Requests to both services in the busiest minute."""
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Around every count that users' threads add to."""

    def text(self) -> str:
        rows = [
            f"sessions {self.begun} of {self.wanted}, turns {self.turns} in {self.seconds:.0f} s"
            f" ({60 * self.turns / max(self.seconds, 1):.1f} a minute), tool calls {self.calls}",
            f"requests {self.requests}, of these spoiled {sum(self.faults.values())}: "
            + ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items())),
            "tick loops: " + ", ".join(f"{name} {count}" for name, count in sorted(self.ticks.items())),
            "repairs that failed: "
            + (", ".join(f"{why} {count}" for why, count in self.failures.most_common(40)) or "none"),
            f"interrupted turns {self.interrupts}, agents told of a lost call {self.told};"
            f" ended on the way {self.ended},"
            f" the others cleaned up in {self.cleaned_in:.0f} s; searched for credentials: {self.looked}",
            "weather: " + (", ".join(f"{name} {count}" for name, count in sorted(self.weather.items())) or "none"),
            f"the slowest session took {self.slowest:.0f} s; the busiest minute had {self.busiest} requests",
            f"{'copy':<14}{'samples':>8}{'MB before':>11}{'after':>8}{'files before':>14}{'after':>7}"
            f"{'most MB':>9}{'files':>7}",
        ]
        rows += [
            f"{it.name:<14}{it.samples:>8}{it.rss_before:>11.1f}{it.rss_after:>8.1f}"
            f"{it.files_before:>14.0f}{it.files_after:>7.0f}"
            + "{:>9.1f}{:>7}".format(*self.peaks.get(it.name, (0.0, 0)))
            for it in self.growths
        ]
        rows += [f"PROBLEM {problem}" for problem in self.problems] or ["no problem"]
        return "\n".join(rows)
