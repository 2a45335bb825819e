"""Several judges of one race: weights, gates, their order, and that a judge in a child has a child of its own."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from pydantic import ValidationError

from shared.ports import CommandOutput
from shared.races.request import RaceRequest
from shared.races.shell import FileContents, SandboxShell
from tests.shared.races.helpers import SOURCE, asked, by_name, run
from tests.support.fake_host import FakeCall, FakeHost

SCORES: Final = {"tests": {"a": 1.0, "b": 0.5, "c": 0.9}, "size": {"a": 10.0, "b": 90.0, "c": 50.0}}


def host() -> FakeHost:
    async def program(call: FakeCall) -> CommandOutput:
        score = SCORES.get(call.argv[0], {}).get(call.env.get("BRANCH_NAME", ""))
        return CommandOutput(0, f"score={score}" if score is not None else "", "", timed_out=False)

    made = FakeHost(program=program)
    made.add(SOURCE)
    return made


def by(name: str, place: str = "branch", **fields: Any) -> dict[str, Any]:
    return {"name": name, "judge": {"type": "command", "command": [name], "in": place}, **fields}


def raced(*judges: dict[str, Any], on: FakeHost | None = None, **fields: Any) -> Any:
    branches = [{"name": name, "command": ["try"]} for name in "abc"]
    return run(on or host(), asked(branches=branches, judges=judges, **fields))


def test_the_score_is_the_mean_by_weight_and_each_judges_own_is_told() -> None:
    report = raced(by("tests", weight=3), by("size"))
    assert {branch.name: branch.score for branch in report.branches} == {"a": 3.25, "b": 22.875, "c": 13.175}
    assert by_name(report)["b"].scores == {"tests": 0.5, "size": 90.0}
    assert report.winner == "b"
    assert "[tests] score=0.5\n[size] score=90.0" in by_name(report)["b"].judge_tail


def test_a_gate_that_is_not_passed_ends_the_branch_before_the_next_judge() -> None:
    on = host()
    report = raced(by("tests", gate=0.8, weight=0), by("size"), on=on)
    assert report.winner == "c"
    failed = by_name(report)["b"]
    assert (failed.status, failed.score, failed.scores) == ("failed", None, {"tests": 0.5})
    assert failed.reason == "tests: score 0.5 does not pass its gate 0.8"
    judged = {call.env["BRANCH_NAME"] for call in on.calls if call.argv[0] == "size"}
    assert judged == {"a", "c"}


def test_the_failed_tests_of_a_branch_that_a_gate_stops_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = b"<testsuite><testcase name='one'/><testcase name='two'><failure/></testcase></testsuite>"

    async def read(self: object, sandbox_id: str, path: str, limit: int) -> FileContents:
        return FileContents(suite)

    monkeypatch.setattr(SandboxShell, "read", read)
    by_suite = {"type": "junit", "command": ["pytest"], "in": "branch"}
    report = raced({"name": "suite", "judge": by_suite, "gate": 1, "weight": 0}, by("size"))
    failed = by_name(report)["a"]
    assert (failed.status, failed.scores, failed.failing) == ("failed", {"suite": 0.5}, ("two",))
    assert {branch.failing for branch in raced({"name": "suite", "judge": by_suite}, by("nothing")).branches} == {
        ("two",)
    }


def test_a_gate_is_an_upper_bound_where_lower_is_better() -> None:
    report = raced(by("size", gate=50), higher_is_better=False)
    assert report.winner == "a" and by_name(report)["b"].status == "failed"


def test_a_judge_that_fails_is_named_in_its_branchs_reason() -> None:
    report = raced(by("tests"), by("nothing"))
    assert {branch.status for branch in report.branches} == {"failed"}
    assert str(by_name(report)["a"].reason).startswith("nothing: judge: ")


def test_judges_in_children_have_one_each_and_nothing_is_left() -> None:
    on = host()
    report = raced(by("tests", "child"), by("size", "child"), on=on)
    places = {(call.argv[0], call.env["BRANCH_NAME"]): call.sandbox for call in on.calls if call.argv[0] in SCORES}
    assert len(places) == len(set(places.values())) == 6
    assert report.winner == "b" and on.alive() == [SOURCE] and report.leftovers == ()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"judges": [by("a"), by("a")]}, "two judges have the same name"),
        ({"judges": [by("a", weight=0)]}, "a weight above 0"),
        ({"judges": [by("a")], "judge": {"type": "exit_code"}}, "judge or judges, not both"),
        ({"judges": []}, "at least 1"),
        ({"judges": [by(f"j{number}") for number in range(6)]}, "at most 5"),
        ({"judges": [by("a", weight=-1)]}, "greater than or equal to 0"),
        ({"judges": [by("a", "child")], "checkpoint": "live"}, "say judge.in branch"),
    ],
)
def test_judges_that_cannot_be_are_refused(fields: dict[str, Any], says: str) -> None:
    body = {"source": {"session_id": "sesn_1"}, "n": 2, "command": ["true"], **fields}
    with pytest.raises(ValidationError, match=says):
        RaceRequest.model_validate_json(json.dumps(body))
