"""Files of a sandbox in parts: what is believed of a list, where a copy goes on. The program runs as it is."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from image.session.programs import files as program
from shared.ports import CommandOutput
from shared.sandbox_files import FileEntry, FilesError, Piece, SandboxFiles, pieces, stays_inside, tree_of


class ThisMachine:
    """As much of a host as the files need: its sandbox is this machine."""

    answer: str | None = None

    async def run(self, sandbox_id: str, command: str, args: Any, *, limit: int, **_: object) -> CommandOutput:
        if self.answer is not None:
            return CommandOutput(0, self.answer, "", False)
        own = [sys.executable if each.endswith("/venv/bin/python") else each for each in args]
        done = subprocess.run([command, *own], capture_output=True, text=True, timeout=90)
        assert len(done.stdout) <= limit
        return CommandOutput(done.returncode, done.stdout, done.stderr, False)

    async def write_file(self, sandbox_id: str, path: str, data: bytes) -> None:
        Path(path).write_bytes(data)

    async def delete_file(self, sandbox_id: str, path: str) -> None:
        Path(path).unlink()


def awaited(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path, len(data), 0o644, 0, hashlib.sha256(data).hexdigest())


@awaited
async def test_what_is_written_in_parts_is_read_in_parts(tmp_path: Path) -> None:
    files = SandboxFiles(ThisMachine(), "box", user=None)  # type: ignore[arg-type]
    root = str(tmp_path / "there")
    data = {"big": os.urandom(250_000), "deep/er/small": b"x", "empty": b""}
    entries = [entry(path, content) for path, content in data.items()]
    assert await files.kind(root) == "none" and await files.present(root, entries) == [0, 0, 0]
    calls = list(pieces([(each, 0) for each in entries], part=100_000))
    assert [[(p.file.path, p.length) for p in call] for call in calls] == [
        [("big", 100_000)],
        [("big", 100_000)],
        [("big", 50_000), ("deep/er/small", 1), ("empty", 0)],
    ]

    def filled(call: list[Piece]) -> list[tuple[Piece, bytes]]:
        return [(p, data[p.file.path][p.offset : p.offset + p.length]) for p in call]

    await files.write(root, filled(calls[0]))
    assert not (tmp_path / "there" / "big").exists()  # not before it is whole
    assert await files.present(root, entries) == [100_000, 0, 0]
    for call in calls[1:]:
        await files.write(root, filled(call))
    assert await files.present(root, entries) == [250_000, 1, 0]
    await files.finish(root, [("folder", 0o750)], [("link", "deep/er")])
    tree = await files.tree(root)
    assert {each.path: each.sha256 for each in tree.files} == {each.path: each.sha256 for each in entries}
    assert ("folder", 0o750) in tree.folders and tree.links == [("link", "deep/er")] and tree.complete
    calls = list(pieces([(each, 0) for each in tree.files], part=64_000))
    read = [piece for call in calls for piece in await files.read(root, call)]
    assert b"".join(read) == b"".join(data[each.path] for each in tree.files)
    assert not (await files.tree(root, most=2)).complete
    flat = await files.tree(root, how="flat")
    assert {each.path for each in flat.files} == {"big", "empty"}


@awaited
async def test_what_arrives_otherwise_than_it_was_sent_is_no_file(tmp_path: Path) -> None:
    files = SandboxFiles(ThisMachine(), "box", user=None)  # type: ignore[arg-type]
    wrong = Piece(entry("a", b"right"), 0, 5)
    with pytest.raises(FilesError, match="did not arrive as it was sent"):
        await files.write(str(tmp_path), [(wrong, b"wrong")])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FilesError, match="No such file"):
        await files.tree(str(tmp_path / "none"))


@awaited
async def test_no_link_on_the_way_is_followed(tmp_path: Path) -> None:
    files = SandboxFiles(ThisMachine(), "box", user=None)  # type: ignore[arg-type]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("s")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out").symlink_to("../outside")
    with pytest.raises(FilesError, match="Not a directory"):
        await files.write(str(tmp_path / "root"), [(Piece(entry("out/new", b"x"), 0, 1), b"x")])
    with pytest.raises(FilesError, match="Not a directory"):
        await files.read(str(tmp_path / "root"), [Piece(entry("out/secret", b"s"), 0, 1)])
    with pytest.raises(program.FileFailed, match="leads elsewhere"):
        program.add(str(tmp_path / "root"), "../outside/x", 0, b"", 0, "0" * 64, 0o644)


@pytest.mark.parametrize("answer", ["", "no JSON", '["f", "a", -1, 0, 0, ""]\n["end", true]', "{}", '["end", 1]'])
@awaited
async def test_a_list_that_is_none_is_refused(answer: str) -> None:
    machine = ThisMachine()
    machine.answer = answer
    files = SandboxFiles(machine, "box", user=None)  # type: ignore[arg-type]
    if answer.startswith('["f"'):
        assert (await files.tree("/r")).left_out == [("a", "its name cannot be used")]
        return
    with pytest.raises(FilesError):
        await files.tree("/r")


def test_names_that_lead_elsewhere_are_left_out() -> None:
    bad = ["../a", "/etc/passwd", "a/../../b", "a//b", "a\nb", "a\x1b[2Jb", "./a", "x" * 5000]
    rows = [["f", path, 1, 0o4777, 0, ""] for path in [*bad, "good"]]
    tree = tree_of([*rows, ["end", True]], "/r")
    assert [(each.path, each.mode) for each in tree.files] == [("good", 0o777)]
    assert len(tree.left_out) == len(bad) and all(path.isprintable() for path, _ in tree.left_out)
    with pytest.raises(FilesError, match="named a file twice"):
        tree_of([["f", "a", 1, 0, 0, ""]] * 2 + [["end", True]], "/r")


def test_a_link_stays_inside_or_is_not_made() -> None:
    assert stays_inside("a/b/link", "../c") and stays_inside("link", "x/y")
    assert not stays_inside("a/link", "../../etc") and not stays_inside("link", "/etc/passwd")
