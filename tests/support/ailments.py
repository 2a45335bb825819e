"""Surroundings in which a program of a test is not well: names that do not resolve, a full disk, a clock that jumps,
too little memory.

Each is real, so that it hits libraries of any language in the process: names fail in the C library, which has files of
its own for them; the disk is a small one that is full; the time of day is changed on its way from the kernel; memory is
refused by the kernel. Two need bubblewrap, one a C compiler: CannotAil says what a machine lacks.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.local.tensorlake import bubblewrap

_HOSTS: Final = "127.0.0.1 localhost\n"
_NOWHERE: Final = "nameserver 192.0.2.1\noptions timeout:1 attempts:1\n"
"""An address of the documentation's net (RFC 5737): nobody answers there."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SLACK: Final = 1_000_000
"""Bytes of address space that a program may take once memory is short."""
_FILLED: Final = 'head -c "$0" /dev/zero > "$TMPDIR/full"; exec "$@"'
_CLOCK: Final = r"""
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long jump(void) {
    struct timespec up;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &up);
    long by = atol(getenv("CLOCK_JUMPS_BY")), every = atol(getenv("CLOCK_JUMPS_EVERY"));
    return every && up.tv_sec / every % 2 ? -by : by;
}

int clock_gettime(clockid_t which, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, which, at);
    if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) at->tv_sec += jump();
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class CannotAil(Exception):
    """This machine cannot make an ailment. The text says what it lacks."""


@dataclass(frozen=True, slots=True)
class AilingSurroundings:
    """prefix: what stands before the program's own arguments; environ: further variables."""

    prefix: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


class Names:
    """Whether `localhost` has an address for programs in these surroundings. At first it has."""

    def __init__(self, folder: Path) -> None:
        """Raises CannotAil. The folder is empty and stays there as long as the programs."""
        self._hosts = folder / "hosts"
        self.mend()
        (folder / "resolv.conf").write_text(_NOWHERE)
        (folder / "nsswitch.conf").write_text("hosts: files dns\n")
        binds = [
            part
            for name in ("hosts", "resolv.conf", "nsswitch.conf")
            for part in ("--ro-bind", str(folder / name), os.path.realpath(f"/etc/{name}"))
        ]
        self.surroundings = AilingSurroundings(_cell(*binds))

    def fail(self) -> None:
        self._hosts.write_text("")

    def mend(self) -> None:
        self._hosts.write_text(_HOSTS)


def full_disk(folder: Path) -> AilingSurroundings:
    """The home and the folder for temporary files have no byte left. Raises CannotAil."""
    inside = ("sh", "-c", _FILLED, str(_PAGE))
    cell = _cell("--size", str(_PAGE), "--tmpfs", str(folder))
    return AilingSurroundings((*cell, *inside), {"TMPDIR": str(folder), "HOME": str(folder)})


def wrong_clock(folder: Path, seconds: int, every: int = 0) -> AilingSurroundings:
    """The time of day is so many seconds ahead; with `every` it is that and as much behind in turn, so many seconds
    each. What counts the time since a start is right. Raises CannotAil."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise CannotAil("no C compiler")
    library = folder / "clock.so"
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, "-x", "c", "-"], input=_CLOCK, capture_output=True, text=True
    )
    if built.returncode:
        raise CannotAil(f"no C library to build against: {built.stderr.strip()[-300:]}")
    told = {"CLOCK_JUMPS_BY": str(seconds), "CLOCK_JUMPS_EVERY": str(every), "LD_PRELOAD": str(library)}
    return AilingSurroundings((), told)


def little_memory(pid: int) -> None:
    """From now on it gets no more address space than it has, but for a megabyte. A process that is gone is left."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (pages * _PAGE + _SLACK, hard))


def enough_memory(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))


def _cell(*mounts: str) -> tuple[str, ...]:
    """A command that runs another one with these mounts, and is otherwise where this process is. Raises CannotAil."""
    found = bubblewrap.find()
    if found is None:
        raise CannotAil("no bubblewrap")
    command = (found[0], "--dev-bind", "/", "/", *mounts)
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode:
        raise CannotAil(f"bubblewrap cannot do this here: {tried.stderr.strip()[-300:]}")
    return command
