"""Where the sandboxes of tests lie: in memory, if the machine has enough.

A sandbox is more than a hundred files and folders, soon removed. Before ext4 makes a file it looks at those that it
removed a moment ago: in a run of tests this costs as much time of a core as the sandboxes' own processes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_MEMORY: Final = "/dev/shm"
_LEAST: Final = 2 * 2**30
"""Bytes that must be free there, and on the machine: several times what a run of all tests needs."""


def in_memory() -> list[str]:
    """Arguments for `python -m infra.local.tensorlake`; none where the memory is small or lets no program run."""
    return ["--data-dir", _MEMORY] if _is_large() else []


def _is_large() -> bool:
    try:
        there = os.statvfs(_MEMORY)
        (line,) = (each for each in Path("/proc/meminfo").read_text().splitlines() if each.startswith("MemAvailable:"))
    except (OSError, ValueError):
        return False
    may_run = os.access(_MEMORY, os.W_OK) and not there.f_flag & os.ST_NOEXEC
    return may_run and min(there.f_bavail * there.f_frsize, int(line.split()[1]) * 1024) >= _LEAST
