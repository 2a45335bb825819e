"""`ps`, `top`, `cost`, `show` and `alarms` with a thousand sessions and sandboxes, at 50 ms a round trip: a whole
process each. And the page of `hands ui`, from a server that runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Final

import httpx2

from infra.cli.fleet.pace import pause_after
from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, median
from tests.support.many_sessions import BUSY, CrowdedService, many_sessions, variables
from tests.support.world import ROOT

RUNS: Final = 5
ROUND_TRIP: Final = 0.05
AIM_SECONDS: Final = 2.0
COMMANDS: Final = (("ps",), ("top", "--once"), ("cost",), ("show", f"sesn_{BUSY:024d}"), ("alarms",))


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
        seconds, calls = _page(environ, service)
        rows.append(("ui, its page", f"{seconds:.2f} s", str(calls)))
        aims.append(Aim("page of hands ui", seconds, AIM_SECONDS, "s"))
    return BenchmarkResult(
        [FigureTable("A thousand sessions", ("command", "whole process", "calls"), rows)],
        "what a person waits for an overview, with the start of Python in it",
        aims,
    )


def _page(environ: Mapping[str, str], service: CrowdedService) -> tuple[float, int]:
    """Seconds and calls of a page that nobody looked at for a while."""
    command = [sys.executable, "-m", "infra.cli", "ui", "--ui-port", "0"]
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        times = []
        with httpx2.Client(follow_redirects=True, timeout=60) as client:
            for _ in range(RUNS):
                service.calls.clear()
                began = time.monotonic()
                assert client.get(address).status_code == 200
                times.append(time.monotonic() - began)
                time.sleep(pause_after(service.calls.total()) + 0.5)
        process.terminate()
    return median(times), service.calls.total()


def _timed(command: tuple[str, ...], environ: Mapping[str, str]) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "infra.cli", *command], cwd=ROOT, env=environ, capture_output=True)
    return time.monotonic() - began
