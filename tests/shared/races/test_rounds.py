"""Races of several rounds: the next one starts from the winners of the one before."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import pytest
from pydantic import ValidationError

from infra.cli.fork import page
from shared.ports import CommandOutput
from shared.races.errors import BadRace
from shared.races.report import RaceReport
from shared.races.request import RaceRequest
from shared.service import Service
from shared.settings import Settings
from tests.shared.races.helpers import ENVIRON, SOURCE, asked, run
from tests.support.fake_host import FakeCall, FakeFault, FakeHost, Method
from tests.support.world import IMAGE, Place

TRAIL: Final = "/workspace/trail"
BRANCHES: Final = [
    {"name": "slow", "command": ["1"]},
    {"name": "quick", "command": ["3"]},
    {"name": "none", "command": ["0"]},
]
SCORED: Final = {"type": "command", "command": ["score"], "in": "branch"}


class Adding(FakeHost):
    """Each branch adds its number to what it finds; the sum is its score, and 0 fails."""

    def __init__(self, **more: Any) -> None:
        super().__init__(program=self.add_up, latency=0.01, **more)
        self.add(SOURCE)

    async def add_up(self, call: FakeCall) -> CommandOutput:
        (box,) = [each for each in self.boxes.values() if each.record.name == call.sandbox]
        found = int(box.files.get(TRAIL, b"0"))
        if call.argv == ("score",):
            return CommandOutput(0, f"score={found}", "", timed_out=False)
        box.files[TRAIL] = str(found + int(call.argv[0])).encode()
        return CommandOutput(0 if call.argv != ("0",) else 1, "", "", timed_out=False)


def rounds_of(report: RaceReport) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(each.branches, each.top) for each in report.rounds]


def test_each_round_starts_from_the_best_of_the_one_before_and_nothing_is_left() -> None:
    host = Adding()
    report = run(host, asked(branches=BRANCHES, judge=SCORED, rounds=3, top=2))
    assert rounds_of(report)[0] == (("slow", "quick", "none"), ("quick", "slow"))
    assert rounds_of(report)[1] == (
        ("r2.1-slow", "r2.1-quick", "r2.1-none", "r2.2-slow", "r2.2-quick", "r2.2-none"),
        ("r2.1-quick", "r2.1-slow"),
    )
    assert len(report.rounds) == 3 and report.rounds[2].top == ()
    assert len(report.branches) == 3 + 6 + 6
    assert report.winner == "r3.1-quick"
    (won,) = [branch for branch in report.branches if branch.name == report.winner]
    assert (won.score, won.round, won.parent) == (9.0, 3, "r2.1-quick")
    assert host.alive() == [SOURCE] and not host.snapshots and report.leftovers == ()


def test_the_best_of_all_rounds_wins_and_is_promoted() -> None:
    host = Adding()
    lower = asked(branches=BRANCHES, judge=SCORED, rounds=2, higher_is_better=False, promote="snapshot")
    report = run(host, lower)
    assert report.winner == "slow", "the later round only made it larger"
    assert report.promotion is not None and report.promotion.done
    assert list(host.snapshots) == [report.promotion.snapshot_id]


def test_an_accepted_branch_ends_all_rounds() -> None:
    report = run(Adding(), asked(branches=BRANCHES, judge=SCORED, rounds=3, accept=3.0))
    assert report.winner == "quick" and len(report.rounds) == 1


def test_a_round_without_a_winner_is_the_last_one() -> None:
    report = run(Adding(), asked(branches=[BRANCHES[2]], judge=SCORED, rounds=3))
    assert report.winner is None and [each.branches for each in report.rounds] == [("none",)]


def test_a_winner_that_cannot_be_checkpointed_costs_its_own_place_alone() -> None:
    def meet(method: Method, what: str) -> FakeFault | None:
        return FakeFault.REFUSED if method == "snapshot" and what != "id1" else None  # id1 is the source

    host = Adding(meet=meet)
    report = run(host, asked(branches=BRANCHES, judge=SCORED, rounds=2))
    assert report.winner == "quick" and len(report.rounds) == 1
    assert any("no round starts from it" in (branch.reason or "") for branch in report.branches)
    assert host.alive() == [SOURCE]


def test_the_deadline_counts_over_all_rounds() -> None:
    class Slow(Adding):
        async def add_up(self, call: FakeCall) -> CommandOutput:
            await asyncio.sleep(500 if call.env.get("BRANCH_ROUND") == "2" else 0)
            return await super().add_up(call)

    report = run(Slow(), asked(branches=BRANCHES, judge=SCORED, rounds=3, deadline=60.0))
    assert (report.winner, report.deadline_passed, len(report.rounds)) == ("quick", True, 2)
    assert {branch.status for branch in report.branches if branch.round == 2} == {"cancelled"}
    assert report.seconds < 70


def test_the_sandbox_seconds_count_over_all_rounds() -> None:
    class Hanging(Adding):
        async def add_up(self, call: FakeCall) -> CommandOutput:
            await asyncio.sleep(500 if call.env.get("BRANCH_ROUND") == "2" else 10)
            return await super().add_up(call)

    two = BRANCHES[:2]
    report = run(Hanging(), asked(branches=two, judge=SCORED, rounds=3, max_sandbox_seconds=60.0))
    assert (report.winner, report.budget_spent, report.deadline_passed) == ("quick", True, False)
    assert {(each.status, each.reason) for each in report.branches if each.round == 2} == {
        ("cancelled", "its max_sandbox_seconds are spent")
    }
    # The first round took forty: two branches, each a program and a judge of ten seconds.
    assert 60 <= report.sandbox_seconds < 64 and report.seconds < 35


def test_the_page_shows_the_rounds() -> None:
    request = asked(branches=BRANCHES, judge=SCORED, rounds=2)
    shown = page.render(run(Adding(), request), request)
    assert "<h2>Rounds</h2>" in shown and "round 2, from <code>quick</code>" in shown
    assert "<h2>Rounds</h2>" not in page.render(run(Adding(), asked(branches=BRANCHES, judge=SCORED)))


@pytest.mark.parametrize(
    "fields",
    [
        {"top": 2},
        {"rounds": 0},
        {"rounds": 11},
        {"rounds": 2, "top": 0},
        {"rounds": 3, "top": 20, "n": 20},
        {"rounds": 2, "checkpoint": "memory"},
    ],
)
def test_rounds_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        asked(**{"n": 2, "command": ["try"], **fields})


def test_the_bound_on_branches_counts_over_all_rounds() -> None:
    settings = Settings.from_environ({**ENVIRON, "RACE_MAX_BRANCHES": "8"})
    with pytest.raises(BadRace, match="all rounds"):
        run(Adding(), asked(n=3, command=["1"], rounds=3), settings=settings)


def test_real_files_go_from_round_to_round_and_a_judge_sees_them_all(place: Place) -> None:
    body = {
        "source": {"image": IMAGE},
        "branches": [
            {"name": "one", "script": "echo $BRANCH_ROUND >> trail"},
            {"name": "two", "script": "echo $BRANCH_ROUND >> trail; echo again >> trail"},
        ],
        "judge": {"type": "command", "script": "wc -l < trail"},
        "rounds": 2,
        "top": 1,
    }

    async def main() -> RaceReport:
        service = Service(place.settings)
        try:
            return await service.race(RaceRequest.model_validate_json(json.dumps(body)))
        finally:
            await service.aclose()

    report = asyncio.run(main())
    assert report.winner == "r2.1-two"
    assert [branch.score for branch in report.branches] == [1.0, 2.0, 3.0, 4.0]
    assert place.sandboxes() == []
