"""`ps`, `top` and `cost` with a thousand sessions and sandboxes, at 50 ms a round trip: a whole process each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Final

from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, median
from tests.support.many_sessions import many_sessions, variables
from tests.support.world import ROOT

RUNS: Final = 5
ROUND_TRIP: Final = 0.05
AIM_SECONDS: Final = 2.0
COMMANDS: Final = (("ps",), ("top", "--once"), ("cost",))


def run() -> BenchmarkResult:
    rows, aims = [], []
    with many_sessions() as service:
        service.latency = ROUND_TRIP
        environ = {**os.environ, **variables(service)}
        for command in COMMANDS:
            seconds = median([_timed(command, environ) for _ in range(RUNS)])
            service.calls.clear()
            _timed(command, environ)
            rows.append((" ".join(command), f"{seconds:.2f} s", str(service.calls.total())))
            aims.append(Aim(f"hands {command[0]}", seconds, AIM_SECONDS, "s"))
    return BenchmarkResult(
        [FigureTable("A thousand sessions", ("command", "whole process", "calls"), rows)],
        "what a person waits for an overview, with the start of Python in it",
        aims,
    )


def _timed(command: tuple[str, ...], environ: Mapping[str, str]) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "infra.cli", *command], cwd=ROOT, env=environ, capture_output=True)
    return time.monotonic() - began
