"""Promotion between plain folders, by the very program that runs in the sandboxes."""

# Names are bytes here, which pathlib does not know.

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from image.session.programs.workspace import PARTS, operations, program
from image.session.programs.workspace.applying import Apply
from image.session.programs.workspace.entries import TEMPORARY, TreeChange
from image.session.programs.workspace.tree import Tree
from image.session.programs.workspace.verdicts import Judged, judge
from shared.ports import (
    CommandOutput,
)
from shared.races import workspace_promotion
from shared.races.workspace_promotion import (
    PromotionRefused,
    WorkspacePromotion,
)
from tests.support.folder_models import read
from tests.support.promotion_folders import Folders


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_a_program_of_its_own_does_it_too_and_large_contents_travel_in_parts(tmp_path: Path) -> None:
    folders = Folders(tmp_path, real=True)
    folders.everywhere(lambda folder: (folder / "kept").write_bytes(b"kept"))
    large = os.urandom(3 * workspace_promotion.PART_BYTES + 17)
    for name, data in (("large", large), ("small", b"small"), ("copy", large), ("empty", b"")):
        (folders["winner"] / name).write_bytes(data)
    (folders["winner"] / "kept").chmod(0o755)
    report = folders.promote()
    assert (report.added, report.edited, report.data) == (4, 1, len(large) + 5)
    assert read(folders["source"]) == read(folders["winner"])
    folders.check_nothing_is_left()


def test_sockets_and_pipes_are_named_and_left_alone(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders["winner"])
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        (folders["winner"] / "file").write_bytes(b"1")
        report = folders.promote()
    assert report.skipped == ("pipe", "socket")
    assert read(folders["source"]).keys() == {b"file"}


def test_no_link_leads_a_change_out_of_the_workspace(folders: Folders, tmp_path: Path) -> None:
    folders.everywhere(lambda folder: (folder / "folder").mkdir())
    outside = tmp_path / "outside"
    outside.mkdir()
    (folders["winner"] / "folder" / "file").write_bytes(b"1")
    (folders["source"] / "folder").rmdir()
    (folders["source"] / "folder").symlink_to(outside)
    with pytest.raises(PromotionRefused) as refused:
        folders.promote()
    assert refused.value.conflicts == ("folder/file",)
    assert folders.promote("ours").conflicts == ("folder/file",)
    assert (folders["source"] / "folder").is_symlink()
    assert folders.promote("theirs").complete
    assert (folders["source"] / "folder" / "file").read_bytes() == b"1"
    assert not list(outside.iterdir())


def test_what_the_worker_changes_in_between_is_left_and_told(folders: Folders) -> None:
    folders.everywhere(lambda folder: (folder / "edited").write_bytes(b"old"))
    for name in ("edited", "made", "fine"):
        (folders["winner"] / name).write_bytes(b"winner")

    def judging(tree: Tree, changes: list[TreeChange]) -> list[Judged]:
        judged = judge(tree, changes)
        if changes[0].path == b"edited" and applying:
            (folders["source"] / "edited").write_bytes(b"worker")
            (folders["source"] / "made").write_bytes(b"worker")
        return judged

    applying: list[str] = []
    folders.before = lambda operation: applying.append(operation) if operation == "apply" else None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(operations, "judge", judging)
        report = folders.promote()
    assert set(report.overtaken) == {"edited", "made"}
    assert not report.complete
    assert (report.added, report.edited) == (1, 0)
    found = {path: node[-1] for path, node in read(folders["source"]).items()}
    assert found == {b"edited": b"worker", b"made": b"worker", b"fine": b"winner"}
    folders.check_nothing_is_left()


def test_a_folder_that_becomes_a_link_in_between_is_not_followed(folders: Folders, tmp_path: Path) -> None:
    folders.everywhere(lambda folder: (folder / "folder").mkdir())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "old").write_bytes(b"old")
    folders.everywhere(lambda folder: (folder / "folder" / "old").write_bytes(b"old"))
    (folders["winner"] / "folder" / "new").write_bytes(b"1")
    (folders["winner"] / "folder" / "old").write_bytes(b"2")
    real = Apply.run

    def run(self: Apply, judged: list[Judged]) -> None:
        shutil.rmtree(folders["source"] / "folder")
        (folders["source"] / "folder").symlink_to(outside)
        real(self, judged)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Apply, "run", run)
        report = folders.promote()
    assert set(report.overtaken) == {"folder/new", "folder/old"}
    assert [(each.name, each.read_bytes()) for each in outside.iterdir()] == [("old", b"old")]


def test_what_the_source_put_into_a_folder_is_not_lost_when_the_winner_made_it_a_file(folders: Folders) -> None:
    folders.everywhere(lambda folder: (folder / "d").mkdir())
    (folders["winner"] / "d").rmdir()
    (folders["winner"] / "d").write_bytes(b"file")
    (folders["source"] / "d" / "new").write_bytes(b"mine")
    with pytest.raises(PromotionRefused) as refused:
        folders.promote()
    assert refused.value.conflicts == ("d",)
    assert folders.promote("ours").conflicts == ("d",)
    assert (folders["source"] / "d" / "new").read_bytes() == b"mine"
    assert folders.promote("theirs").complete
    assert (folders["source"] / "d").read_bytes() == b"file"


def test_folders_get_their_modes_when_all_is_done_in_them(folders: Folders) -> None:
    folders.everywhere(lambda folder: (folder / "kept").mkdir(mode=0o755))
    for name in ("kept", "made"):
        (folders["winner"] / name).mkdir(exist_ok=True)
        (folders["winner"] / name / "file").write_bytes(b"1")
        (folders["winner"] / name).chmod(0o555)
    assert folders.promote().complete
    assert read(folders["source"]) == read(folders["winner"])


def test_what_lies_below_a_conflict_is_one_too(folders: Folders) -> None:
    folders.everywhere(lambda folder: (folder / "p").write_bytes(b"old"))
    (folders["source"] / "p").write_bytes(b"mine")
    (folders["winner"] / "p").unlink()
    (folders["winner"] / "p").mkdir()
    (folders["winner"] / "p" / "x").write_bytes(b"theirs")
    report = folders.promote("ours")
    assert (report.conflicts, report.added, report.complete) == (("p", "p/x"), 0, True)
    assert (folders["source"] / "p").read_bytes() == b"mine"


def test_contents_that_arrive_damaged_change_nothing(folders: Folders) -> None:
    (folders["winner"] / "a").write_bytes(b"right")

    async def read_file(sandbox_id: str, path: str, limit: int) -> bytes:
        data = Path(path).read_bytes()
        return b"wrong" if data == b"right" else data

    folders.read_file = read_file  # type: ignore[method-assign]  # a line that turns bytes
    with pytest.raises(PromotionRefused, match="damaged"):
        folders.promote()
    assert read(folders["source"]) == {}


def test_the_temporary_names_of_an_apply_that_was_killed_are_swept(folders: Folders) -> None:
    (folders["winner"] / "a").write_bytes(b"winner")

    def killed(tree: Tree, asked: str, directory: str, out: str) -> None:
        token = operations.load(asked)["token"]
        (folders["source"] / f"{TEMPORARY.decode()}{token}-1").write_bytes(b"half")
        raise RuntimeError

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(operations.OPERATIONS, "apply", killed)
        report = folders.promote()
    assert not report.complete
    assert read(folders["source"]) == {}
    folders.check_nothing_is_left()


def test_a_conflict_that_arises_after_the_check_refuses_all(folders: Folders) -> None:
    for name in ("a", "b"):
        (folders["winner"] / name).write_bytes(b"winner")

    def before(operation: str) -> None:
        if operation == "apply":
            (folders["source"] / "b").write_bytes(b"worker")

    folders.before = before
    with pytest.raises(PromotionRefused) as refused:
        folders.promote()
    assert refused.value.conflicts == ("b",)
    assert read(folders["source"]).keys() == {b"b"}
    folders.check_nothing_is_left()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"data": 10}, "bytes of content"),
        ({"entries": 1}, "more than 1 entries"),
        ({"changes": 1}, "more than 1 changes"),
    ],
)
def test_what_is_too_much_is_refused_with_its_bound(folders: Folders, limits: Mapping[str, int], reason: str) -> None:
    for name in ("a", "b"):
        (folders["winner"] / name).write_bytes(name.encode() * 20)
    with pytest.raises(PromotionRefused, match=reason):
        folders.promote("refuse", **limits)
    assert read(folders["source"]) == {}
    folders.check_nothing_is_left()


def test_an_apply_whose_answer_is_lost_is_done_again_and_makes_no_difference(folders: Folders) -> None:
    (folders["winner"] / "a").write_bytes(b"winner")
    lost: list[str] = []

    def lose(call: str) -> bool:
        lost.extend([call] if call == "apply source" else [])
        return call == "apply source" and len(lost) == 1

    folders.lose = lose
    report = folders.promote()
    assert (report.already, report.complete) == (1, True)
    assert read(folders["source"]) == read(folders["winner"])


@pytest.mark.parametrize("ends", [True, False])
def test_an_apply_that_is_still_at_work_behind_a_lost_answer_is_not_told_as_refused(
    folders: Folders, ends: bool
) -> None:
    (folders["winner"] / "a").write_bytes(b"winner")
    applies: list[str] = []

    def before(call: str) -> None:
        if call == "apply":
            applies.append(call)
            if len(applies) > 1:
                (folders["source"] / "a").write_bytes(b"winner" if ends and len(applies) > 2 else b"half of it")

    folders.before = before
    folders.lose = lambda call: call == "apply source" and len(applies) == 1
    report = folders.promote()
    assert (report.already, report.complete) == ((1, True) if ends else (0, False))
    assert ends or "it is not known" in report.failed[0]
    folders.check_nothing_is_left()


def test_an_apply_that_never_answers_is_told_as_unknown_and_not_as_refused(folders: Folders) -> None:
    (folders["winner"] / "a").write_bytes(b"winner")
    folders.lose = lambda call: call == "apply source"
    report = folders.promote()
    assert not report.complete
    assert "it is not known" in report.failed[0]
    folders.check_nothing_is_left()


@pytest.mark.parametrize(
    "call", ["diff base", "write base", "scan winner", "check source", "pack winner", "read winner", "write source"]
)
def test_a_step_before_the_first_change_that_fails_refuses_and_cleans_up(folders: Folders, call: str) -> None:
    (folders["winner"] / "a").write_bytes(b"winner")
    folders.lose = lambda each: each == call
    with pytest.raises(PromotionRefused):
        folders.promote()
    assert read(folders["source"]) == {}
    assert not [each for each in folders.written if Path(each).exists()]


def test_our_own_temporary_names_are_not_promoted(folders: Folders) -> None:
    (folders["winner"] / f"{TEMPORARY.decode()}0-1").write_bytes(b"left over")
    assert folders.promote() == WorkspacePromotion()
    assert read(folders["source"]) == {}


@pytest.mark.parametrize(
    "rows",
    [
        [["../out", "f", 420, 1, "0" * 64]],
        [["/etc/passwd", "f", 420, 1, "0" * 64]],
        [["a", "f", 0o7777, 1, "0" * 64]],
        [["a", "f", 420, -1, "0" * 64]],
        [["a", "f", 420, 1, "zz"]],
        [["a/b", "f", 420, 1, "0" * 64]],
        [["a", "l", 0, 0, None]],
        [["a", "x", 0, 0, None]],
        {"a": 1},
        [[1, 2, 3, 4, 5]],
    ],
)
def test_a_listing_that_makes_no_sense_is_refused(folders: Folders, rows: Any) -> None:
    (folders["winner"] / "a").write_bytes(b"winner")

    def scan(tree: Tree, most: str, size: str, directory: str) -> None:
        operations.store(f"{directory}/listing-0", rows)

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(operations.OPERATIONS, "scan", scan)
        with pytest.raises(PromotionRefused, match="makes no sense"):
            folders.promote()
    folders.check_nothing_is_left()


def test_without_python_in_the_sandbox_the_reason_is_clear(folders: Folders) -> None:
    async def run(*args: Any, **kwargs: Any) -> CommandOutput:
        return CommandOutput(127, "", "", timed_out=False)

    folders.run = run  # type: ignore[method-assign]  # a sandbox without an interpreter
    with pytest.raises(PromotionRefused, match="no Python"):
        folders.promote()


def test_the_program_keeps_to_what_an_old_python_reads() -> None:
    import ast

    assert len(program().encode()) < 100_000  # an argument has at most 128 KiB
    ast.parse(program(), feature_version=(3, 8))
    folder = Path(operations.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", *PARTS}
    travelling: set[str] = set()
    for part in PARTS:
        source = ast.parse((folder / f"{part}.py").read_text(), feature_version=(3, 8))
        for node in ast.walk(source):
            if isinstance(node, ast.Import):
                assert {name.name for name in node.names} <= sys.stdlib_module_names, part
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                assert module in travelling or module.partition(".")[0] in sys.stdlib_module_names, part
        travelling.add(f"image.session.programs.workspace.{part}")
