"""`make setup` installs the project itself: editable, offline, again only where it has to."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

TALE = """#!/bin/sh
[ "$1" = -c ] || printf '%s\\n' "$*" >> told
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout with the locked packages in place. Its Python writes down what it was asked to do."""
    folder = tmp_path / "a folder"
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    shutil.copy(folder / "requirements" / "user.lock", folder / ".venv" / "made-from.lock")
    python = folder / ".venv" / "bin" / "python"
    python.write_text(TALE, encoding="utf-8")
    python.chmod(0o755)
    return folder


def set_up(folder: Path) -> list[str]:
    """What Python was asked to do."""
    told = folder / "told"
    told.unlink(missing_ok=True)
    subprocess.run(["sh", "requirements/install.sh"], cwd=folder, check=True, timeout=60)
    return told.read_text(encoding="utf-8").splitlines() if told.exists() else []


def test_the_project_is_installed_once_and_without_an_index(folder: Path) -> None:
    (asked,) = set_up(folder)
    assert {"--editable", "--no-index", "--no-deps", "--no-build-isolation"} <= set(asked.split())
    assert set_up(folder) == []


def test_a_checkout_that_was_moved_is_installed_again(folder: Path) -> None:
    set_up(folder)
    moved = folder.rename(folder.with_name("moved"))
    assert len(set_up(moved)) == 1


def test_the_command_runs_from_any_folder(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("hands")
    shown = subprocess.run([command, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    assert "doctor" in shown.stdout


def test_the_package_says_whose_it_is_and_what_one_may_do_with_it() -> None:
    metadata = importlib.metadata.metadata("serverless-hands")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "the Serverless Hands authors"
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence and "the Serverless Hands authors" in licence
