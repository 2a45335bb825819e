"""Scores: where each judge finds them, and that whatever goes wrong in one is its branch's failure."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pytest

from shared.errors import SettingsError
from shared.ports import CommandOutput
from shared.races import plugins, safe_regex
from shared.races.errors import BadRace
from shared.races.plugins import JudgeContext, JudgeFailed
from shared.races.race import run_race
from shared.races.report import RaceReport
from shared.races.scores import NoScore, from_json, whole
from shared.races.shell import NotDone
from shared.settings import Settings
from tests.shared.races.helpers import ENVIRON, ENVIRONMENT, SETTINGS, SOURCE, asked, by_name, run
from tests.support.fake_host import FakeCall, FakeHost

METRICS: Final = '{"runs": [{"loss": 3}, {"loss": 0.25, "name": "x", "good": true}], "": 1, "huge": 1e999}'


@pytest.mark.parametrize(("path", "number"), [("runs.1.loss", 0.25), ("runs.0.loss", 3.0), ("runs.-1.loss", 0.25)])
def test_a_path_names_a_number_in_json(path: str, number: float) -> None:
    assert from_json(METRICS, path) == number
    assert from_json(f"some words before\n{METRICS}\n", path) == number


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        (METRICS, "runs.2.loss", "nothing at 2"),
        (METRICS, "runs.one", "nothing at one"),
        (METRICS, "runs.1.name", "no number at runs.1.name"),
        (METRICS, "runs.1.good", "no number"),
        (METRICS, "runs", "no number"),
        (METRICS, "huge", "not a finite number"),
        ("9" * 400, "0", "nothing at 0"),
        ('{"a": ' + "9" * 400 + "}", "a", "not a finite number"),
        ('{"a": NaN}', "a", "not a finite number"),
        ("[" * 100_000, "0", "not JSON"),
        ("", "a", "not JSON"),
        ("no json\nat all", "a", "not JSON"),
    ],
)
def test_what_is_no_number_in_json_is_said(text: str, path: str, says: str) -> None:
    with pytest.raises(NoScore, match=says):
        from_json(text, path)


@pytest.mark.parametrize("text", ["", "1 2", "1,5", "nan", "-inf", "0x10", "score 3"])
def test_a_group_is_one_finite_number_and_nothing_else(text: str) -> None:
    with pytest.raises(NoScore):
        whole(text)


def search(pattern: str, text: str, group: int | str | None = None) -> safe_regex.Found:
    return asyncio.run(safe_regex.search(pattern, text, group))


def test_the_last_match_counts_and_its_group_is_the_score() -> None:
    text = "epoch 1 loss=0.9\nepoch 2 loss=0.4\nthe end\n"
    assert search(r"^epoch \d loss=(\S+)$", text) == safe_regex.Found(matched=True, text="0.4")
    assert search(r"^epoch (\d) loss=(?P<loss>\S+)$", text, "loss") == safe_regex.Found(matched=True, text="0.4")
    assert search("end$", text) == safe_regex.Found(matched=True)
    assert search("[0-9.]+", text, 0) == safe_regex.Found(matched=True, text="0.4")
    assert search("failed", text) == safe_regex.Found(matched=False)


def test_a_pattern_that_would_never_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_regex, "_PROGRAM", safe_regex._PROGRAM.replace("(2, 2)", "(1, 1)"))
    with pytest.raises(safe_regex.NotSearched, match="too long"):
        search(r"(a+)+$", "a" * 60 + "b")


def test_a_search_that_is_given_up_leaves_no_process() -> None:
    async def main() -> list[str]:
        task = asyncio.create_task(safe_regex.search(r"(a+)+$", "a" * 60 + "b", None))
        while resources() == before:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        return resources()

    before = resources()
    assert asyncio.run(main()) == before


def resources() -> list[str]:
    """Processes of this one."""
    text = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text(encoding="ascii")
    return text.split()


def said(**texts: str) -> Callable[[FakeCall], Awaitable[CommandOutput]]:
    """Each branch by name: what it prints; a name with `bad` in it ends with 3."""

    async def program(call: FakeCall) -> CommandOutput:
        name = call.env.get("BRANCH_NAME", "")
        return CommandOutput(3 if "bad" in name else 0, texts.get(name, ""), "loss 7", timed_out=False)

    return program


def really(host: FakeHost, settings: Settings = SETTINGS, **fields: Any) -> RaceReport:
    """A race in real time, for what is a process."""
    host.add(SOURCE)
    return asyncio.run(run_race(asked(**fields), host=host, settings=settings, environment=ENVIRONMENT))


def branches(*names: str) -> list[dict[str, object]]:
    return [{"name": name, "command": ["try", name]} for name in names]


def test_a_race_is_scored_by_a_pattern() -> None:
    host = FakeHost(program=said(a="loss 0.5", b="loss 0.2 loss 0.3", c="none", d="loss much", bad="loss 0"), latency=0)
    report = really(
        host,
        branches=branches("a", "b", "c", "d", "bad"),
        judge={"type": "regex", "pattern": r"loss (\S+)"},
        higher_is_better=False,
    )
    got = by_name(report)
    assert report.winner == "b"
    assert (got["b"].score, got["a"].score) == (0.3, 0.5)
    assert (got["c"].score, got["c"].reason) == (0.0, "judge: the pattern does not match stdout")
    assert got["d"].reason == "judge: what was found is not a number"
    assert got["bad"].reason == "ended with exit code 3"


def test_a_pattern_may_look_at_the_errors() -> None:
    judge = {"type": "regex", "pattern": r"loss (?P<n>\d)", "group": "n", "stream": "stderr"}
    report = really(FakeHost(program=said(), latency=0), n=1, command=["try"], judge=judge)
    assert report.branches[0].score == 7.0


def test_a_score_command_may_print_json() -> None:
    async def program(call: FakeCall) -> CommandOutput:
        text = {"a": '{"score": 2}', "b": 'warning: slow\n{"score": 3}', "c": "4"}[call.env["BRANCH_NAME"]]
        return CommandOutput(0, text, "a warning", timed_out=False)

    host = FakeHost(program=program)
    host.add(SOURCE)
    judge = {"type": "command", "command": ["score"], "json_path": "score"}
    got = by_name(run(host, asked(branches=branches("a", "b", "c"), judge=judge)))
    assert [got[name].score for name in "abc"] == [2.0, 3.0, None]
    assert got["c"].reason == "judge: the JSON has nothing at score"
    assert got["a"].judge_tail == '{"score": 2}\na warning'


# ---------------------------------------------------------------------------------------------------------- plug-ins


async def by_exit_code_and_options(context: JudgeContext) -> float:
    ran = await context.run(["wc", context.branch], timeout=5)
    return context.exit_code * 100 + float(ran.stdout) + float(context.options["more"])


async def never(context: JudgeContext) -> float:
    await asyncio.sleep(1e6)
    return 1.0


async def refuses(context: JudgeContext) -> float:
    await context.read_file("metrics")
    raise AssertionError("there is no such file")


async def breaks(context: JudgeContext) -> float:
    raise KeyError("a secret of the operator's")


async def says_text(context: JudgeContext) -> Any:
    return "12"


async def says_nan(context: JudgeContext) -> float:
    return float("nan")


async def gives_up(context: JudgeContext) -> float:
    raise JudgeFailed("not good enough")


def judged_by(function: str, **fields: Any) -> RaceReport:
    settings = Settings.from_environ({**ENVIRON, "RACE_JUDGES": f"ours={__name__}:{function}"})

    async def program(call: FakeCall) -> CommandOutput:
        return CommandOutput(3 if call.env["BRANCH_NAME"] == "bad" and call.argv[0] == "try" else 0, "5", "", False)

    host = FakeHost(program=program)
    host.add(SOURCE)
    judge = {"type": "plugin", "name": "ours", **fields}
    return run(host, asked(branches=branches("good", "bad"), judge=judge), settings=settings)


def test_a_plug_in_judges_every_branch_that_ended() -> None:
    report = judged_by("by_exit_code_and_options", options={"more": 0.5})
    assert [branch.score for branch in report.branches] == [5.5, 305.5]
    assert report.winner == "bad"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("never", "judge: the plug-in did not end within 7 s"),
        ("refuses", "judge: the file is not there"),
        ("breaks", "judge: the plug-in failed (KeyError)"),
        ("says_text", "judge: the plug-in gave no number"),
        ("says_nan", "judge: the score is not a finite number"),
        ("gives_up", "judge: not good enough"),
    ],
)
def test_a_plug_in_that_fails_is_its_branchs_failure(function: str, reason: str, monkeypatch: Any) -> None:
    async def read(self: object, sandbox_id: str, path: str, limit: int) -> NotDone:
        return NotDone("the file is not there")

    monkeypatch.setattr("shared.races.shell.SandboxShell.read", read)
    report = judged_by(function, timeout=7)
    assert report.winner is None
    assert {(branch.status, branch.reason) for branch in report.branches} == {("failed", reason)}


def test_a_request_can_name_only_what_is_configured() -> None:
    host = FakeHost()
    with pytest.raises(BadRace) as caught:
        run(host, asked(n=1, command=["try"], judge={"type": "plugin", "name": "ours"}))
    assert caught.value.field == "judge.name"
    assert host.specs == []


@pytest.mark.parametrize("target", ["no_such:judge", "json:no_such", "json:dumps", "entry-point:no-such"])
def test_a_configured_judge_that_is_none_is_a_wrong_setting(target: str) -> None:
    with pytest.raises(SettingsError, match="RACE_JUDGES: ours"):
        plugins.load("ours", target)


def test_an_entry_point_counts_only_where_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebodys_judges")
    module.judge = gives_up  # type: ignore[attr-defined]  # a module made here has no attributes yet
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = metadata.EntryPoint(name="theirs", group=plugins.GROUP, value="somebodys_judges:judge")

    def installed(group: str, name: str) -> list[metadata.EntryPoint]:
        return [point] if (group, name) == (point.group, point.name) else []

    monkeypatch.setattr(metadata, "entry_points", installed)
    assert plugins.load("ours", "entry-point:theirs") is gives_up
    with pytest.raises(BadRace):
        run(FakeHost(), asked(n=1, command=["try"], judge={"type": "plugin", "name": "theirs"}))


@pytest.mark.parametrize(
    "text", ["ours", "ours=os", "ours=os:", "Ours=os:x", "a=b:c,a=d:e", "a=../b:c", "a=entry-point:"]
)
def test_a_setting_that_names_no_judge_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(SettingsError, match="RACE_JUDGES"):
        Settings.from_environ({**ENVIRON, "RACE_JUDGES": text})


def test_the_operators_judges_are_read_in_order() -> None:
    read = Settings.from_environ({**ENVIRON, "RACE_JUDGES": " a = pkg.mod:f, b=entry-point:some.judge-1 ,"})
    assert read.races.judges == {"a": "pkg.mod:f", "b": "entry-point:some.judge-1"}
    assert read.races._replace(judges={}).judges == {}
