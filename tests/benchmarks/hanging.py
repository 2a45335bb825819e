"""How soon a session is claimed while another one's sandbox hangs, beside how soon it is claimed undisturbed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, median, milliseconds, percentile
from tests.benchmarks.stage import PROMPT, SETTING, delays, end_sandboxes, production_place, stage, wait_ready
from tests.benchmarks.timeline import Way, served_way
from tests.support.serving import UVICORN, serving, webhooks_to
from tests.support.waiting import until
from tests.support.world import OfflineWorld, Place

RUNS: Final = 6
AIM: Final = 1.2
_LONG: Final = {
    **{"BIND_SECONDS": "150", "RECLAIM_SECONDS": "200", "STRANDED_SECONDS": "300"},
    "DRAIN_DEADLINE_SECONDS": "200",
}
"""It hangs until all have been measured, on a busy machine as well."""


def run() -> BenchmarkResult:
    with stage() as world:
        place = production_place(world, **_LONG)
        with serving(place, UVICORN) as server, webhooks_to(place, server):
            wait_ready(server)
            served_way(place)
            undisturbed = [served_way(place) for _ in range(RUNS)]
            stuck = _stuck(world, place)
            beside = [served_way(place) for _ in range(RUNS)]
            begun = sum(note["what"] == "handed out" for note in place.item(stuck)["history"])
            assert begun == 1 and place.item(stuck)["state"] == "queued", "the sandbox did not hang for long enough"
            end_sandboxes(place)
        delays(world, on=False)
    return _result(undisturbed, beside)


def _stuck(world: OfflineWorld, place: Place) -> str:
    """A session that was claimed, and whose sandbox stays pending."""
    world.tensorlake_admin.patch("settings", {"start_faults": [{"outcome": "stuck_pending", "times": 1}]})
    session = place.session(PROMPT)
    name = place.sandbox(session)
    until(lambda: any(box["name"] == name for box in place.sandboxes()), "no sandbox was asked for")
    return session


def _claimed(ways: Sequence[Way]) -> Sequence[float]:
    return [each.poll.end - each.webhook.start for each in ways]


def _result(undisturbed: Sequence[Way], beside: Sequence[Way]) -> BenchmarkResult:
    ratio = median(_claimed(beside)) / median(_claimed(undisturbed))
    rows = [
        (name, milliseconds(median(figures)), milliseconds(percentile(figures, 95)))
        for name, figures in (
            ("webhook to claim, undisturbed", _claimed(undisturbed)),
            ("webhook to claim, beside one whose sandbox stays pending", _claimed(beside)),
            ("webhook to first heartbeat, undisturbed", [each.seconds for each in undisturbed]),
            ("webhook to first heartbeat, beside it", [each.seconds for each in beside]),
        )
    ]
    return BenchmarkResult(
        tables=(FigureTable(f"{RUNS} runs each; {SETTING}", ("", "p50 ms", "p95 ms"), rows),),
        meaning=f"a session is claimed {ratio:.2f} times as late beside one whose sandbox does not come up.",
        aims=(Aim("a session claimed while another one's sandbox hangs", ratio, AIM),),
    )
