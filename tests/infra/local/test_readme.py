"""The emulator's own README: its example runs, and what it names is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import infra.local
from tests.support.preloaded import forked_run

FOLDER = Path(infra.local.__file__).parent
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_as_it_stands() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    done = forked_run(["-c", example], cwd=FOLDER.parents[1])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:claude|tensorlake)/\w+\.py|\w+\.py)`", TEXT))))
def test_each_file_that_it_names_is_there(name: str) -> None:
    assert (FOLDER / name).is_file() or (FOLDER / "tensorlake" / name).is_file() or (FOLDER / "claude" / name).is_file()


def test_the_package_offers_its_interface_and_imports_none_of_it_by_itself() -> None:
    code = "import sys, infra.local; print('httpx2' in sys.modules, 'anthropic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER.parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
    assert all(getattr(infra.local, name) for name in infra.local.__all__)
    with pytest.raises(AttributeError, match="Unheard"):
        _ = infra.local.Unheard
