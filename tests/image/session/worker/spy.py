"""A program that looks at every process of a worker as often as it can, from before a hand-over until it is ended.

    python spy.py FOUND MARK NEEDLE [USER]

It writes a line into FOUND for each thing of a process that it gets, "watching" first of all. A worker is a process
whose arguments contain MARK. NEEDLE is the claim's secret, spelt backwards so that the spy does not find itself. USER
is the number of the user to become. It ends with whoever started it.
"""

# pathlib would be slower than what is watched.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17  # ptrace(2)
WALL = 0x40000000
CLOSE_SECONDS = 0.5  # from a worker's start: until it has its claim, and more

libc = ctypes.CDLL(None, use_errno=True)


def read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(1 << 20)


def main(found: str, mark: bytes, needle: bytes) -> None:
    told = set()
    parent = os.getppid()
    with open(found, "w", buffering=1) as file:

        def tell(what: str) -> None:
            if what not in told:
                told.add(what)
                file.write(f"{what}\n")

        def is_worker(pid: str) -> bool:
            try:
                return mark in read(f"/proc/{pid}/cmdline")
            except OSError:
                return False

        tell("watching")
        known, close = set(os.listdir("/proc")), 0.0
        workers: set[str] = set()
        while os.getppid() == parent:
            # A worker takes tens of milliseconds to begin, and has to have a processor for that.
            time.sleep(0.001 if time.monotonic() < close or not workers else 0.02)
            for pid in os.listdir("/proc"):
                if pid.isdigit() and pid not in known and is_worker(pid):
                    if pid not in workers:
                        workers.add(pid)
                        close = time.monotonic() + CLOSE_SECONDS
                    look(pid, needle, tell, is_worker)


def look(pid: str, needle: bytes, tell: Callable[[str], None], is_worker: Callable[[str], bool]) -> None:
    for name in ("environ", "cmdline", "auxv", "stack", "maps", "mem"):
        try:
            if needle in read(f"/proc/{pid}/{name}"):
                tell(name)
            elif name == "maps":
                tell("maps")
        except OSError:
            pass
    for number in range(12):
        for mode in (os.O_RDONLY, os.O_WRONLY):
            try:
                opened = os.open(f"/proc/{pid}/fd/{number}", mode | os.O_NONBLOCK)
            except OSError:
                continue
            os.close(opened)
            if is_worker(pid):  # and not the agent's shell, which a worker becomes after its fork
                tell(f"descriptor {number}")
    # Seized and not attached: what is attached stops, and a turn with it.
    if libc.ptrace(SEIZE, int(pid), 0, 0) == 0:
        if is_worker(pid):
            tell("traced")
        libc.ptrace(INTERRUPT, int(pid), 0, 0)
        try:
            os.waitpid(int(pid), WALL)
        except OSError:
            return
        libc.ptrace(DETACH, int(pid), 0, 0)


if __name__ == "__main__":
    if sys.argv[4:]:
        os.setgroups([])
        os.setgid(int(sys.argv[4]))
        os.setuid(int(sys.argv[4]))
    main(sys.argv[1], sys.argv[2].encode(), sys.argv[3][::-1].encode())
