"""A day of an environment with ten thousand sandboxes, in virtual time: what twenty copies of the functions ask of both
services, what they keep in memory, and how long a session waits for its worker.

The services are those of the explorer (tests/support/model/crowd.py); the dispatcher and the reconciler are the real
ones. Calls are counted as the wire has them, a page of a list as one.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from typing import Final

from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, percentile
from tests.faults.explorer.run import prepared
from tests.support.model.crowd import Crowd, CrowdFigures, Size

DAY: Final = 86_400.0
HOURS: Final = "SCALE_HOURS"
"""The variable that makes the day shorter."""
SIZE: Final = Size(sandboxes=10_000, live=5_000, copies=20, seconds=DAY, turns=20.0)
SLEEPERS: Final = Size(sandboxes=1_000, live=0, copies=4, seconds=7_200.0, turns=0.0)
MOST_CALLS: Final = 20  # of a tick that has nothing to do
LONGEST_WAIT: Final = 5.0  # seconds at the 99th percentile, of calls that take 50 ms and a sandbox that wakes in 0.5 s


def run() -> BenchmarkResult:
    hours = float(os.environ.get(HOURS) or DAY / 3600)
    size = Size(SIZE.sandboxes, SIZE.live, SIZE.copies, hours * 3600.0, SIZE.turns)
    with prepared() as loop:
        idle = loop.run(Crowd(SLEEPERS, loop).play(), most_steps=10**9).tick_calls[-60:]
        crowd = Crowd(size, loop)
        began, before = time.process_time(), _resident()
        figures = loop.run(crowd.play(), most_steps=10**12)
        return _result(size, figures, idle, time.process_time() - began, _resident() - before)


def _resident() -> float:
    """MB, at the highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _result(size: Size, figures: CrowdFigures, idle: Sequence[int], seconds: float, grown: float) -> BenchmarkResult:
    rows = [
        (
            f"calls a minute, {service}",
            f"{sum(counts) / len(counts):.0f}",
            f"{percentile(counts, 99):.0f}",
            f"{max(counts)}",
        )
        for service, counts in figures.calls.items()
    ]
    waits = figures.waits
    rows += [
        ("calls of a tick", *_spread(figures.tick_calls, 0)),
        ("queued to handed over, s", *_spread(waits, 1)),
    ]
    others = [
        ("turns", str(figures.turns)),
        ("items that waited for more than 300 s", str(figures.late)),
        ("minutes that a live session's sandbox slept", str(figures.put_to_sleep)),
        ("memory of all copies and both services, growth in MB", f"{grown:.0f}"),
        ("CPU seconds of one core", f"{seconds:.0f}"),
        *((f"alarm: {alarm}", str(count)) for alarm, count in figures.alarms.most_common(5)),
    ]
    title = (
        f"{size.sandboxes} sandboxes, {size.live} live items, {size.copies} copies, {size.turns:g} turns a minute, "
        f"{size.seconds / 3600:g} hours"
    )
    return BenchmarkResult(
        tables=(
            FigureTable(title, ("", "typical", "p99", "most"), rows),
            FigureTable("The same time", ("", ""), others),
        ),
        meaning=(
            f"a session waits {percentile(waits, 50):.1f} s for its worker and {percentile(waits, 99):.1f} s at the "
            f"99th percentile; {figures.late} of {figures.turns} turns were starved."
        ),
        aims=(
            Aim("queued to handed over, p99", percentile(waits, 99), LONGEST_WAIT, "s"),
            Aim(f"calls of an idle tick with {SLEEPERS.sandboxes} sleepers, most", max(idle), MOST_CALLS, "calls"),
            Aim("starved items", figures.late, 0, "items"),
            Aim("minutes that a live session's sandbox slept", figures.put_to_sleep, 0, "minutes"),
            Aim("ticks' alarms, since all is well", sum(figures.alarms.values()), 0, "alarms"),
        ),
    )


def _spread(values: list[int] | list[float], digits: int) -> tuple[str, str, str]:
    return tuple(f"{percentile(values, percent):.{digits}f}" for percent in (50, 99, 100))  # type: ignore[return-value]
