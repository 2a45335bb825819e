"""What other promotions left, folders deeper than a program likes, and answers that cannot be."""

from __future__ import annotations

import os
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from image.session.programs import pack_artifacts
from image.session.programs.workspace import operations, removal, tree
from image.session.programs.workspace.tree import Tree
from shared.races import workspace_promotion
from shared.races.workspace_promotion import PromotionRefused
from tests.support.promotion_folders import Folders

RECURSION = 400
DEEP = 500
"""Deeper than Python's limit for functions that call themselves, which is 1000 by default: here it is RECURSION. What a
walk costs grows with the square of the depth."""


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def dig(folder: Path, depth: int) -> None:
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)


def depth_of(folder: Path) -> int:
    here, depth = os.open(folder, os.O_RDONLY), 0
    while "d" in os.listdir(here):  # noqa: PTH208  # a descriptor
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here, depth = deeper, depth + 1
    os.close(here)
    return depth


@pytest.fixture
def deep(folders: Folders) -> Any:
    """Python's own removal calls itself for each folder."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(RECURSION)
    yield folders
    sys.setrecursionlimit(before)
    for site in ("base", "winner", "source"):
        if (folders[site] / "d").is_dir():
            removal.remove_tree(b"d", os.open(folders[site], os.O_RDONLY))


def test_a_deep_folder_is_promoted_and_taken_away_again(deep: Folders) -> None:
    dig(deep["winner"], DEEP)
    (deep["winner"] / "beside").write_text("new")
    done = deep.promote()
    assert (done.added, done.failed, depth_of(deep["source"])) == (DEEP + 1, (), DEEP)
    dig(deep["base"], DEEP)
    removal.remove_tree(b"d", os.open(deep["winner"], os.O_RDONLY))
    done = deep.promote()
    assert (done.deleted, depth_of(deep["source"])) == (DEEP, 0)


def test_a_file_takes_a_deep_folders_place(deep: Folders) -> None:
    dig(deep["base"], DEEP)
    dig(deep["source"], DEEP)
    (deep["winner"] / "d").write_text("a file")
    assert deep.promote().failed == ()
    assert (deep["source"] / "d").read_text() == "a file"


def test_a_folder_that_is_too_deep_is_refused_in_clear_words(deep: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MOST_DEPTH", 20)
    dig(deep["winner"], 30)
    with pytest.raises(PromotionRefused, match="folders more than 20 deep"):
        deep.promote()
    assert depth_of(deep["source"]) == 0


def test_paths_that_are_too_long_in_all_are_refused(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "LONGEST_PATHS", 100)
    for number in range(10):
        (folders["winner"] / f"{number:020}").touch()
    with pytest.raises(PromotionRefused, match="more than 100 bytes in all"):
        folders.promote()


def test_a_folder_that_is_moved_while_it_is_removed_leads_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "going" / "a" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere" / "precious").mkdir(parents=True)
    emptied = removal._without_files

    def moving(fd: int) -> list[bytes]:
        if not os.listdir(fd):
            (tmp_path / "going" / "a" / "b").rename(tmp_path / "elsewhere" / "b")
        return emptied(fd)

    monkeypatch.setattr(removal, "_without_files", moving)
    with pytest.raises(OSError, match="was moved"):
        removal.remove_tree(b"going", os.open(tmp_path, os.O_RDONLY))
    assert (tmp_path / "elsewhere" / "precious").exists()


def test_what_a_killed_promotion_left_goes_with_the_next_one(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = f"race-promotion-{time.time_ns():024x}"[: len("race-promotion-") + 12]
    monkeypatch.setattr(workspace_promotion, "_PREFIX", prefix)
    old, young, scratch, other = (Path("/tmp", f"{prefix}{number:012x}") for number in range(4))
    token = "00ff"
    changes = [["sub/file", None, ["f", 0o644, 1, "0" * 64]]]
    operations.store(str(old), {"token": token, "changes": changes})
    young.write_bytes(b"part")
    (scratch / "deep").mkdir(parents=True)
    other.write_bytes(b"part")
    temporary = folders["source"] / "sub" / f".race-promotion-{token}-1"
    temporary.parent.mkdir()
    temporary.write_bytes(b"half a file")
    hour_ago = time.time() - 3_600
    for path in (old, scratch, other):
        os.utime(path, (hour_ago, hour_ago))
    try:
        (folders["winner"] / "a").write_bytes(b"winner")
        assert folders.promote().added == 1
        assert [path.exists() for path in (old, young, scratch, other)] == [False, True, False, False]
        assert not temporary.exists()
    finally:
        young.unlink()


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"changes": 1, "skipped": []},
        {"changes": [], "skipped": None},
        {"changes": [["a", None]], "skipped": []},
        {"changes": [["../a", None, ["f", 420, 1, "0" * 64]]], "skipped": []},
        {"changes": [["a", ["d", 493, 0, None], ["d", 493, 0, None]]], "skipped": []},
        {"changes": [["a", None, ["o", 0, 0, None]]], "skipped": []},
        {"changes": [["a", None, ["d", True, 0, None]]], "skipped": []},
        {"changes": [["a", None, ["f", 420, 1, "0" * 64]]] * 2, "skipped": []},
        {"changes": [["a", None, ["f", 420, 1, "0" * 64]], ["b", None, ["d", 493, 0, None]]], "skipped": []},
        {"changes": [], "skipped": ["/etc"]},
    ],
)
def test_a_difference_that_makes_no_sense_is_refused(folders: Folders, answer: Any) -> None:
    def diff(tree: Tree, directory: str, parts: str, most: str, most_changes: str, out: str) -> None:
        operations.store(out, answer)

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(operations.OPERATIONS, "diff", diff)
        with pytest.raises(PromotionRefused, match="makes no sense"):
            folders.promote(changes=1)
    folders.check_nothing_is_left()


def test_artifacts_below_a_deep_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dig(tmp_path, 3 * DEEP)
    (tmp_path / "d" / "d" / "found.txt").touch()
    monkeypatch.chdir(tmp_path)
    try:
        assert list(pack_artifacts.found(["**/*.txt"])) == ["d/d/found.txt"]
    finally:
        removal.remove_tree(b"d", os.open(tmp_path, os.O_RDONLY))


def test_a_listing_travels_in_parts_and_one_without_an_end_is_given_up(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace_promotion, "PART_BYTES", 100)
    monkeypatch.setattr(workspace_promotion, "_LARGEST_LISTING", 2_000)
    for number in range(20):
        (folders["winner"] / f"file-{number}").write_bytes(os.urandom(20))
    assert folders.promote().added == 20
    folders.check_nothing_is_left()
    scan, read = operations.scan, folders.read_file
    longest = 0

    def endless(tree: Tree, most: str, size: str, directory: str) -> None:
        scan(tree, most, size, directory)
        for number in range(1_000):
            Path(directory, f"listing-{number}").write_bytes(b"x" * int(size))

    async def reading(sandbox_id: str, path: str, limit: int) -> Any:
        nonlocal longest
        longest = max(longest, limit if "listing" in path else 0)
        return await read(sandbox_id, path, limit)

    monkeypatch.setitem(operations.OPERATIONS, "scan", endless)
    monkeypatch.setattr(folders, "read_file", reading)
    with pytest.raises(PromotionRefused, match="more than 2000 bytes"):
        folders.promote()
    assert longest == 100  # what this process held of it
    folders.check_nothing_is_left()


@pytest.mark.parametrize("value", ["[],", "{},", "1,"])
def test_an_answer_of_many_values_is_refused_before_they_are_made(folders: Folders, value: str) -> None:
    """16 MiB of empty lists would be 400 MB of this process."""

    def check(tree: Tree, asked: str, out: str) -> None:
        Path(out).write_bytes(zlib.compress(f"[{value * 600_000}1]".encode()))

    (folders["winner"] / "a").write_bytes(b"winner")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(operations.OPERATIONS, "check", check)
        with pytest.raises(PromotionRefused, match="too many values"):
            folders.promote()
    folders.check_nothing_is_left()
