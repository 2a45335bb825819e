"""Whole races: how soon one returns when it is decided, what 64 branches of a 100 MB workspace take, and what it takes
to bring a winner's changes home.

The time to return is from the end of the judge of the first acceptable branch to the report. A race is set beside the
slowest branch that it had to wait for, and its checkpoint.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.ports import CommandOutput, SandboxSpec
from shared.races.race import run_race
from shared.races.report import RaceReport, RaceSpan
from shared.races.request import RaceRequest
from shared.service import Service
from tests.benchmarks.alone import expect, running
from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, median, milliseconds, percentile
from tests.benchmarks.stage import SETTING, delays, production_place, stage
from tests.support.world import Place

RETURN_SECONDS: Final = 0.3
ROUNDS: Final = 5
MEGABYTES: Final = 100
BOOT_SECONDS: Final = 1.6  # half of what the median of 64 had been
SESSION: Final = "sesn_races"
SLEEPS: Final = (0.5, 1.0, 1.5, 2.0, 4.0, 6.0, 8.0, 10.0)
ACCEPTED: Final = 2  # the index of the first acceptable branch
HOMECOMINGS: Final[Mapping[str, str]] = {
    "1 file of 1 kB": "head -c 1000 /dev/urandom > one",
    "200 files of 1 kB": "mkdir many; for i in $(seq 200); do head -c 1000 /dev/urandom > many/$i; done",
    "1 file of 20 MB": "head -c 20M /dev/urandom > large",
}


@dataclass(frozen=True, slots=True)
class Decided:
    """Seconds."""

    returned: float  # from the decision to the report
    race: float
    needed: float  # checkpoint, boot, run and judge of the branch that decided


def run() -> BenchmarkResult:
    with stage() as world:
        place = production_place(world, RACE_MAX_PARALLEL="64")
        level = world.tensorlake_admin.get("isolation")["level"]
        distant = asyncio.run(_measure(place))
        delays(world, on=False)
        near = asyncio.run(_measure(place))
    return _result(level, {"no delays": near, SETTING: distant})


@dataclass(frozen=True, slots=True)
class Measured:
    decided: Sequence[Decided]
    wide: RaceReport
    home: Mapping[str, tuple[float, int]]


async def _measure(place: Place) -> Measured:
    service = Service(place.settings)
    host = service.host
    spec = SandboxSpec(name=place.sandbox(SESSION), image=place.environment.image)
    source = running(await host.create(spec))

    async def race(**fields: Any) -> RaceReport:
        request = RaceRequest.model_validate_json(json.dumps({"source": {"session_id": SESSION}, **fields}))
        return await run_race(request, host=host, settings=place.settings, environment=place.environment)

    async def shell(script: str) -> None:
        outcome = await host.run(
            source.id, "sh", ["-ec", script], env={}, user=None, working_dir="/workspace", timeout=60.0
        )
        assert expect(CommandOutput, outcome).exit_code == 0

    try:
        decided = [_decided(await race(**_early_stop())) for _ in range(ROUNDS)]
        home = {}
        for what, script in HOMECOMINGS.items():
            report = await race(branches=[{"name": "a", "script": script}], promote="workspace")
            assert report.promotion is not None and report.promotion.done, report.promotion
            (span,) = _spans(report, "promote")
            home[what] = (span.end - span.start, report.promotion.added)
            await shell("rm -rf /workspace/*")
        await shell(f"mkdir data; cd data; head -c {MEGABYTES}M /dev/urandom | split -b 1M -a 3")
        wide = await race(n=64, script="test $(du -sm --apparent-size data | cut -f1) -ge 100", branch_timeout=120)
        assert all(branch.status == "ok" for branch in wide.branches), wide
        assert not wide.leftovers
    finally:
        await host.terminate(source.id)
        await service.aclose()
    return Measured(decided, wide, home)


def _early_stop() -> dict[str, Any]:
    branches = [
        {"name": f"b{index}", "script": f"sleep {seconds}; echo {1 if index >= ACCEPTED else 0}"}
        for index, seconds in enumerate(SLEEPS)
    ]
    return {"branches": branches, "judge": {"type": "regex", "pattern": "([01])"}, "accept": 1}


def _decided(report: RaceReport) -> Decided:
    assert report.winner == f"b{ACCEPTED}", report
    decision = max(span.end for span in _spans(report, "judge") if span.branch == report.winner)
    mine = [span for span in report.timeline if span.branch in (None, report.winner) and span.phase != "reap"]
    needed = sum(span.end - span.start for span in mine)
    return Decided(report.seconds - decision, report.seconds, needed)


def _spans(report: RaceReport, phase: str) -> Sequence[RaceSpan]:
    return [span for span in report.timeline if span.phase == phase]


def _result(level: str, measured: Mapping[str, Measured]) -> BenchmarkResult:
    near = measured["no delays"]
    returned = median([each.returned for each in near.decided])
    return BenchmarkResult(
        tables=(
            FigureTable(
                f"{len(SLEEPS)} branches of {SLEEPS[0]:g} to {SLEEPS[-1]:g} s; medians of {ROUNDS}",
                ("", "to return ms", "most ms", "race ms", "needed ms", "ratio"),
                [_decided_row(name, each.decided) for name, each in measured.items()],
            ),
            FigureTable(
                f"64 branches of a {MEGABYTES} MB workspace, isolation {level}",
                ("", "checkpoint ms", "boot ms (median)", "boot ms (p95)", "race s"),
                [_wide_row(name, each.wide) for name, each in measured.items()],
            ),
            FigureTable(
                "A winner's changes brought into its source",
                ("", *(f"{what}, ms" for what in HOMECOMINGS)),
                [
                    (name, *(milliseconds(each.home[what][0]) for what in HOMECOMINGS))
                    for name, each in measured.items()
                ],
            ),
        ),
        meaning=(
            f"A race of 8 returns {milliseconds(returned)} ms after the first acceptable result, with every other "
            f"branch ended; 64 branches of a {MEGABYTES} MB workspace take {near.wide.seconds:.1f} s."
        ),
        aims=(
            Aim("from the first acceptable result to the report", returned, RETURN_SECONDS, "s"),
            Aim("an early-stopped race beside what it needed", median([e.race / e.needed for e in near.decided]), None),
            *(
                Aim(f"64 branches, median boot, {name}", median(_boots(each.wide)), BOOT_SECONDS, "s")
                for name, each in measured.items()
            ),
        ),
    )


def _decided_row(name: str, decided: Sequence[Decided]) -> tuple[str, ...]:
    returned = [each.returned for each in decided]
    parts = (median(returned), max(returned), median([e.race for e in decided]), median([e.needed for e in decided]))
    return (name, *map(milliseconds, parts), f"{median([e.race / e.needed for e in decided]):.2f}")


def _boots(report: RaceReport) -> Sequence[float]:
    return [branch.boot_seconds for branch in report.branches if branch.boot_seconds is not None]


def _wide_row(name: str, report: RaceReport) -> tuple[str, ...]:
    checkpoint = sum(span.end - span.start for span in _spans(report, "checkpoint"))
    boots = _boots(report)
    parts = (checkpoint, median(boots), percentile(boots, 95))
    return (name, *map(milliseconds, parts), f"{report.seconds:.1f}")
