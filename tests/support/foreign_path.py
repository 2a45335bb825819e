"""Code of others by path: FOREIGN_PATH names folders, with a colon between two, that come before the environment's own
packages, so that tests meet another release or a checkout of an SDK, the runtime client or a library
(CONTRIBUTING.md#set-up).

The package `tests` reads it before anything of theirs is imported, as does the process that programs of tests are
forked from (forker.py). Nothing here imports more than the standard library.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, MutableSequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

VARIABLE: Final = "FOREIGN_PATH"
FOREIGN: Final = ("anthropic", "awslambdaric", "cloudevents", "standardwebhooks", "tensorlake")
"""The packages that tests/foreign is about."""


def put_first(environ: MutableMapping[str, str], path: MutableSequence[str]) -> None:
    """For this process and what it starts, in whichever folder. Raises SystemExit for a folder with none of the
    packages: a test of what is installed would prove nothing."""
    named = folders(environ)
    if named:
        environ[VARIABLE] = os.pathsep.join(named)
    for folder in reversed(named):
        if not given_in([folder]):
            raise SystemExit(f"{VARIABLE}: {folder} has none of {', '.join(FOREIGN)}")
        if folder not in path:
            path.insert(1, folder)  # the first is the program's own


def folders(environ: Mapping[str, str]) -> list[str]:
    named = filter(None, environ.get(VARIABLE, "").split(os.pathsep))
    return [str(Path(each).absolute()) for each in named]


def given_in(path: list[str]) -> dict[str, str]:
    """Which of the packages these folders have, and where."""
    found = {name: PathFinder.find_spec(name, path) for name in FOREIGN}
    return {name: str(spec.origin) for name, spec in found.items() if spec is not None}
