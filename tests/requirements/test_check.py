"""The check that the locks follow pyproject.toml."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from requirements.check import CHECKOUT, problems


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    shutil.copytree(CHECKOUT / "requirements", tmp_path / "requirements")
    return tmp_path


def edit(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before
    path.write_text(after, encoding="utf-8")


def test_the_committed_locks_are_in_step() -> None:
    assert list(problems()) == []


def test_a_new_dependency_shows(copy: Path) -> None:
    edit(copy / "pyproject.toml", lambda text: text.replace('"httptools>=0.6",', '"httptools>=0.6",\n  "polars>=1",'))
    assert [line for line in problems(copy) if "polars is missing" in line]


def test_a_package_of_a_group_within_a_group_counts(copy: Path) -> None:
    edit(copy / "pyproject.toml", lambda text: text.replace('build = ["hatchling>=1.27"]', 'build = ["flit-core>=3"]'))
    found = list(problems(copy))
    assert {line.partition(":")[0] for line in found if "flit-core is missing" in line} == {"dev.lock", "user.lock"}
    assert [line for line in found if "hatchling is not asked for any more" in line]


def test_a_new_bound_shows(copy: Path) -> None:
    edit(copy / "pyproject.toml", lambda text: text.replace("uvicorn>=0.54,<1", "uvicorn>=900"))
    assert [line for line in problems(copy) if "uvicorn is" in line and ">=900" in line]


def test_a_dropped_dependency_shows(copy: Path) -> None:
    edit(copy / "pyproject.toml", lambda text: text.replace('  "httptools>=0.6",\n', ""))
    assert [line for line in problems(copy) if "httptools is not asked for any more" in line]


def test_locks_that_disagree_show(copy: Path) -> None:
    edit(copy / "requirements" / "runtime.lock", lambda text: text.replace("pydantic==2", "pydantic==1"))
    assert [line for line in problems(copy) if "pydantic is 1" in line]


def test_a_lock_without_hashes_or_with_an_address_shows(copy: Path) -> None:
    lock = copy / "requirements" / "worker.lock"
    edit(lock, lambda text: "# https://example.invalid\n" + text.replace("--hash=sha256:", "--hsh="))
    found = list(problems(copy))
    assert [line for line in found if "has no hash" in line]
    assert "worker.lock: names an address" in found
