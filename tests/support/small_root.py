"""A Linux root of some megabytes, of this machine's own files: a shell, a few programs, and a Python that knows what
a sandbox's supervisor needs and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

_PROGRAMS: Final = ("sh", "cat", "id", "ls", "mkdir", "cp")
_MODULES: Final = """
import sys
sys.path.insert(0, sys.argv[1])
import ctypes, socket, subprocess, inside.supervisor, inside.terminal
print(*{module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}, sep="\\n")
"""


def make(root: Path, supervisor: Path) -> None:
    """`supervisor`: the folder above the package `inside`."""
    for folder in ("etc", "usr/bin", "usr/local/bin", "home/agent", "opt/thing", "tmp", "proc", "dev"):
        (root / folder).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    for program in _PROGRAMS:
        found = shutil.which(program)
        assert found is not None, program
        shutil.copy2(found, root / "usr/bin" / program)
        _libraries(root, found)
    python = Path(os.path.realpath(sys.executable))
    name = f"python3.{sys.version_info.minor}"
    shutil.copy2(python, root / "usr/local/bin" / name)
    (root / "usr/local/bin/python3").symlink_to(name)
    _libraries(root, str(python))
    loaded = subprocess.run(
        [python, "-I", "-S", "-c", _MODULES, str(supervisor)], capture_output=True, text=True, check=True
    )
    library = Path(os.__file__).resolve().parent
    for line in loaded.stdout.split("\n"):
        module = Path(line)
        if module.is_file() and module.is_relative_to(library):
            _copy(module, root / "usr/local/lib" / name / module.relative_to(library))
            if module.suffix == ".so":
                _libraries(root, str(module))


def _libraries(root: Path, program: str) -> None:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    for word in said.split():
        if word.startswith("/") and not (root / word.lstrip("/")).exists():
            _copy(Path(word), root / word.lstrip("/"))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
