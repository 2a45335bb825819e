"""The first tool call of a session whose set-up is a large clone and a long install: without and with a prepared start.

The install is a script that sleeps; the repository comes from a web server on this machine, so its transfer takes
less than over a network. Both make the difference smaller than it is elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Final

from shared.claims.dispatcher import utc_now
from shared.prepared.preparation import Preparation, PreparationResult
from shared.service import Service
from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable
from tests.benchmarks.stage import SETTING, end_sandboxes, production_place, stage
from tests.support.waiting import until
from tests.support.web import git, web
from tests.support.world import Place

MEGABYTES: Final = 100
INSTALL: Final = float(os.environ.get("PREPARED_INSTALL", "60"))
RUNS: Final = 3
AIM: Final = 0.15


def run() -> BenchmarkResult:
    with tempfile.TemporaryDirectory() as folder, web(Path(folder)) as server, stage() as world:
        _repository(Path(folder))
        place = production_place(
            world, SETUP_REPOSITORY=server.repository("large"), SETUP_SCRIPT=f"sleep {INSTALL:g}; touch ../installed"
        )
        cold = [_first_call(place)]
        made = asyncio.run(_prepare(place))
        warm = [_first_call(place) for _ in range(RUNS)]
    best = sorted(warm)[len(warm) // 2]
    rows = [
        ("first tool call, cold", f"{cold[0]:.1f}"),
        ("first tool call, prepared (median)", f"{best:.1f}"),
        ("make prepare", f"{made.seconds:.1f}"),
    ]
    title = f"A clone of {MEGABYTES} MB and a script of {INSTALL:g} s; one run cold, {RUNS} prepared; {SETTING}"
    return BenchmarkResult(
        tables=(FigureTable(title, ("", "seconds"), rows),),
        meaning=f"from the session's creation to its first call's result: {cold[0]:.1f} s cold, {best:.1f} s prepared.",
        aims=(Aim("first tool call, prepared beside cold", best / cold[0], AIM),),
    )


def _repository(folder: Path) -> None:
    work = folder / "large-work"
    work.mkdir()
    for number in range(10):
        (work / f"part-{number}").write_bytes(os.urandom(MEGABYTES * 100_000))
    git("init", "--quiet", "--initial-branch=main", cwd=work)
    git("add", ".", cwd=work)
    git("commit", "--quiet", "--message=one", cwd=work)
    git("clone", "--quiet", "--bare", str(work), str(folder / "large.git"), cwd=folder)
    # A server that packs for a minute before its first byte is not what is measured.
    git("config", "pack.compression", "0", cwd=folder / "large.git")
    git("config", "core.bigFileThreshold", "1m", cwd=folder / "large.git")


async def _prepare(place: Place) -> PreparationResult:
    service = Service(place.settings)
    try:
        return await Preparation(place.settings, place.environment, service.host, utc_now).run()
    finally:
        await service.aclose()


def _first_call(place: Place) -> float:
    """Seconds. The session's sandbox is ended afterwards, the prepared one is not."""

    async def serve() -> None:
        service = Service(place.settings)
        try:
            await service.preload()
            began.append(time.monotonic())
            sessions.append(place.session("$ ls ../workspace/installed ../workspace/large"))
            await service.drain()
        finally:
            await service.aclose()

    began: list[float] = []
    sessions: list[str] = []
    asyncio.run(serve())
    until(lambda: place.done(sessions[0]), "the session did not finish its turn", 300.0)
    seconds = time.monotonic() - began[0]
    answer = place.answers(sessions[0])[0]
    if "installed" not in answer or "part-9" not in answer:
        raise AssertionError(answer)
    end_sandboxes(place, but="-p")
    return seconds
