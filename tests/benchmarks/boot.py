"""CPU (user and system) of one worker process from its start to its lease: what a sandbox spends before the first tool.

The item is acked beforehand and nothing has a delay, so the worker waits for nothing. Rounds take turns, since other
programs of the machine slow all of them alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from tests.benchmarks.boots import boot_cpu
from tests.benchmarks.report import BenchmarkResult, FigureTable, median, milliseconds
from tests.benchmarks.stage import delays, production_place, stage

ROUNDS: Final = 3
RUNS: Final = 5


def run() -> BenchmarkResult:
    bare, archive, image = list[float](), list[float](), list[float]()
    with stage() as world:
        delays(world, on=False)
        place = production_place(world)
        for _ in range(ROUNDS):
            bare += [_interpreter() for _ in range(RUNS)]
            archive += boot_cpu(place, RUNS, compiled=False)
            image += boot_cpu(place, RUNS)
    rows = [
        (name, milliseconds(min(figures)), milliseconds(median(figures)))
        for name, figures in (
            ("python -I, which does nothing", bare),
            ("worker from its archive alone, to its lease", archive),
            ("worker of an image, with its byte code, to its lease", image),
        )
    ]
    return BenchmarkResult(
        tables=(FigureTable("CPU of a worker's boot", ("", "least ms", "median ms"), rows),),
        meaning=(
            f"{ROUNDS * RUNS} runs each. Here an interpreter starts twice, to hide the claim (image/session/worker/"
            "__main__.py): where a service starts the worker as root, or from a sealed interpreter, take the first row "
            "off once. What is left above it is the worker's own."
        ),
        aims=(),
    )


def _interpreter() -> float:
    process = subprocess.Popen([sys.executable, "-I", "-c", "pass"])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime
