"""Who used the cores: what a figure that is bound by cores was bound by.

Read from /proc, so on other systems than Linux there is nothing to read and the shares are left out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.world import OfflineWorld

WORKERS: Final = "workers (boot, and the SDK once they have their lease)"
SANDBOXES: Final = "sandboxes (their supervisors)"
SERVICES: Final = "the two offline services"
SERVER: Final = "the bundle's server"
BENCHMARK: Final = "this benchmark"
REST: Final = "all else on the machine, and what has ended meanwhile"
PARTS: Final = (WORKERS, SANDBOXES, SERVICES, SERVER, BENCHMARK, REST)

_PROC: Final = Path("/proc")


@dataclass(slots=True)
class CoreUsage:
    """Seconds of CPU by part, and the share of all cores' time that was used at all (0 to 1). Empty and None where
    the system does not tell."""

    parts: Mapping[str, float] = field(default_factory=dict)
    busy: float | None = None


@dataclass(frozen=True, slots=True)
class _CountedProcess:
    """reaped: seconds of its children that have ended."""

    parent: int
    seconds: float
    reaped: float
    command: str


@contextlib.contextmanager
def usage(world: OfflineWorld, server: int) -> Iterator[CoreUsage]:
    """Filled when the block ends. `server`: the process id of the bundle's."""
    found = CoreUsage()
    before, parts_before = _ticks(), _parts(world, server)
    yield found
    after, parts_after = _ticks(), _parts(world, server)
    if before is None or after is None or after[1] == before[1]:
        return
    used = after[0] - before[0]
    parts = {name: parts_after[name] - parts_before[name] for name in parts_after}
    found.parts = {**parts, REST: max(0.0, used - sum(parts.values()))}
    found.busy = used / (after[1] - before[1])


def _parts(world: OfflineWorld, server: int) -> Mapping[str, float]:
    parts = dict.fromkeys(PARTS[:-1], 0.0)
    processes = _processes()
    services = (world.claude.pid, world.tensorlake.pid)
    for pid, process in processes.items():
        family = [pid, *_ancestors(pid, processes)]
        if pid in services:
            parts[SERVICES] += process.seconds
        elif world.tensorlake.pid in family:
            parts[WORKERS if ".pyz" in process.command else SANDBOXES] += process.seconds
            parts[WORKERS] += process.reaped  # a supervisor's: workers that had nothing more to do
        elif server in family:
            parts[SERVER] += process.seconds
        elif pid == os.getpid():
            parts[BENCHMARK] += process.seconds
    return parts


def _processes() -> Mapping[int, _CountedProcess]:
    found: dict[int, _CountedProcess] = {}
    if not _PROC.joinpath("stat").exists():
        return found
    tick = os.sysconf("SC_CLK_TCK")
    for directory in _PROC.iterdir():
        # A process may end between two reads.
        with contextlib.suppress(OSError, ValueError):
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            own, reaped = ((int(fields[at]) + int(fields[at + 1])) / tick for at in (11, 13))
            found[int(directory.name)] = _CountedProcess(int(fields[1]), own, reaped, command)
    return found


def _ancestors(pid: int, processes: Mapping[int, _CountedProcess]) -> Sequence[int]:
    found: list[int] = []
    while (process := processes.get(pid)) is not None and process.parent not in found:
        pid = process.parent
        found.append(pid)
    return found


def _ticks() -> tuple[float, float] | None:
    """Seconds used and seconds in all, of all cores since the machine started."""
    try:
        line = _PROC.joinpath("stat").read_text().partition("\n")[0]
        fields = [int(text) / os.sysconf("SC_CLK_TCK") for text in line.split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(fields) - fields[3] - fields[4], sum(fields)
