"""How a promotion's program reaches the directories of a tree: by descriptors, never by a link, each a few times."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image.session.programs.workspace.removal import remove_tree
from image.session.programs.workspace.tree import Tree
from tests.support.promotion_folders import Folders

SHALLOW, DEEP = 30, 120


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "top" / "a" / "b").mkdir(parents=True)
    (tmp_path / "top" / "a" / "c").mkdir()
    (tmp_path / "outside").mkdir()
    found = Tree(str(tmp_path / "top"))
    yield found
    found.close()


def chain(folder: Path, depth: int, mode: int = 0o755) -> None:
    """Folders one in the other, each with a file and a folder beside the next one."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        for name in ("d", "side"):
            os.mkdir(name, mode, dir_fd=here)
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, mode, dir_fd=here))
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)


def arrives(folders: Folders, depth: int) -> None:
    chain(folders["winner"], depth)


def gets_modes(folders: Folders, depth: int) -> None:
    chain(folders["winner"], depth, 0o311 if os.geteuid() == 0 else 0o711)
    chain(folders["base"], depth)
    chain(folders["source"], depth)


def wins(folders: Folders, depth: int) -> None:
    chain(folders["winner"], depth)
    (folders["source"] / "d").write_text("in its place")


def goes(folders: Folders, depth: int) -> None:
    chain(folders["base"], depth)
    chain(folders["source"], depth)


def gives_way(folders: Folders, depth: int) -> None:
    goes(folders, depth)
    (folders["winner"] / "d").write_text("in its place")


@pytest.mark.parametrize("prepare", [arrives, gets_modes, wins, goes, gives_way])
def test_a_promotion_opens_in_proportion_to_the_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Folders, int], None]
) -> None:
    opens = {depth: opens_of(tmp_path / str(depth), depth, monkeypatch, prepare) for depth in (SHALLOW, DEEP)}
    assert opens[DEEP] < opens[SHALLOW] * (DEEP / SHALLOW) * 1.2


def opens_of(root: Path, depth: int, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Folders, int], None]) -> int:
    root.mkdir()
    folders, count, real = Folders(root), 0, os.open
    prepare(folders, depth)

    def counting(path: str | bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        nonlocal count
        count += 1
        return real(path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", counting)
        report = folders.promote("theirs")
    assert report.complete and report.added + report.edited + report.deleted > depth
    for site in ("base", "winner", "source"):  # pytest's own removal calls itself for each folder
        if (folders[site] / "d").is_dir():
            above = os.open(folders[site], os.O_RDONLY)
            remove_tree(b"d", above)
            os.close(above)
    return count


def test_a_folder_that_was_moved_leads_to_nothing_beside_it(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "outside" / "c").mkdir()
    (tmp_path / "outside" / "c" / "precious").touch()
    (tmp_path / "top" / "a" / "c" / "own").touch()
    with tree.directory(b"a/b"):
        (tmp_path / "top" / "a" / "b").rename(tmp_path / "outside" / "b")
    assert tree.names(b"a/c") == [b"own"]


def test_a_link_in_the_place_of_a_folder_is_not_followed_from_where_the_tree_was_left(
    tree: Tree, tmp_path: Path
) -> None:
    (tmp_path / "outside" / "precious").touch()
    assert tree.names(b"a/b") == []
    (tmp_path / "top" / "a" / "b").rename(tmp_path / "moved")
    (tmp_path / "top" / "a" / "b").symlink_to(tmp_path / "outside")
    assert tree.names(b"a/b") == []  # the folder that was found
    tree.start_anew()
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        tree.names(b"a/b")
    assert tree.look(b"a/b/precious") is None


def test_a_folder_that_was_removed_and_made_anew_is_found(tree: Tree, tmp_path: Path) -> None:
    assert tree.names(b"a/b") == []
    (tmp_path / "top" / "a" / "b").rmdir()
    (tmp_path / "top" / "a" / "b").mkdir()
    (tmp_path / "top" / "a" / "b" / "new").touch()
    assert tree.names(b"a/b") == [b"new"]


def test_a_step_that_fails_leaves_the_tree_where_it_can_go_on(tree: Tree) -> None:
    for missing in (b"a/b/x/y", b"x", b"a/x"):
        assert tree.look(missing + b"/z") is None
        assert tree.names(b"a") == [b"b", b"c"]
