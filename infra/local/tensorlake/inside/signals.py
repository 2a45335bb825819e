"""Freezing, thawing and killing whole trees of processes; who listens on a port."""

# pathlib would be imported anew at every start of a sandbox.
# ruff: noqa: PTH110, PTH112, PTH115, PTH123, PTH208

from __future__ import annotations

import contextlib
import os
import signal
import time

TYPE_CHECKING = False  # see wire.py
if TYPE_CHECKING:
    from .processes import StartedProcess


def _proc_stat(pid: int) -> tuple[str, int, int, int] | None:
    """(state, parent, process group, session), or None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3])


def _parents() -> dict[int, int]:
    """Parent of every visible process."""
    if os.path.isdir("/proc/self"):
        pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
        return {pid: facts[1] for pid in pids if (facts := _proc_stat(pid)) is not None}
    import subprocess  # not on Linux

    listing = subprocess.run(["/bin/ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False)
    pairs = (line.split() for line in listing.stdout.splitlines())
    return {int(pair[0]): int(pair[1]) for pair in pairs if len(pair) == 2}


def descendants(root: int) -> set[int]:
    parents = _parents()
    found: set[int] = set()
    grown = True
    while grown:
        new = {pid for pid, parent in parents.items() if (parent == root or parent in found) and pid not in found}
        found |= new
        grown = bool(new)
    return found


def _everyone() -> set[int]:
    """All processes of this sandbox but the supervisor."""
    if os.getpid() == 1:
        return {int(entry) for entry in os.listdir("/proc") if entry.isdigit()} - {1}
    return descendants(os.getpid())


def living() -> int:
    """How many processes of this sandbox, but the supervisor, have not ended."""
    facts = [_proc_stat(pid) for pid in _everyone()] if os.path.isdir("/proc/self") else [None for _ in _everyone()]
    return sum(each is None or each[0] not in "ZX" for each in facts)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


class Freezer:
    """Stops everything at once and later continues exactly what it stopped."""

    def __init__(self) -> None:
        self._stopped: set[int] = set()

    def freeze(self) -> int:
        quiet_passes = 0
        for _ in range(1000):
            fresh = 0
            for pid in _everyone():
                facts = _proc_stat(pid)
                # A process stopped by its own user stays so after the thaw; platforms without /proc cannot tell.
                if pid in self._stopped or (facts is not None and facts[0] in "TtZX"):
                    continue
                _send(pid, signal.SIGSTOP)
                self._stopped.add(pid)
                fresh += 1
            quiet_passes = 0 if fresh else quiet_passes + 1
            if quiet_passes == 2:
                break
        return len(self._stopped)

    def thaw(self) -> int:
        count = len(self._stopped)
        for pid in self._stopped:
            _send(pid, signal.SIGCONT)
        self._stopped.clear()
        return count


def kill_tree(process: StartedProcess) -> None:
    """SIGKILL to the process, its group, its session and everything that descends from it."""
    doomed = descendants(process.pid) | {process.pid}
    if os.path.isdir("/proc/self"):
        for pid in _everyone():
            facts = _proc_stat(pid)
            if facts is not None and process.pid in facts[2:]:
                doomed.add(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in doomed:
        _send(pid, signal.SIGKILL)


def end_everything() -> None:
    for _ in range(200):
        left = _everyone()
        if not left:
            return
        for pid in left:
            _send(pid, signal.SIGKILL)
        time.sleep(0.005)


def port_owner(port: int) -> str:
    """Whether a process of this sandbox listens on a TCP port: `here`, `elsewhere`, `nobody` or `unknown`.

    Offline sandboxes may share the machine's network, so somebody else's server may answer on the port.
    """
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as file:
            for line in file.readlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return "nobody" if os.path.exists("/proc/net/tcp") else "unknown"
    hidden = False
    for pid in _everyone():
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                        return "here"
        except PermissionError:
            hidden = True  # A process that hides its memory hides its descriptors too.
        except OSError:
            continue
    return "unknown" if hidden else "elsewhere"
