"""Judges in a fresh child of the checkpoint, what they may score, and what JUnit XML says."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import subprocess
import time
import tracemalloc
from pathlib import Path
from typing import Any, Final

import pytest

from image.session import programs
from image.session.programs.workspace.entries import TreeChange, TreeEntry
from shared.ports import CommandOutput
from shared.races import junit
from shared.races.errors import BadRace
from shared.races.judge_child import is_run_by_git
from shared.races.scores import NoScore
from shared.races.shell import JudgeFolders
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


FILE: Final = TreeEntry("f", 0o644, 1, "digest")
FOLDER: Final = TreeEntry("d", 0o755, 0, None)
LINKED: Final = TreeEntry("l", 0o777, 4, "evil")


@pytest.mark.parametrize(
    ("path", "now", "stays_out"),
    [
        (b".git/config", FILE, True),
        (b".git/config", None, True),
        (b"repo/.git/config", FILE, True),
        (b".git/hooks/post-checkout", FILE, True),
        (b".git/info/attributes", FILE, True),
        (b".git/modules/a/config", FILE, True),
        (b".git/commondir", FILE, True),
        (b".git/worktrees/a/gitdir", FILE, True),
        (b".git/info", LINKED, True),
        (b".git", FILE, True),
        (b".git", LINKED, True),
        (b"repo/.git", FILE, True),
        (b".git", FOLDER, False),
        (b".git", None, False),
        (b".git/HEAD", FILE, False),
        (b"config", FILE, False),
        (b"link", LINKED, False),
        (b"src/hooks/config.py", FILE, False),
        (b".gitconfig", FILE, False),
    ],
)
def test_what_git_would_run_does_not_reach_the_judge(path: bytes, now: TreeEntry | None, stays_out: bool) -> None:
    assert is_run_by_git(TreeChange(path, None, now)) == stays_out


def test_a_judge_takes_no_working_directory_for_a_bare_repository(tmp_path: Path) -> None:
    evil = tmp_path / "evil.sh"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n", encoding="utf-8")
    evil.chmod(0o755)
    work = tmp_path / "work"
    subprocess.run(["git", "init", "-q", work], check=True)
    (work / "file").write_text("one", encoding="utf-8")
    subprocess.run(["git", "add", "file"], cwd=work, check=True)
    for each in (work / ".git").iterdir():
        each.rename(work / each.name)
    (work / ".git").rmdir()
    core = f"[core]\nrepositoryformatversion = 0\nbare = false\nworktree = {work}\nfsmonitor = {evil}\n"
    (work / "config").write_text(core, encoding="utf-8")
    clean = {"PATH": os.environ["PATH"], **JudgeFolders(str(tmp_path), str(tmp_path)).environ()}
    told = subprocess.run(["git", "status"], cwd=work, env=clean, capture_output=True, check=False)
    assert told.returncode and not (tmp_path / "ran").exists()
    subprocess.run(["git", "status"], cwd=work, env={"PATH": os.environ["PATH"]}, capture_output=True, check=False)
    assert (tmp_path / "ran").exists(), "without that it is run"


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
        "<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'aaaa'>]><s><testcase name='&a;'/></s>".encode("utf-16"),
        b"<testcase/><testcase/>",
    ],
)
def test_what_is_no_junit_xml_gives_no_score(data: bytes) -> None:
    with pytest.raises(NoScore):
        junit.read(data)


@pytest.mark.parametrize("element", [b"<a/>", b"<testcase b=''/>", b"<testcase>"])
def test_a_large_report_takes_little_memory_and_time(element: bytes) -> None:
    count = 1_048_000 // len(element)
    data = b"<s>" + element * count + (b"</s>" if element.endswith(b"/>") else b"")
    tracemalloc.start()
    try:
        with contextlib.suppress(NoScore):
            assert junit.read(data).passed == count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000


def test_what_a_repository_in_a_folder_says_is_to_be_run_is_not_run_for_the_patch(tmp_path: Path) -> None:
    """The patch is taken as root: git would look into that folder with its own configuration."""
    filtered = tmp_path / "filter.sh"
    filtered.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexec cat\n", encoding="utf-8")
    filtered.chmod(0o755)
    work, nested = tmp_path / "work", tmp_path / "work" / "nested"
    nested.mkdir(parents=True)

    def git(*argv: str) -> None:
        subprocess.run(["git", *argv], cwd=nested, check=True, capture_output=True)

    def patch(*argv: str) -> bytes:
        script = ["sh", "-c", programs.text("workspace_patch.sh"), "sh", argv[0], str(tmp_path / "base"), *argv[1:]]
        said = subprocess.run(script, cwd=work, check=True, capture_output=True).stdout
        return base64.b64decode(said)

    (nested / "file").write_text("one\n", encoding="utf-8")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.email=nobody@example.com", "-c", "user.name=nobody", "commit", "-qm", "one")
    patch("base")
    git("config", "filter.x.clean", str(filtered))
    (nested / ".gitattributes").write_text("* filter=x\n", encoding="utf-8")
    (nested / "file").write_text("two\n", encoding="utf-8")
    os.utime(nested / "file", (1_000_000_000, 1_000_000_000))
    assert b"+two" in patch("patch", "10000")
    assert not (tmp_path / "ran").exists()
    git("status")
    assert (tmp_path / "ran").exists(), "git by itself runs it"


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
