"""What a benchmark returns, and how it is printed.

A benchmark measures and never judges: an aim that is missed is printed as missed, and the exit status stays 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FigureTable:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [list(self.head), *(list(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        texts = ["  " + "  ".join(_aligned(line, widths)).rstrip() for line in lines]
        texts.insert(1, "  " + "  ".join("-" * width for width in widths))
        return "\n".join([self.title, *texts])


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure beside the one that was aimed at. `limit` None: measured without an aim."""

    what: str
    measured: float
    limit: float | None
    unit: str = "times"

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return "no aim"
        return "met" if self.measured <= self.limit else "MISSED"

    @property
    def row(self) -> Sequence[str]:
        aim = "-" if self.limit is None else f"at most {self.limit:g} {self.unit}"
        return (self.what, f"{self.measured:.3g} {self.unit}", aim, self.verdict)


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """`meaning` is one sentence for a reader who looks at nothing else."""

    tables: Sequence[FigureTable]
    meaning: str
    aims: Sequence[Aim]

    def __str__(self) -> str:
        blocks = [*map(str, self.tables), f"Meaning: {self.meaning}"]
        return "\n\n".join(blocks)


def aims_table(aims: Sequence[Aim]) -> FigureTable:
    return FigureTable("Aims", ("what", "measured", "aim", ""), [aim.row for aim in aims])


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f}" if abs(seconds) >= 0.01 else f"{seconds * 1000:.1f}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: always one of the values. `values` must not be empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first column is text, the others are figures."""
    return [
        text.ljust(width) if n == 0 else text.rjust(width)
        for n, (text, width) in enumerate(zip(line, widths, strict=True))
    ]
