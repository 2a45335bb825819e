"""How many API calls a session costs the dispatcher, when it is new, running and suspended; alone and in a crowd.

Counted by the services themselves, while one drain with clients of its own serves one session. What the worker calls
is listed apart: it does not depend on the dispatcher.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shared.reports import DrainReport, ItemEnd
from shared.service import Service
from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, median
from tests.benchmarks.stage import PROMPT, SETTING, crowd, delays, end_sandboxes, production_place, stage
from tests.support.waiting import until
from tests.support.world import Place

OTHERS: Final = (1, 1000)
RUNS: Final = 3
STATES: Final = ("new", "running", "suspended")
AIMS: Final = {False: {"new": 6, "running": 7, "suspended": 8}, True: {"new": 6, "running": 5, "suspended": 7}}
"""By whether the process has served the session before."""

_DISPATCHERS: Final = ("/work/poll", "/ack", "/stop")


@dataclass(frozen=True, slots=True)
class CountedCalls:
    """Route -> calls during one drain."""

    dispatcher: Mapping[str, int]
    worker: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.dispatcher.values())


def run() -> BenchmarkResult:
    found: dict[tuple[str, int], list[CountedCalls]] = {(state, others): [] for others in OTHERS for state in STATES}
    knowing: dict[str, list[CountedCalls]] = {state: [] for state in STATES}
    with stage() as world:
        place = production_place(world)
        present = 0
        for others in OTHERS:
            crowd(place, others - present)
            present = others
            for _ in range(RUNS):
                for state, calls in _session(place, lambda: asyncio.run(_drained(place))).items():
                    found[state, others].append(calls)
        with asyncio.Runner() as loop:
            service = Service(place.settings)
            for _ in range(RUNS):
                for state, calls in _session(place, lambda: loop.run(_drained_by(service))).items():
                    knowing[state].append(calls)
            loop.run(service.aclose())
        delays(world, on=False)
    return _result(found, knowing)


def _session(place: Place, drain: Callable[[], DrainReport]) -> Mapping[str, CountedCalls]:
    """One session through its three states; a turn each."""
    found = {}
    session = place.session(PROMPT)
    for turn, state in enumerate(STATES, 1):
        if turn > 1:
            # The last worker must be gone, or it would take the message without any dispatcher.
            until(lambda: place.item(session)["state"] == "stopped", "the worker did not end")
            if state == "suspended":
                place.world.tensorlake_admin.post(f"sandboxes/{place.sandbox(session)}/suspend")
            place.say(session, PROMPT)
            until(_queued(place, session, turn), "the message queued no item")
        found[state] = _drain(place, drain)
        place.wait_done(session, turn)
    until(lambda: place.item(session)["state"] == "stopped", "the worker did not end")
    end_sandboxes(place)
    return found


def _queued(place: Place, session: str, turn: int) -> Callable[[], bool]:
    """A turn brings a work item of its own."""
    return lambda: len(place.items(session)) == turn


def _drain(place: Place, drain: Callable[[], DrainReport]) -> CountedCalls:
    world = place.world
    world.claude_admin.delete("requests")
    world.tensorlake_admin.delete("counts")
    report = drain()
    assert [item.end for item in report.items] == [ItemEnd.HANDED_OVER], report
    claude: Mapping[str, int] = world.claude_admin.get("requests")["counts"]
    tensorlake: Mapping[str, int] = world.tensorlake_admin.get("counts")["routes"]
    ours = {route: count for route, count in claude.items() if route.endswith(_DISPATCHERS)}
    theirs = {route: count for route, count in claude.items() if route not in ours}
    return CountedCalls({**ours, **tensorlake}, theirs)


async def _drained(place: Place) -> DrainReport:
    async with place.dispatcher() as dispatcher:
        return await dispatcher.drain()


async def _drained_by(service: Service) -> DrainReport:
    (report,) = await service.drain()
    return report


def _result(
    found: Mapping[tuple[str, int], Sequence[CountedCalls]], knowing: Mapping[str, Sequence[CountedCalls]]
) -> BenchmarkResult:
    totals = {key: median([calls.total for calls in runs]) for key, runs in found.items()}
    few, many = OTHERS
    rows = [
        (
            f"{state} session",
            *(f"{totals[state, others]:g}" for others in OTHERS),
            *(_spread([calls.total for calls in found[state, others]]) for others in OTHERS),
            _spread([calls.total for calls in knowing[state]]),
        )
        for state in STATES
    ]
    head = ("", *(f"among {others}" for others in OTHERS), *(f"runs, {others}" for others in OTHERS), "by who knows it")
    listed = []
    for state in STATES:
        typical = min(found[state, many], key=lambda calls: abs(calls.total - totals[state, many]))
        listed += [(f"{state}: {route}", str(count)) for route, count in _ordered(typical.dispatcher)]
    worker = Counter[str]()
    for calls in found["new", many]:
        worker.update(calls.worker)
    new = max(totals["new", others] for others in OTHERS)
    growth = max(totals[state, many] - totals[state, few] for state in STATES)
    return BenchmarkResult(
        tables=(
            FigureTable(f"The dispatcher's API calls for one session, median of {RUNS}; {SETTING}", head, rows),
            FigureTable(f"The calls (a typical run among {many})", ("", "calls"), listed),
            FigureTable(
                f"The worker's own calls until the drain of a new session ends ({RUNS} runs)",
                ("", "calls"),
                [(route, str(count)) for route, count in _ordered(worker)],
            ),
        ),
        meaning=(
            f"a new session costs {new:g} calls, a running one {totals['running', many]:g}, a suspended one "
            f"{totals['suspended', many]:g}, the poll that finds the queue empty included; among {many} sandboxes it "
            f"is {growth:+g} calls at most, since names are never looked up in a list. How often the output is "
            "looked at depends on how fast the worker boots."
        ),
        aims=(
            *(
                Aim(f"calls of a {state} session, {who}", figure, AIMS[knows][state], "calls")
                for state in STATES
                for knows, who, figure in (
                    (False, "never seen before", max(totals[state, others] for others in OTHERS)),
                    (True, "known", median([calls.total for calls in knowing[state]])),
                )
            ),
            Aim(f"more calls among {many} sandboxes than among {few}", growth, 0, "calls"),
        ),
    )


def _spread(totals: Sequence[int]) -> str:
    return " ".join(map(str, sorted(totals)))


def _ordered(counts: Mapping[str, int]) -> Sequence[tuple[str, int]]:
    return sorted(counts.items())
