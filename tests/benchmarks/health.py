"""/healthz while webhooks storm in: does the server answer at once, whatever it drains?

The same probes run before the storm, with nothing else to do, so that the storm's own share can be seen. Every
webhook's signature is checked, and they keep a drain running all the time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from tests.benchmarks.cores import PARTS, CoreUsage, usage
from tests.benchmarks.load import Lane, LoadPlan
from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, milliseconds, percentile
from tests.benchmarks.stage import SETTING, delays, production_place, stage, wait_ready
from tests.support.serving import UVICORN, serving
from tests.support.world import ROOT

WEBHOOKS: Final = 500.0  # a second
PROBES: Final = 50.0
STORM_SECONDS: Final = 10.0
QUIET_SECONDS: Final = 5.0
AIM: Final = 0.05


def run() -> BenchmarkResult:
    with stage() as world:
        place = production_place(world)
        pids: list[int] = []
        with serving(place, UVICORN, pids=pids) as server:
            wait_ready(server)
            _drive(LoadPlan(server, webhooks=50.0, probes=PROBES, seconds=1.0))
            quiet = _drive(LoadPlan(server, webhooks=0.0, probes=PROBES, seconds=QUIET_SECONDS))
            world.claude_admin.delete("requests")
            with usage(world, pids[0]) as used:
                storm = _drive(LoadPlan(server, webhooks=WEBHOOKS, probes=PROBES, seconds=STORM_SECONDS))
            polls = sum(world.claude_admin.get("requests")["counts"].values())
        delays(world, on=False)
    return _result(quiet, storm, polls, used)


def _drive(plan: LoadPlan) -> Mapping[str, Lane]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.load"],
        cwd=ROOT,
        input=json.dumps(asdict(plan)).encode(),
        stdout=subprocess.PIPE,
        timeout=plan.seconds + 60,
        check=True,
    )
    return {name: Lane.of(raw) for name, raw in json.loads(done.stdout).items()}


def _result(quiet: Mapping[str, Lane], storm: Mapping[str, Lane], polls: int, used: CoreUsage) -> BenchmarkResult:
    webhooks, probes = storm["webhooks"], storm["probes"]
    p99 = percentile(probes.latencies, 99)
    rows = [
        _row("/healthz, nothing else", quiet["probes"]),
        _row("/healthz in the storm", probes),
        _row("webhooks of the storm", webhooks),
    ]
    head = ("", "asked", "answered/s", "p50 ms", "p99 ms", "worst ms", "client late p99 ms", "statuses")
    cpu = [(part, f"{used.parts[part]:.1f}") for part in PARTS if used.parts.get(part, 0.0) >= 0.05]
    return BenchmarkResult(
        tables=(
            FigureTable(
                f"{WEBHOOKS:g} signed webhooks and {PROBES:g} probes a second for {STORM_SECONDS:g} s; {SETTING}",
                head,
                rows,
            ),
            FigureTable(
                f"CPU seconds during the storm (the client is in the rest; {polls} API calls by the drains)",
                ("", "s"),
                cpu,
            ),
        ),
        meaning=(
            f"while {webhooks.rate:.0f} webhooks a second arrive, /healthz answers in "
            f"{milliseconds(percentile(probes.latencies, 50))} ms, p99 {milliseconds(p99)} ms (with nothing else: "
            f"{milliseconds(percentile(quiet['probes'].latencies, 99))} ms); {len(webhooks.latencies)} deliveries "
            f"led to {polls} API calls, since wake-ups are coalesced."
        ),
        aims=(
            Aim("/healthz p99 in the storm", p99 * 1000, AIM * 1000, "ms"),
            Aim("webhooks a second answered (500 sent)", webhooks.rate, None, "a second"),
        ),
    )


def _row(name: str, lane: Lane) -> tuple[str, ...]:
    return (
        name,
        str(sum(lane.statuses.values())),
        f"{lane.rate:.0f}",
        milliseconds(percentile(lane.latencies, 50)),
        milliseconds(percentile(lane.latencies, 99)),
        milliseconds(max(lane.latencies)),
        milliseconds(percentile(lane.late, 99)),
        " ".join(f"{count} x {status}" for status, count in sorted(lane.statuses.items())),
    )
