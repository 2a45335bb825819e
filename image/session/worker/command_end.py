"""Ends what runs in front in a shell's process group, as ctrl-C at a terminal does.

A shell without job control starts what is put into the background (`&`) with SIGINT ignored. So it is spared here, and
outlives the command as it outlives the worker.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

_PROC = Path("/proc")


def interrupt(group: int) -> None:
    """SIGINT for the group; the shell ends with the command that ends by it."""
    with contextlib.suppress(OSError):  # it is over, or belongs to somebody else
        os.killpg(group, signal.SIGINT)


def kill_in_front(group: int) -> None:
    """SIGKILL for the shell, and for each of its group that does not ignore SIGINT."""
    if not _PROC.joinpath("self", "stat").exists():
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
        return
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
                if _group_of(entry) == group and (entry.name == str(group) or not _ignores_interrupts(entry)):
                    os.kill(int(entry.name), signal.SIGKILL)


def _group_of(entry: Path) -> int:
    after_its_name = entry.joinpath("stat").read_text(errors="replace").rpartition(")")[2]
    return int(after_its_name.split()[2])


def _ignores_interrupts(entry: Path) -> bool:
    lines = entry.joinpath("status").read_text(errors="replace").splitlines()
    ignored = next(line.split()[1] for line in lines if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)
