"""The agent's tool `fork_best_of_n`: its definition, its call over a real socket, and what the agent reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, get_args

import pytest
from anthropic.lib.tools import ToolError

from image.session.worker import fork_tool, fork_tool_schema
from image.session.worker.fork_tool import ForkTool
from shared.races.report import RaceReport
from shared.races.request import MOST_JUDGES, MOST_ROUNDS, Branch, Judge, PanelJudge, RaceRequest
from shared.settings_table import LONGEST_AGENT_RACE
from tests.support.http_stub import StubHandler, stub_server

TOKEN: Final = "hc1.a-capability-of-nobody"
INPUT: Final = {"branches": [{"name": "a", "script": "true"}, {"name": "b", "script": "false"}]}
REPORT: Final = RaceReport.model_validate(
    {
        "race_id": "r1",
        "winner": "b",
        "branches": (
            {
                "name": "a",
                "index": 0,
                "status": "failed",
                "exit_code": 1,
                "reason": "ended with 1",
                "stderr_tail": "no",
            },
            {"name": "b", "index": 1, "status": "ok", "score": 2.5, "exit_code": 0, "run_seconds": 1.25},
        ),
        "checkpoint": None,
        "reaped": (),
        "leftovers": (),
        "timeline": (),
        "seconds": 2.0,
    }
)


def report(**changes: Any) -> dict[str, Any]:
    return {**REPORT.model_dump(mode="json"), **changes}


Answer = tuple[int, bytes] | None
"""Status and body; None closes the connection without an answer."""


class Functions:
    """A server that gives these answers, one a request, the last one indefinitely."""

    def __init__(self, answers: Sequence[Answer | Callable[[], None]]) -> None:
        self.answers = list(answers)
        self.seen: list[tuple[Mapping[str, str], Any]] = []
        self.url = ""


@contextlib.contextmanager
def functions(*answers: Answer | Callable[[], None]) -> Iterator[Functions]:
    made = Functions(answers)

    class Handler(StubHandler):
        def do_POST(self) -> None:
            made.seen.append((dict(self.headers.items()), json.loads(self.body())))
            answer = made.answers.pop(0) if len(made.answers) > 1 else made.answers[0]
            if callable(answer):
                answer()
                answer = None
            if answer is not None:
                self.answer(*answer)

    with stub_server(Handler) as url:
        made.url = f"{url}/fork_best_of_n"
        yield made


def call(url: str, given: object = INPUT, seconds: float = 30.0) -> str:
    return asyncio.run(ForkTool(url, TOKEN, seconds).call(given))


def refused(url: str, given: object = INPUT, seconds: float = 30.0) -> str:
    with pytest.raises(ToolError) as caught:
        call(url, given, seconds)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def test_the_definition_asks_for_nothing_that_the_functions_do_not_know() -> None:
    properties = fork_tool_schema.INPUT_SCHEMA["properties"]
    assert set(properties) <= set(RaceRequest.model_fields)
    assert set(properties["branches"]["items"]["properties"]) <= set(Branch.model_fields)
    judges = get_args(get_args(Judge)[0])
    known = {name for judge in judges for name in judge.model_fields}
    assert set(properties["judge"]["properties"]) <= known
    types = {judge.model_fields["type"].annotation for judge in judges}
    of_several = properties["judges"]["items"]["properties"]
    assert set(of_several) == set(PanelJudge.model_fields) and properties["judges"]["maxItems"] == MOST_JUDGES
    assert set(properties["judge"]["properties"]["type"]["enum"]) < {get_args(each)[0] for each in types}
    assert properties["rounds"]["maximum"] == MOST_ROUNDS
    assert LONGEST_AGENT_RACE == fork_tool_schema.LONGEST_RACE < fork_tool.TOOL_SECONDS < 150


def test_the_sdk_knows_the_tool_by_the_name_of_the_definition() -> None:
    assert ForkTool("http://x", TOKEN).name == fork_tool_schema.definition()["name"] == "fork_best_of_n"


def test_a_session_that_may_not_fork_is_told_so_instead_of_being_left_waiting() -> None:
    for url, token in ((None, None), ("http://127.0.0.1:9", None), (None, TOKEN)):
        with pytest.raises(ToolError, match=r"not switched on.*AGENT_FORK"):
            asyncio.run(ForkTool(url, token).call(INPUT))


def test_a_race_is_asked_for_with_the_capability_and_its_report_is_read_to_the_agent() -> None:
    with functions((200, json.dumps(report()).encode())) as served:
        text = call(served.url, {**INPUT, "promote": "none", "setup": None})
    ((headers, body),) = served.seen
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert body == {**INPUT, "promote": "none"}
    assert text.splitlines() == [
        "Winner: b",
        "",
        "[b] ok, score 2.5, exit code 0, 1.2 s",
        "",
        "[a] failed, exit code 1, ended with 1",
        "stderr: no",
    ]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"branches": []}, "branches"),
        ({}, "branches"),
        ([], "object"),
        ({**INPUT, "source": {"image": "i"}}, "source"),
        ({**INPUT, "promote": "none", "keep": {}}, "keep"),
        ({**INPUT, "deadline": 121}, "150 seconds"),
    ],
)
def test_an_input_that_cannot_be_is_not_sent(given: object, named: str) -> None:
    with functions((200, b"{}")) as served:
        assert named in refused(served.url, given)
    assert served.seen == []


def test_a_refusal_tells_its_reason() -> None:
    body = json.dumps({"error": {"type": "forbidden", "message": "branches: at most 8 branches here"}}).encode()
    with functions((403, body)) as served:
        assert refused(served.url) == "No race was run (HTTP 403): branches: at most 8 branches here"
    with functions((500, b"<html>")) as served:
        assert refused(served.url) == "No race was run (HTTP 500): no reason given"


def test_try_again_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_tool, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(fork_tool, "_REPEATS", 2)
    with functions((503, b"{}"), (200, json.dumps(report()).encode())) as served:
        assert call(served.url).startswith("Winner: b")
    with functions((503, b"{}")) as served:
        assert "HTTP 503" in refused(served.url)
    assert len(served.seen) == 3


def test_where_nobody_listens_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_tool, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(fork_tool, "_REPEATS", 1)
    with functions((200, b"")) as served:
        url = served.url
    assert "cannot be reached" in refused(url)


def test_a_lost_answer_is_not_asked_for_twice() -> None:
    with functions(None) as served:
        assert "look before you repeat it" in refused(served.url)
    assert len(served.seen) == 1


def test_what_takes_too_long_is_given_up() -> None:
    over = threading.Event()
    with functions(lambda: void(over.wait(20))) as served:
        try:
            assert "no answer within 0.5 seconds" in refused(served.url, seconds=0.5)
        finally:
            over.set()


def void(_: object) -> None:
    return None


def test_what_is_no_report_is_an_error_and_not_a_win() -> None:
    for body in (b"", b"[]", b"{}", b"null", b'{"winner": "a", "branches": [1]}'):
        with functions((200, body)) as served:
            assert "could not be read" in refused(served.url)


def test_output_tails_are_cut_to_what_is_worth_reading() -> None:
    branches = [
        {
            **REPORT.branches[0].model_dump(),
            "name": f"b{number}",
            "stdout_tail": "x" * 4_000,
            "stderr_tail": "y" * 4_000,
        }
        for number in range(64)
    ]
    text = fork_tool_schema.text_of(report(branches=branches, winner=None))
    assert text.startswith("No candidate won.")
    assert len(text) < 30_000
    (one,) = [fork_tool_schema.text_of(report(branches=branches[:1], winner=None))]
    assert "…" + "x" * 1_500 in one and "x" * 1_501 not in one


def test_a_promotion_is_told_with_what_it_did_or_why_it_did_not() -> None:
    done = {"kind": "workspace", "done": True, "added": 1, "changed": 2, "deleted": 0, "conflicts": []}
    assert "in your working directory now: 1 added, 2 changed, 0 deleted." in fork_tool_schema.text_of(
        report(promotion=done)
    )
    not_done = {"kind": "workspace", "done": False, "reason": "you changed a file too", "conflicts": ["a.py"]}
    text = fork_tool_schema.text_of(report(promotion=not_done))
    assert "NOT brought" in text and "you changed a file too" in text and "Conflicts: a.py" in text


def test_values_scores_failed_tests_and_changes_are_told_within_bounds() -> None:
    branch = {
        **REPORT.branches[1].model_dump(),
        "params": {"rate": 0.3},
        "scores": {"tests": 0.5, "size": 2.0},
        "failing": [f"test_{number}" for number in range(50)],
        "diff": "diff --git a/x b/x\n" + "+y\n" * 90_000,
        "diff_reason": "diff: only its first 262144 bytes are here",
    }
    text = fork_tool_schema.text_of(report(branches=[{**branch, "name": f"b{number}"} for number in range(8)]))
    assert "params: rate=0.3\nscores: tests=0.5, size=2.0\nfailed tests: test_0, test_1" in text
    assert "changes:\ndiff --git a/x b/x\n+y" in text and "\n…\ndiff: only its first" in text
    assert len(text) < 30_000


def test_a_candidate_of_a_later_round_is_told_with_what_it_started_from() -> None:
    given = {**INPUT, "rounds": 2, "top": 1, "max_sandbox_seconds": 60}
    assert fork_tool_schema.request_of(given) == given
    later = {**REPORT.branches[1].model_dump(), "name": "r2.1-b", "round": 2, "parent": "b"}
    text = fork_tool_schema.text_of(report(branches=[*report()["branches"], later], winner="r2.1-b"))
    assert "[r2.1-b] ok, score 2.5, exit code 0, from b, 1.2 s" in text


def test_params_and_one_script_stand_for_the_branches() -> None:
    given = {"params": [{"rate": 0.1}, {"rate": 0.3}], "script": "./train {rate}", "diff": True}
    body = fork_tool_schema.request_of(given)
    assert body == given
    race = RaceRequest.model_validate_json(json.dumps({"source": {"session_id": "sesn_1"}, **body}))
    assert [branch.script for branch in race.candidates()] == ["./train 0.1", "./train 0.3"]


def test_a_race_that_was_cut_short_says_so() -> None:
    assert "deadline passed" in fork_tool_schema.text_of(report(deadline_passed=True)).splitlines()[0]
