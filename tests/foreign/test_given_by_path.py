"""FOREIGN_PATH: another release or a checkout of somebody's code, in place of what is installed."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.foreign_path import VARIABLE, folders, given_in
from tests.support.preloaded import forked_run

SAY_WHERE = "import tests, standardwebhooks; print(standardwebhooks.__file__)"


@pytest.mark.skipif(not folders(os.environ), reason=f"{VARIABLE} is not set")
def test_what_is_given_by_path_is_what_is_tested() -> None:
    for name, origin in given_in(folders(os.environ)).items():
        assert importlib.import_module(name).__file__ == origin
        said = forked_run(["-c", f"import {name}; print({name}.__file__)"], cwd=ROOT)
        assert said.stdout.strip() == origin, said.stderr


def _started(path: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, VARIABLE: path}
    return subprocess.run([sys.executable, "-c", SAY_WHERE], cwd=ROOT, env=environ, capture_output=True, text=True)


def test_a_folder_comes_before_what_is_installed(tmp_path: Path) -> None:
    installed = PathFinder.find_spec("standardwebhooks")
    assert installed is not None and installed.origin is not None
    copied = shutil.copytree(Path(installed.origin).parent, tmp_path / "their code" / "standardwebhooks")
    said = _started(str(copied.parent))
    assert said.stdout.strip() == str(copied / "__init__.py"), said.stderr


@pytest.mark.parametrize("name", ["nothing", "absent"])
def test_a_folder_without_any_of_their_code_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "nothing").mkdir()
    said = _started(str(tmp_path / name))
    assert said.returncode == 1
    assert said.stderr.strip().startswith(f"{VARIABLE}: {tmp_path / name} has none of anthropic, ")
