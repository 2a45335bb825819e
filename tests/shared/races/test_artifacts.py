"""What a branch leaves in files: the program that finds them, run on plain folders as a sandbox would run it."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from image.session.programs import pack_artifacts
from image.session.programs.pack_artifacts import matches
from shared.races import artifacts
from shared.races.report import Artifact
from shared.races.shell import NotRun, Printed, SandboxShell
from tests.support.fake_host import FakeHost


class Here(SandboxShell):
    """A shell whose sandbox is a folder of this machine."""

    async def python(
        self, sandbox_id: str, program: str, args: object, timeout: float, limit: int = 0
    ) -> Printed | NotRun:
        assert isinstance(args, tuple)
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program, *args], cwd=self.workdir, capture_output=True, check=True
        )
        return Printed(done.stdout.decode("ascii"))


def collected(folder: Path, *globs: str, budget: int = 1_000) -> tuple[tuple[Artifact, ...], str | None]:
    shell = Here(FakeHost(), "agent", str(folder))
    return asyncio.run(artifacts.collect(globs, shell=shell, sandbox_id="any", budget=budget))


@pytest.mark.parametrize(
    ("path", "glob", "fits"),
    [
        ("a.txt", "*.txt", True),
        ("b/a.txt", "*.txt", False),
        ("b/a.txt", "*/a.txt", True),
        ("a.txt", "**/a.txt", True),
        ("b/c/a.txt", "**/a.txt", True),
        ("b/c/a.txt", "b/**", True),
        ("b", "b/**", False),
        ("b/c/d/a.txt", "b/**/d/*.txt", True),
        ("b/d/a.txt", "b/**/d/*.txt", True),
        ("b/c/a.txt", "b/**/d/*.txt", False),
        ("a1", "a[0-9]", True),
        ("ab", "a?", True),
        ("A", "a", False),
    ],
)
def test_a_glob_fits_a_path_part_by_part(path: str, glob: str, fits: bool) -> None:
    assert matches(path.split("/"), glob.split("/")) is fits


def test_small_files_come_whole_and_the_rest_is_listed(tmp_path: Path) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    contents: Final = {"out/a.bin": bytes(range(256)), "out/b.log": b"x" * 900, "out/deep/c": b"", "other": b"no"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    files, reason = collected(tmp_path, "out/**", budget=1_000)
    assert reason is None
    assert [(file.path, file.size) for file in files] == [("out/a.bin", 256), ("out/b.log", 900), ("out/deep/c", 0)]
    assert base64.b64decode(files[0].base64 or "") == contents["out/a.bin"]
    assert (files[1].base64, files[1].truncated) == (None, "larger than what is left of the branch's 1000 bytes")
    assert (files[2].base64, files[2].truncated) == ("", None)


def test_no_link_and_nothing_but_files_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "secret").write_text("secret")
    (inside / "link").symlink_to(outside / "secret")
    (inside / "folder").symlink_to(outside)
    os.mkfifo(inside / "pipe")
    (inside / "file").write_text("fine")
    files, _ = collected(inside, "**")
    assert [file.path for file in files] == ["file"]


def test_a_name_may_hold_any_bytes(tmp_path: Path) -> None:
    for name in (b"new\nline", b"not \xff utf-8", "grün".encode(), b'"quoted\\'):
        (Path(os.fsdecode(tmp_path)) / os.fsdecode(name)).write_bytes(b"1")
    files, reason = collected(tmp_path, "*")
    assert {file.path for file in files} == {"new\nline", "not \\xff utf-8", "grün", '"quoted\\'}
    assert reason is None


def test_many_files_are_cut_off_and_it_is_said(tmp_path: Path) -> None:
    for number in range(artifacts.MOST_FILES + 1):
        (tmp_path / f"{number:04}").touch()
    files, reason = collected(tmp_path, "*")
    assert len(files) == artifacts.MOST_FILES
    assert reason == f"artifacts: only the first {artifacts.MOST_FILES} files are listed"


def test_long_answers_are_cut_into_lines(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(100_000))
    args = ('["*"]', "200000", "5")
    program = Path(pack_artifacts.__file__).read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, *args], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert max(map(len, done.stdout.splitlines())) == pack_artifacts.LINE
    assert base64.b64decode(collected(tmp_path, "*", budget=200_000)[0][0].base64 or "")


@pytest.mark.parametrize(
    "printed", ["", "[]", '{"files": [[1]], "more": 1}', '{"files": [["a", "b", 1, 2]], "more": 1}']
)
def test_an_answer_that_makes_no_sense_costs_the_artifacts_alone(printed: str) -> None:
    class Odd(SandboxShell):
        async def python(
            self, sandbox_id: str, program: str, args: object, timeout: float, limit: int = 0
        ) -> Printed | NotRun:
            return Printed(printed)

    found = artifacts.collect(["*"], shell=Odd(FakeHost(), "agent", "/"), sandbox_id="any", budget=1)
    assert asyncio.run(found) == ((), "artifacts: the sandbox gave no clear answer")
