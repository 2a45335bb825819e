"""Eight children of a 100 MB workspace, beside one copy of it.

What is timed is what a race does before its branches run: a checkpoint of the source and eight sandboxes from it at
once, through the host's port. The copy is `cp -a` of the same workspace, inside the same sandbox.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shared.ports import CommandOutput, SandboxHost, SandboxRecord, SandboxSpec, Snapshot
from shared.service import Service
from tests.benchmarks.alone import expect, running
from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, median, milliseconds
from tests.benchmarks.stage import SETTING, delays, end_sandboxes, production_place, stage
from tests.support.world import Place

FILES: Final = 100
MEGABYTES: Final = 100
CHILDREN: Final = 8
ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Fork:
    """Seconds."""

    checkpoint: float
    children: float

    @property
    def seconds(self) -> float:
        return self.checkpoint + self.children


def run() -> BenchmarkResult:
    with stage() as world:
        place = production_place(world)
        level = world.tensorlake_admin.get("isolation")["level"]
        distant = asyncio.run(_forks(place, 2))
        delays(world, on=False)
        near = asyncio.run(_forks(place, ROUNDS))
        end_sandboxes(place)
    return _result(level, near, distant)


async def _forks(place: Place, rounds: int) -> tuple[Sequence[Fork], Sequence[float]]:
    """Forks and copies in turns."""
    service = Service(place.settings)
    host = service.host
    spec = SandboxSpec(name=place.sandbox(f"sesn_fork{rounds}"), image=place.environment.image)
    try:
        source = running(await host.create(spec))
        await _shell(
            host,
            source,
            "mkdir -p /workspace/data && cd /workspace/data && "
            f"head -c {MEGABYTES}M /dev/urandom | split -b {MEGABYTES // FILES}M -a 3",
        )
        forks, copies = [], []
        for number in range(rounds):
            forks.append(await _fork(host, source, f"{spec.name[:40]}-r{number}"))
            copies.append(await _copy(host, source))
        await host.terminate(source.id)
    finally:
        await service.aclose()
    return forks, copies


async def _fork(host: SandboxHost, source: SandboxRecord, name: str) -> Fork:
    began = time.perf_counter()
    snapshot = expect(Snapshot, await host.snapshot(source.id))
    checkpointed = time.perf_counter()
    specs = [SandboxSpec(name=f"{name}-c{number}", snapshot_id=snapshot.id) for number in range(CHILDREN)]
    children = [running(outcome) for outcome in await asyncio.gather(*map(host.create, specs))]
    done = time.perf_counter()
    seen = await _shell(host, children[-1], "du -sm --apparent-size /workspace/data | cut -f1")
    assert int(seen) >= MEGABYTES, f"the child has {seen} MB"
    await asyncio.gather(*(host.terminate(child.id) for child in children))
    assert await host.delete_snapshot(snapshot.id) is None
    return Fork(checkpointed - began, done - checkpointed)


async def _copy(host: SandboxHost, source: SandboxRecord) -> float:
    """Timed inside, so that no call is counted to it."""
    said = await _shell(
        host,
        source,
        "began=$(date +%s%N); cp -a /workspace/data /workspace/copy; echo $(( $(date +%s%N) - began )); "
        "rm -rf /workspace/copy",
    )
    return int(said) / 1e9


async def _shell(host: SandboxHost, sandbox: SandboxRecord, command: str) -> str:
    outcome = await host.run(
        sandbox.id, "/bin/bash", ["-ec", command], env={}, user=None, working_dir="/", timeout=60.0
    )
    output = expect(CommandOutput, outcome)
    assert output.exit_code == 0, output.stderr
    return output.stdout.strip()


def _result(
    level: str, near: tuple[Sequence[Fork], Sequence[float]], distant: tuple[Sequence[Fork], Sequence[float]]
) -> BenchmarkResult:
    forks, copies = near
    whole, copy = median([fork.seconds for fork in forks]), median(copies)
    rows = [
        _row("no delays", forks, copies),
        _row(SETTING, *distant),
    ]
    head = ("", "checkpoint ms", f"{CHILDREN} children ms", "fork ms", "one copy ms", "ratio")
    return BenchmarkResult(
        tables=(
            FigureTable(
                f"{MEGABYTES} MB in {FILES} files, N = {CHILDREN}, isolation {level}; medians of {len(forks)}",
                head,
                rows,
            ),
        ),
        meaning=(
            f"{CHILDREN} running children of a {MEGABYTES} MB workspace take {milliseconds(whole)} ms, "
            f"{whole / copy:.1f} times one copy of it, {whole / CHILDREN / copy:.2f} of a copy for each child."
        ),
        aims=(Aim(f"fork with N = {CHILDREN} beside one copy", whole / copy, None),),
    )


def _row(name: str, forks: Sequence[Fork], copies: Sequence[float]) -> tuple[str, ...]:
    whole, copy = median([fork.seconds for fork in forks]), median(copies)
    parts = (median([fork.checkpoint for fork in forks]), median([fork.children for fork in forks]), whole, copy)
    return (name, *map(milliseconds, parts), f"{whole / copy:.2f}")
