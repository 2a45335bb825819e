"""Webhook to first heartbeat of one session, beside the sum of the calls on that path.

Runs on the path and runs of the calls alone take turns, so that both meet the same machine. The server is warm: it
has served a session before, and polls for nothing when the next one begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from tests.benchmarks import alone
from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, median, milliseconds, percentile
from tests.benchmarks.stage import SETTING, delays, end_sandboxes, production_place, stage, wait_ready
from tests.benchmarks.timeline import Way, served_way
from tests.support.serving import UVICORN, serving, webhooks_to
from tests.support.world import Place

RUNS: Final = 12
AIM: Final = 0.95
AIM_P95: Final = 1.1

STAGES: Final[Mapping[str, Callable[[Way], float]]] = {
    "webhook POST sent -> poll arrives": lambda w: w.poll.start - w.webhook.start,
    "poll": lambda w: w.poll.seconds,
    "poll answered -> worker's process exists (create, start)": lambda w: w.boot.start - w.poll.end,
    "worker boot to ready": lambda w: w.boot.seconds,
    "ready -> ack arrives (rest of start, output looks)": lambda w: w.ack.start - w.boot.end,
    "ack": lambda w: w.ack.seconds,
    "ack answered -> first heartbeat answered": lambda w: w.beat.end - w.ack.end,
}


def run() -> BenchmarkResult:
    with stage() as world:
        served, other = production_place(world), production_place(world)
        with serving(served, UVICORN) as server, webhooks_to(served, server):
            wait_ready(server)
            session_way(served)
            ways, sums = [], []
            for _ in range(RUNS):
                ways.append(session_way(served))
                sums.append(alone.calls_alone(other, server))
        delays(world, on=False)
    return _result(ways, sums)


def session_way(place: Place) -> Way:
    """As `served_way`; its sandbox is ended."""
    found = served_way(place)
    end_sandboxes(place)
    return found


def _result(ways: Sequence[Way], sums: Sequence[Mapping[str, float]]) -> BenchmarkResult:
    whole = [each.seconds for each in ways]
    totals = [sum(each.values()) for each in sums]
    stages = [(name, [measure(each) for each in ways]) for name, measure in STAGES.items()]
    steps = [(name, [each[name] for each in sums]) for name in alone.STEPS]
    head = ("", "p50 ms", "p95 ms")
    ratio = median(whole) / median(totals)
    return BenchmarkResult(
        tables=(
            FigureTable(
                f"One session on its way, {len(ways)} runs; {SETTING}",
                head,
                [*map(_row, stages), _row(("webhook to first heartbeat", whole))],
            ),
            FigureTable(
                "The calls on that path, each alone, in the same minutes",
                head,
                [*map(_row, steps), _row(("sum", totals))],
            ),
        ),
        meaning=(
            f"a session's worker has its lease {milliseconds(median(whole))} ms after the webhook (p95 "
            f"{milliseconds(percentile(whole, 95))}), {ratio:.2f} times the sum of its calls. Waiting between calls "
            f"makes it longer, what overlaps makes it shorter: the start's answer travels while the worker boots, and "
            f"{median([each.early_beats for each in ways]):g} heartbeats came before the ack."
        ),
        aims=(
            Aim("one session, p50, beside the sum of its calls", ratio, AIM),
            Aim("one session, p95, beside the sum of its calls", percentile(whole, 95) / median(totals), AIM_P95),
        ),
    )


def _row(named: tuple[str, Sequence[float]]) -> Sequence[str]:
    name, values = named
    return (name, milliseconds(median(values)), milliseconds(percentile(values, 95)))
