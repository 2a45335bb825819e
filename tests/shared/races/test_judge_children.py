"""Judges in a fresh child of the checkpoint, what they may score, and what JUnit XML says."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import pytest

from shared.ports import CommandOutput
from shared.races import junit
from shared.races.errors import BadRace
from shared.races.judge_child import is_run_by_git
from shared.races.scores import NoScore
from tests.shared.races.helpers import SOURCE, asked, by_name, race, run
from tests.support.fake_host import FakeCall, FakeHost

BY_CHILD: Final = {"type": "command", "command": ["score"]}


def host_of(score: str = "1", quota: int | None = None) -> FakeHost:
    async def program(call: FakeCall) -> CommandOutput:
        await asyncio.sleep(1.0)
        return CommandOutput(0, score if call.argv[0] == "score" else "", "", timed_out=False)

    host = FakeHost(program=program, quota=quota)
    host.add(SOURCE)
    return host


def test_a_judge_works_in_a_sandbox_of_its_own_that_is_ended() -> None:
    host = host_of()
    report = run(host, asked(n=3, command=["try"], judge=BY_CHILD))
    tried = {call.sandbox for call in host.calls if call.argv == ("try",)}
    scored = {call.sandbox for call in host.calls if call.argv == ("score",)}
    assert report.winner == "b0" and len(tried) == len(scored) == 3 and not tried & scored
    assert (host.alive(), host.snapshots) == ([SOURCE], {})


def test_in_branch_is_the_branchs_own_sandbox() -> None:
    host = host_of()
    run(host, asked(n=2, command=["try"], judge={**BY_CHILD, "in": "branch"}))
    assert len({call.sandbox for call in host.calls}) == 2


def test_a_judge_has_an_empty_home_and_no_current_directory_on_its_paths() -> None:
    host = host_of()
    run(host, asked(n=1, command=["try"], judge={**BY_CHILD, "files": {"judge.py": "x"}, "env": {"MINE": "1"}}))
    tried, scored = host.calls
    assert "PYTHONSAFEPATH" not in tried.env
    own = scored.env["SCORE_FILE"].removesuffix("/score")
    assert scored.env["HOME"] == f"{own}/home" and own.startswith("/tmp/race-")
    assert (scored.env["PYTHONSAFEPATH"], scored.env["PYTHONNOUSERSITE"], scored.env["MINE"]) == ("1", "1", "1")
    assert scored.env["PYTHONPATH"] == scored.env["JUDGE_FILES"] != own


def test_what_a_judge_needs_it_may_say() -> None:
    host = host_of()
    run(host, asked(n=1, command=["try"], judge={**BY_CHILD, "env": {"PYTHONPATH": "."}}))
    assert host.calls[-1].env["PYTHONPATH"] == "."


@pytest.mark.parametrize("quota", [5, 6])
def test_where_there_is_no_room_for_all_judges_one_branch_gives_way_to_the_others(quota: int) -> None:
    """The source and four branches fill the quota, and all wait for a judge at once."""
    host = host_of(quota=quota)
    report = run(host, asked(n=4, command=["try"], judge=BY_CHILD))
    statuses = sorted(branch.status for branch in report.branches)
    assert report.winner is not None and statuses.count("ok") >= 3
    assert all("no child for it" in (branch.reason or "") for branch in report.branches if branch.status != "ok")
    assert host.alive() == [SOURCE]


def test_a_live_copy_has_no_checkpoint_for_a_judge() -> None:
    with pytest.raises(ValueError, match=r"say judge\.in branch"):
        asked(n=1, command=["try"], checkpoint="live", judge=BY_CHILD)
    asked(n=1, command=["try"], checkpoint="live", judge={**BY_CHILD, "in": "branch"})


@pytest.mark.parametrize(("score", "ok"), [("0", True), ("1", True), ("0.5", True), ("1.01", False), ("-1", False)])
def test_a_score_outside_of_its_range_disqualifies(score: str, ok: bool) -> None:
    report = run(host_of(score), asked(n=1, command=["try"], judge={**BY_CHILD, "score_range": [0, 1]}))
    assert (report.winner is not None) == ok
    if not ok:
        assert "outside of 0 to 1" in (by_name(report)["b0"].reason or "")


def test_the_score_file_wins_over_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def written(self: object, sandbox_id: str, folders: Any) -> str:
        return "0.25\n"

    monkeypatch.setattr("shared.races.shell.SandboxShell.score_file", written)
    report = run(host_of("1000000"), asked(n=1, command=["try"], judge=BY_CHILD))
    assert by_name(report)["b0"].score == 0.25


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        ({"pattern": "("}, "not a regular expression"),
        ({"pattern": "(a)", "group": 2}, "no such group"),
        ({"pattern": "(a)", "group": "b"}, "no such group"),
    ],
)
def test_a_pattern_that_is_none_is_refused_before_anything_is_made(judge: dict[str, Any], reason: str) -> None:
    host = host_of()
    with pytest.raises(BadRace, match=reason) as refused:
        asyncio.run(race(host, asked(n=1, command=["try"], judge={"type": "regex", **judge}), time.monotonic))
    assert refused.value.field == "judge.regex.pattern"
    assert host.specs == [] and host.snapshots == {}


@pytest.mark.parametrize(
    ("path", "stays_out"),
    [
        (b".git/config", True),
        (b"repo/.git/config", True),
        (b".git/hooks/post-checkout", True),
        (b".git/info/attributes", True),
        (b".git/modules/a/config", True),
        (b".git/HEAD", False),
        (b"config", False),
        (b"src/hooks/config.py", False),
        (b".gitconfig", False),
    ],
)
def test_what_git_would_run_does_not_reach_the_judge(path: bytes, stays_out: bool) -> None:
    assert is_run_by_git(path) == stays_out


SUITE: Final = b"""<testsuites><testsuite name="s">
<testcase classname="a.B" name="one"/><testcase name="two"><failure>no</failure></testcase>
<testcase classname="c" name="three"><error/></testcase><testcase name="four"><skipped/></testcase>
</testsuite></testsuites>"""


def test_the_share_of_passed_tests_and_the_names_of_the_others() -> None:
    suite = junit.read(SUITE)
    assert (suite.passed, suite.failed, suite.failing) == (1, 2, ("two", "c.three"))
    assert suite.share == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not xml",
        b"<testsuite/>",
        b"<testsuite><testcase name='a'><skipped/></testcase></testsuite>",
        b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]><testsuite><testcase name='&a;'/></testsuite>",
        b"<?xml version='1.0' encoding='no-such'?><testsuite/>",
        b"<a>" * 500,
    ],
)
def test_what_is_no_junit_xml_gives_no_score(data: bytes) -> None:
    with pytest.raises(NoScore):
        junit.read(data)


def test_names_of_failed_tests_are_bounded_and_printable() -> None:
    case = "<testcase name='a&#x202E;" + "x" * 500 + "'><failure/></testcase>"
    suite = junit.read(f"<testsuite>{case * 200}</testsuite>".encode())
    assert suite.failed == 200 and len(suite.failing) == junit.MOST_NAMES
    assert all(len(name) <= 200 and name.isprintable() for name in suite.failing)


def test_a_suite_that_ends_badly_is_scored_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.races.shell import FileContents

    async def program(call: FakeCall) -> CommandOutput:
        return CommandOutput(1 if call.argv[0] == "pytest" else 0, "1 failed", "", timed_out=False)

    async def read(self: object, sandbox_id: str, path: str, limit: int) -> FileContents:
        assert path == "junit.xml"
        return FileContents(SUITE)

    monkeypatch.setattr("shared.races.shell.SandboxShell.read", read)
    host = FakeHost(program=program)
    host.add(SOURCE)
    request = asked(n=1, command=["try"], judge={"type": "junit", "command": ["pytest"]})
    report = asyncio.run(race(host, request, time.monotonic))
    assert by_name(report)["b0"].score == pytest.approx(1 / 3)
    assert by_name(report)["b0"].failing == ("two", "c.three")
