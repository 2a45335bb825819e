"""What a request may say, and that whatever it may not say is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from shared.races.request import CommandJudge, RaceRequest
from shared.races.scores import NoScore, stated

GOOD: dict[str, Any] = {"source": {"session_id": "sesn_1"}, "n": 2, "command": ["true"]}
ONE: dict[str, Any] = {"source": {"image": "i"}}


def parse(**fields: Any) -> RaceRequest:
    return RaceRequest.model_validate_json(json.dumps({**GOOD, **fields}))


def with_branches(*branches: Any, **fields: Any) -> RaceRequest:
    return RaceRequest.model_validate_json(json.dumps({**ONE, "branches": branches, **fields}))


def refusal(fields: dict[str, Any]) -> tuple[str, str]:
    """Field and message of the first error."""
    with pytest.raises(ValidationError) as caught:
        RaceRequest.model_validate_json(json.dumps(fields))
    first = caught.value.errors()[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"]


def test_each_of_the_params_is_a_branch_with_its_values_in_the_place_of_their_names() -> None:
    params = [{"rate": 0.1, "name": "a b", "fast": True}, {"rate": 2, "name": "{rate}{i}", "fast": False}]
    request = parse(n=None, params=params, command=["run", "{rate}-{i}", "{name}", "{fast}", "{other} ${rate}"])
    assert [branch.argv for branch in request.candidates()] == [
        ("run", "0.1-0", "a b", "true", "{other} $0.1"),
        ("run", "2-1", "{rate}{i}", "false", "{other} $2"),
    ]
    assert [(branch.name, branch.params) for branch in request.candidates()] == [("b0", params[0]), ("b1", params[1])]


def test_a_branch_may_have_values_of_its_own() -> None:
    request = with_branches(
        {"name": "a", "script": "echo {x} {i}", "params": {"x": 1}}, {"name": "b", "script": "echo {x}", "timeout": 5}
    )
    first, second = request.candidates()
    assert (first.name, first.script, first.params) == ("a", "echo 1 {i}", {"x": 1})
    assert (second.script, second.params, second.timeout) == ("echo {x}", None, 5)


def test_copies_of_one_command_are_written_out() -> None:
    request = parse(n=3, command=["run", "--seed={i}", "{i}{i}"], env={"A": "{i}"})
    assert [branch.name for branch in request.candidates()] == ["b0", "b1", "b2"]
    assert [branch.argv for branch in request.candidates()][2] == ("run", "--seed=2", "22")
    assert request.candidates()[2].env == {"A": "{i}"}


def test_a_script_is_for_the_shell() -> None:
    request = parse(command=None, script="echo {i} ${x}")
    assert request.candidates()[1].argv == ("sh", "-c", "echo 1 ${x}")


def test_branches_may_have_files_in_three_forms() -> None:
    files = {"a.txt": "text", "b/c.bin": {"base64": "AAH/"}, "d": {"text": "#!", "executable": True}}
    branch = with_branches({"name": "x", "script": "true", "files": files}).candidates()[0]
    assert {path: file.data() for path, file in branch.files.items()} == {
        "a.txt": b"text",
        "b/c.bin": b"\x00\x01\xff",
        "d": b"#!",
    }
    assert branch.files["d"].executable


def test_a_score_command_is_read() -> None:
    judge = parse(judge={"type": "command", "command": ["python", "-I", "s.py"], "files": {"s.py": "x"}}).judge
    assert isinstance(judge, CommandJudge)
    assert judge.argv == ("python", "-I", "s.py")


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"promote": "everything"}, "promote", "'none'"),
        ({"promote": "keep"}, "", "go together"),
        ({"keep": {"name": "mine"}}, "", "go together"),
        ({"promote": "keep", "keep": {"name": "-x"}}, "keep.name", "pattern"),
        ({"promote": "keep", "keep": {"name": "x" * 53}}, "keep.name", "pattern"),
        ({"promote": "keep", "keep": {"name": "x", "timeout": 5}}, "keep.timeout", "greater than"),
        ({"on_conflict": "ours"}, "", "belongs to promote workspace"),
        ({"promote": "workspace", "on_conflict": "mine"}, "on_conflict", "'refuse'"),
        ({"promote": "workspace", "source": {"image": "i"}}, "", "a source with a workspace"),
        ({"checkpoint": "live", "source": {"image": "i"}}, "", "a source that runs"),
        ({"checkpoint": "memory", "setup": "make"}, "", "no place for a setup"),
        ({"checkpoint": "live", "promote": "workspace"}, "", "to compare with"),
        ({"source": {"sandbox_id": "x", "session_id": "y"}}, "source", "exactly one of"),
        ({"judge": {"type": "vibes"}}, "judge", "'exit_code'"),
        ({"judge": {"type": "command"}}, "judge.command", "exactly one of command and script"),
        ({"judge": {"type": "command", "command": ["x"], "json_path": "a..b"}}, "judge.command.json_path", "dots"),
        ({"judge": {"type": "regex", "pattern": "x", "stream": "tty"}}, "judge.regex.stream", "'stdout'"),
        ({"judge": {"type": "file", "path": "/etc/passwd"}}, "judge.file.path", "relative"),
        ({"judge": {"type": "file", "path": "../x"}}, "judge.file.path", "relative"),
        ({"judge": {"type": "plugin", "name": "os:system"}}, "judge.plugin.name", "pattern"),
        ({"judge": {"type": "plugin", "name": "x", "module": "os"}}, "judge.plugin.module", "not permitted"),
        ({"artifacts": ["*.html"] * 21}, "artifacts", "at most 20"),
        ({"artifacts": ["/etc/*"]}, "artifacts.0", "relative"),
        ({"artifacts": ["a/../../b"]}, "artifacts.0", "relative"),
        ({"source": {}}, "source", "exactly one of"),
        ({"source": {"session_id": "a", "image": "b"}}, "source", "exactly one of"),
        ({"source": {"session_id": "../x"}}, "source.session_id", "pattern"),
        ({"source": {"image": "a b"}}, "source.image", "pattern"),
        ({"n": 0}, "n", "greater than or equal"),
        ({"n": 65}, "n", "less than or equal"),
        ({"n": "2"}, "n", "valid integer"),
        ({"n": None}, "", "exactly one of branches, n and params"),
        ({"params": [{"a": 1}]}, "", "exactly one of branches, n and params"),
        ({"n": None, "params": []}, "params", "at least 1"),
        ({"n": None, "params": [{}]}, "params.0", "at least 1"),
        ({"n": None, "params": [{"a": 1}, {"b": 1}]}, "", "all params have the same names"),
        ({"n": None, "params": [{"i": 1}]}, "params.0.i.[key]", "is not i"),
        ({"n": None, "params": [{"a b": 1}]}, "params.0.a b.[key]", "letters, digits and _"),
        ({"n": None, "params": [{"a": "=x"}], "command": ["{a}"]}, "", "does not begin with the name of a program"),
        ({"n": None, "params": [{"a": "x" * 8_000}], "command": ["do", "{a}" * 20]}, "", "longer than 100000 bytes"),
        ({"n": 64, "command": ["do", *["{i}" + "x" * 50_000] * 10]}, "", "hold more than"),
        ({"n": 2, "command": ["do", "{i}" * 1_001]}, "", "at most 1000 places"),
        ({"command": None}, "", "exactly one of command and script"),
        ({"script": "x"}, "", "exactly one of command and script"),
        ({"command": []}, "command", "at least 1"),
        ({"command": ["A=1"]}, "command", "name of a program"),
        ({"command": ["a\0"]}, "command.0", "NUL"),
        ({"command": ["a", "é" * 60_000]}, "command.1", "longer than"),
        ({"setup": ""}, "setup", "at least 1"),
        ({"branches": [{"name": "a", "script": "x"}]}, "", "exactly one of branches, n and params"),
        ({"max_parallel": 0}, "max_parallel", "greater than"),
        ({"deadline": 0}, "deadline", "greater than 0"),
        ({"branch_timeout": 86_401}, "branch_timeout", "less than"),
        ({"env": {"BRANCH_INDEX": "1"}}, "env.BRANCH_INDEX.[key]", "set by the race"),
        ({"env": {"a-b": "1"}}, "env.a-b.[key]", "letters"),
        ({"env": {f"V{i}": "" for i in range(65)}}, "env", "at most 64"),
        ({"files": {"/etc/passwd": "x"}}, "files./etc/passwd.[key]", "relative"),
        ({"files": {"a/../../b": "x"}}, "files.a/../../b.[key]", "relative"),
        ({"files": {"a": {"base64": "?"}}}, "files.a", "base64"),
        ({"files": {"a": {}}}, "files.a", "exactly one of text and base64"),
        ({"files": {"a": 1}}, "files.a", "object"),
        ({"higher_is_better": "yes"}, "higher_is_better", "boolean"),
    ],
)
def test_what_cannot_be_served_is_named(fields: dict[str, Any], field: str, says: str) -> None:
    where, message = refusal({**GOOD, **fields})
    assert where == field
    assert says in message


@pytest.mark.parametrize(
    "fields",
    [
        {"source": {"sandbox_id": "sbx-1"}, "checkpoint": "live"},
        {"promote": "workspace", "on_conflict": "theirs"},
        {"promote": "snapshot", "checkpoint": "memory"},
        {"promote": "keep", "keep": {"name": "best-one", "timeout": 60}},
        {"judge": {"type": "regex", "pattern": "loss=(?P<loss>.*)", "group": "loss", "stream": "stderr"}},
        {"judge": {"type": "file", "path": "out/metrics.json", "json_path": "runs.0.loss"}},
        {"judge": {"type": "plugin", "name": "ours", "options": {"weights": [1, 2.5, None]}}},
        {"judge": {"type": "command", "command": ["x"], "json_path": "score"}},
        {"artifacts": ["*.html", "./out/**", "a/[bc]?.txt"]},
    ],
)
def test_every_way_to_ask_is_understood(fields: dict[str, Any]) -> None:
    request = parse(**fields)
    assert RaceRequest.model_validate_json(request.model_dump_json()) == request


def test_two_branches_never_share_a_name() -> None:
    branch = {"name": "a", "script": "x"}
    assert "same name" in refusal({**ONE, "branches": [branch, branch]})[1]


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 65, "ä", "a\n"])
def test_a_name_is_plain(name: str) -> None:
    assert refusal({**ONE, "branches": [{"name": name, "script": "x"}]})[0] == "branches.0.name"


def test_what_belongs_to_copies_is_not_passed_over_beside_branches() -> None:
    assert "belong to n" in refusal({**ONE, "branches": [{"name": "a", "script": "x"}], "env": {"A": "1"}})[1]


def test_not_a_number_is_no_threshold() -> None:
    with pytest.raises(ValidationError):
        RaceRequest.model_validate_json(json.dumps({**GOOD, "accept": float("nan")}))


def test_an_error_does_not_show_what_was_sent() -> None:
    with pytest.raises(ValidationError) as caught:
        parse(env={"TOKEN": 12345678})
    assert "12345678" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.93", 0.93),
        ("1\n2\n-3.5e1\n\n", -35.0),
        (" +4 ", 4.0),
        ("score=7", 7.0),
        ("Score = 0.5\nand something after it", 0.5),
        ("score=1\nscore=2\n3", 2.0),
    ],
)
def test_a_score_line_or_a_last_line_that_is_one_number_is_the_score(text: str, number: float) -> None:
    assert stated(text) == number


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n \n", "it is .5.", "accuracy=0.8", "85%", "7 of 10 passed", "version 1.2.3", "3 then v2", "info"),
        *("0.5\ndone", "5 passed, 2 warnings in 0.12s", "accuracy: 0.87 (87/100)", "FAILED (failures=2)", "1 2"),
        *("score=", "score=a lot", "score=nan", "nan", "2\ninf", "-Infinity", "1e999", "\n" * 60_000, "1" * 500),
    ],
)
def test_no_number_is_guessed(text: str) -> None:
    with pytest.raises(NoScore):
        stated(text)
