"""Fifty sessions at once until every worker has beaten, beside one session alone and the workers' boots.

On one machine the sandboxes share a few cores that they would not share in the cloud. So the same fifty boots are
run with nothing else to do, and the burst is compared with one session plus that time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.boots import Boots, boot_cpu, boots, sessions
from tests.benchmarks.cores import PARTS, WORKERS, CoreUsage, usage
from tests.benchmarks.one_session import session_way
from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, median, milliseconds
from tests.benchmarks.stage import SETTING, delays, end_sandboxes, production_place, stage, wait_ready
from tests.benchmarks.timeline import first_beats, moment, wait_beats
from tests.support.serving import UVICORN, serving, webhooks_to
from tests.support.world import Place

SESSIONS: Final = 50
ROUNDS: Final = 2
SINGLE_RUNS: Final = 5
CPU_RUNS: Final = 5
LIMIT: Final = 120.0
AIM: Final = 1.25


@dataclass(frozen=True, slots=True)
class Burst:
    """Seconds from the first webhook until the last item was claimed, and until half of the workers and all of them
    had beaten."""

    claimed: float
    half: float
    every: float
    used: CoreUsage


def run() -> BenchmarkResult:
    with stage() as world:
        served, other = production_place(world), production_place(world)
        pids: list[int] = []
        with serving(served, UVICORN, pids=pids) as server:
            wait_ready(server)
            with webhooks_to(served, server):
                session_way(served)
                singles = [session_way(served).seconds for _ in range(SINGLE_RUNS)]
            bursts, controls = [], []
            for _ in range(ROUNDS):
                with webhooks_to(served, server):
                    bursts.append(_burst(served, pids[0]))
                delays(world, on=False)
                controls.append(boots(other, SESSIONS, LIMIT))
                delays(world, on=True)
            delays(world, on=False)
            cpu = boot_cpu(other, CPU_RUNS)
    return _result(singles, bursts, controls, cpu)


def _burst(place: Place, server: int) -> Burst:
    admin = place.world.claude_admin
    admin.delete("requests")
    with usage(place.world, server) as used:
        names = set(sessions(place, SESSIONS))
        time.sleep(2.0)
        items = [item for item in admin.get("state")["items"] if item["data"]["id"] in names]
        assert len(items) == SESSIONS, f"{len(items)} items of {SESSIONS} sessions"
        ids = [item["id"] for item in items]
        wait_beats(place, ids, LIMIT)
    state = admin.get("state")
    claims = [
        moment(note["at"])
        for item in state["items"]
        for note in item["history"]
        if item["data"]["id"] in names and note["what"] == "handed out"
    ]
    beats = sorted(first_beats(place, ids).values())
    began = min(
        moment(delivery["attempts"][0]["at"])
        for delivery in state["deliveries"]
        if delivery["session_id"] in names and delivery["attempts"]
    )
    delays(place.world, on=False)
    end_sandboxes(place)
    delays(place.world, on=True)
    return Burst(max(claims) - began, beats[len(beats) // 2] - began, beats[-1] - began, used)


def _result(
    singles: Sequence[float], bursts: Sequence[Burst], controls: Sequence[Boots], cpu: Sequence[float]
) -> BenchmarkResult:
    one = median(singles)
    every = median([burst.every for burst in bursts])
    workers = median([control.workers for control in controls])
    sandboxes = median([control.sandboxes for control in controls])
    cores = os.cpu_count() or 1
    least = SESSIONS * median(cpu) / cores
    ratio = every / (one + workers)
    rounds = [
        (
            f"round {number}",
            f"{burst.claimed:.1f}",
            f"{burst.half:.1f}",
            f"{burst.every:.1f}",
            f"{control.workers:.1f}",
            f"{control.sandboxes:.1f}",
            "?" if burst.used.busy is None else f"{burst.used.busy:.0%}",
            f"{burst.every / (one + control.workers):.2f}",
        )
        for number, (burst, control) in enumerate(zip(bursts, controls, strict=True), 1)
    ]
    head = (
        "",
        "all claimed s",
        "half beaten s",
        "all beaten s",
        "boots alone s",
        "sandboxes alone s",
        "cores busy",
        "ratio",
    )
    parts = [
        ("one session alone, median", f"{one:.2f}"),
        (f"{SESSIONS} worker boots alone, median (cores, no delays)", f"{workers:.2f}"),
        (f"  of that at least, by CPU: {SESSIONS} x {milliseconds(median(cpu))} ms / {cores} cores", f"{least:.2f}"),
        (f"{SESSIONS} sandbox starts alone, median (this machine's, too)", f"{sandboxes:.2f}"),
        (f"burst of {SESSIONS}, median", f"{every:.2f}"),
    ]
    return BenchmarkResult(
        tables=(
            FigureTable(f"{SESSIONS} sessions at once; {SETTING}", head, rounds),
            FigureTable("Its parts", ("", "seconds"), parts),
            FigureTable(
                "Whose CPU time it was, of all rounds",
                ("", "CPU s", "share"),
                _shares([burst.used for burst in bursts], SESSIONS * median(cpu)),
            ),
        ),
        meaning=(
            f"{SESSIONS} sessions have their workers {every:.1f} s after the first webhook, {every / one:.1f} times "
            f"one session alone; the workers' boots on {cores} cores are {workers / every:.0%} of that time, and the "
            f"burst takes {ratio:.2f} times one session plus those boots. Sandboxes in a cloud do not share cores."
        ),
        aims=(
            Aim("burst beside one session plus the boots", ratio, AIM),
            Aim(
                "  the same with the sandboxes' starts counted as this machine's",
                every / (one + workers + sandboxes),
                None,
            ),
        ),
    )


def _shares(used: Sequence[CoreUsage], boots: float) -> Sequence[Sequence[str]]:
    """`boots`: CPU seconds of one round's boots; what workers used beyond them is their SDK's."""
    sums = {part: sum(each.parts.get(part, 0.0) for each in used) for part in PARTS}
    whole = sum(sums.values())
    if not whole:
        return []
    workers = sums.pop(WORKERS)
    booting = min(workers, boots * len(used))
    split: Mapping[str, float] = {
        "workers until their lease": booting,
        "workers that have it, loading the SDK": workers - booting,
        **sums,
    }
    return [(part, f"{seconds:.1f}", f"{seconds / whole:.0%}") for part, seconds in split.items()]
