"""The programs that travel into sandboxes as text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from image.server.code import source_files
from image.session import programs

FOLDER: Final = Path(programs.__file__).parent
SCRIPTS: Final = sorted(path.name for path in FOLDER.glob("*.sh"))
# What the shell of a race sends after sweep.sh.
ON_SWEEP: Final = ("run_program.sh", "salvage_output.sh", "end_leftovers.sh")


def shellcheck(text: str) -> str:
    command = [str(Path(sys.executable).with_name("shellcheck")), "--norc", "--format=gcc", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_accepts_each_script(name: str) -> None:
    assert shellcheck(programs.text(name)) == ""


@pytest.mark.parametrize("name", ON_SWEEP)
def test_shellcheck_accepts_what_stands_on_the_sweep(name: str) -> None:
    assert shellcheck(programs.text("sweep.sh", name)) == ""


def test_shellcheck_would_find_something() -> None:
    assert "SC2086" in shellcheck("# shellcheck shell=sh\nrm $1\n")


def test_every_program_is_among_the_files_that_a_deployment_carries() -> None:
    here = {
        f"image/session/programs/{path.relative_to(FOLDER)}" for path in FOLDER.rglob("*.*") if path.suffix != ".pyc"
    }
    assert here and here <= source_files().keys()


def test_a_sandbox_that_hides_its_processes_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """Without /proc the list is empty, which proves nothing."""
    (tmp_path / "bin").mkdir()
    text = programs.text("sweep.sh", "end_leftovers.sh").replace("/proc", str(tmp_path / "no-proc"))
    text = text.replace("kill -s KILL -- -1", ":").replace('"$(id -u)" != 0', "x = x")
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    done = subprocess.run(["sh", "-c", text, "sh", user, str(tmp_path)], cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 9
