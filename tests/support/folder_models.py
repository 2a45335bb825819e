"""What a folder holds, as a model that a test can compare."""

# Names are bytes here, which pathlib does not know.
# ruff: noqa: PTH101, PTH102, PTH115, PTH118, PTH123, PTH211

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

Node = tuple[Literal["d"], int] | tuple[Literal["f"], int, bytes] | tuple[Literal["l"], bytes]
Model = dict[bytes, Node]


def read(folder: Path) -> Model:
    """What is in a folder; nothing is followed."""
    found: Model = {}
    for here, below, names in os.walk(os.fsencode(folder)):
        for name in (*below, *names):
            path = os.path.join(here, name)
            facts = os.lstat(path)
            key = os.path.relpath(path, os.fsencode(folder))
            if stat.S_ISLNK(facts.st_mode):
                found[key] = ("l", os.readlink(path))
            elif stat.S_ISDIR(facts.st_mode):
                found[key] = ("d", stat.S_IMODE(facts.st_mode))
            elif stat.S_ISREG(facts.st_mode):
                found[key] = ("f", stat.S_IMODE(facts.st_mode), Path(os.fsdecode(path)).read_bytes())
    return found


def write(folder: Path, model: Model) -> None:
    for path, node in sorted(model.items()):
        there = os.path.join(os.fsencode(folder), path)
        if node[0] == "d":
            os.mkdir(there)
        elif node[0] == "l":
            os.symlink(node[1], there)
        else:
            with open(there, "wb") as file:
                file.write(node[2])
        if node[0] != "l":
            os.chmod(there, node[1])
