"""The tests with the newest and with the oldest releases that pyproject.toml allows, on each Python that is here
(`make drift`).

The committed locks say what is installed; the ranges say what may be. This command makes an environment of its own for
each combination, in a folder that it deletes again, runs the tests that meet the SDKs there, and says in a table which
releases differ from the locks and which tests fail. Nothing of the checkout and of `.venv` is changed. Releases come
from where uv finds them (UV_DEFAULT_INDEX, UV_INDEX, ...). Exit codes: 0 all tests passed everywhere, 1 not, 2 an
environment could not be made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.drift.report import Outcome, Trial, outcome_of, page
from tests.support.checkout import ROOT

PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
SUITES: Final = (
    "tests/conformance",
    "tests/image/session",
    "tests/infra/local",
    "tests/foreign",
    "tests/shared/adapters",
)
"""What meets the SDKs: both ports on real sockets, the worker, the offline services under the SDKs, foreign clients."""
_AGAIN: Final = ("--reruns", "1", "-rR")
"""What fails on a busy machine alone passes when it is run once more, and the page names it."""
_SETTLED: Final = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}


class EnvironmentNotMade(Exception):
    """An environment could not be made. The text says what uv said."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drift", description=__doc__)
    parser.add_argument(
        "--python", action="append", help=f"a version, more than once; default: of {PYTHONS} what is here"
    )
    parser.add_argument(
        "--releases", choices=("newest", "oldest"), help="default: newest on each Python, oldest on one"
    )
    parser.add_argument("--workers", type=int, default=2, help="tests at once")
    parser.add_argument("suites", nargs="*", default=SUITES)
    given = parser.parse_args()
    try:
        versions = given.python or here(PYTHONS)
        trials = plan(versions, given.releases)
        locked = installed(Path(sys.executable))
        found = []
        for trial in trials:
            print(f"{trial} ...", file=sys.stderr, flush=True)
            found.append(attempt(trial, locked, given.suites, given.workers))
            print(f"  {found[-1].summary()}", file=sys.stderr, flush=True)
    except EnvironmentNotMade as error:
        print(error, file=sys.stderr)
        return 2
    print(page(found, absent=[each for each in PYTHONS if not given.python and each not in versions]))
    return 0 if all(each.failed == () and each.passed for each in found) else 1


def here(versions: Sequence[str]) -> list[str]:
    """Those of which an interpreter is found. Raises EnvironmentNotMade where there is none."""
    found = [version for version in versions if _interpreter(version) is not None]
    if not found:
        raise EnvironmentNotMade(f"no Python of {', '.join(versions)} is here")
    return found


def plan(versions: Sequence[str], releases: str | None) -> list[Trial]:
    """Oldest on the oldest Python alone: what is old has no wheels for a new one."""
    newest = [Trial("newest", version) for version in versions] if releases != "oldest" else []
    oldest = [Trial("oldest", versions[0])] if releases != "newest" else []
    return [*newest, *oldest]


def attempt(trial: Trial, locked: Mapping[str, str], suites: Sequence[str], workers: int) -> Outcome:
    """Raises EnvironmentNotMade."""
    with tempfile.TemporaryDirectory(prefix="hands-drift-") as folder:
        Path(folder).chmod(0o755)  # some tests are an ordinary user's
        python = environment(trial, Path(folder))
        report = Path(folder) / "report.xml"
        command = [str(python), "-m", "pytest", "-n", str(workers), f"--junit-xml={report}", *_AGAIN, *suites]
        run = subprocess.run(
            command, cwd=ROOT, env=_environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if not report.exists():
            raise EnvironmentNotMade(f"the tests could not be run with {trial}:\n{run.stdout[-3000:]}")
        return outcome_of(trial, locked, installed(python), report.read_bytes(), run.stdout)


def environment(trial: Trial, folder: Path) -> Path:
    """Makes it; its interpreter. What the project needs at run time is as old as asked for, tools of tests are new.
    Raises EnvironmentNotMade."""
    home, pins = folder / "venv", folder / "pins.txt"
    interpreter = _interpreter(trial.python)
    if interpreter is None:
        raise EnvironmentNotMade(f"no Python {trial.python} is here")
    _uv("venv", "--quiet", "--python", interpreter, str(home))
    python = home / "bin" / "python"
    resolution = {"newest": "highest", "oldest": "lowest-direct"}[trial.releases]
    common = ("--quiet", "--python", str(python))
    _uv("pip", "compile", *common, "--resolution", resolution, "--all-extras", "pyproject.toml", "-o", str(pins))
    _uv("pip", "install", *common, "-r", str(pins), "--group", "dev", "--editable", ".")
    return python


def installed(python: Path) -> Mapping[str, str]:
    """The versions of what is installed there, by name."""
    listed = _uv("pip", "list", "--quiet", "--format", "json", "--python", str(python))
    return {each["name"]: each["version"] for each in json.loads(listed)}


def _interpreter(version: str) -> str | None:
    """One that is here already, pyenv's included, which uv does not find by itself: nothing is downloaded."""
    of_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python")
    for wanted in (version, *sorted(map(str, of_pyenv), reverse=True)):
        try:
            return _uv("python", "find", "--no-python-downloads", "--no-project", "--system", wanted).strip()
        except EnvironmentNotMade:
            continue
    return None


def _uv(*args: str) -> str:
    """Its standard output. Raises EnvironmentNotMade."""
    run = subprocess.run(
        [sys.executable, "-m", "uv", *args], cwd=ROOT, env=_environ(), capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise EnvironmentNotMade(f"uv {' '.join(args[:2])} failed:\n{run.stderr.strip()[-3000:]}")
    return run.stdout


def _environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _SETTLED}


if __name__ == "__main__":
    sys.exit(main())
