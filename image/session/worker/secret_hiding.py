"""How the worker keeps its secrets from processes of its own user, the agent's tools among them.

In an image of ours the worker's interpreter may be run and not read by that user. Linux makes a process of such a
program "not dumpable" at its start: its environment, memory, descriptors and standard streams are closed to every other
process without CAP_SYS_PTRACE, with no moment at which they are not (`sealed`). Elsewhere (an older image, a sandbox
without isolation, macOS) the worker closes itself as its first act (`harden`), and a program that is quicker than that
finds the claim in the environment; a log line says so. tests/image/session/worker/test_secret_hiding.py looks from both
sides.

Loaded by the program's first start, which is over in a few milliseconds: it imports nothing that takes longer.
"""

from __future__ import annotations

import os
import sys

LONGEST_CLAIM = 65_536  # bytes; a work secret is a few kilobytes

_PR_SET_DUMPABLE = 4


def sealed() -> bool:
    """Whether this process has been closed to others of its user since it began. A process that is not dumpable has
    its directory in /proc owned by somebody else; for root there is no difference to see, and none to make."""
    try:
        return sys.platform == "linux" and os.stat("/proc/self").st_uid != os.geteuid()
    except OSError:
        return False


def stash(text: str) -> int:
    """Puts a text where only this process finds it; returns a descriptor that survives one `exec`.

    A longer text than `LONGEST_CLAIM` is cut, which makes it unreadable as a claim.
    """
    data = text.encode("utf-8", "surrogateescape")[: LONGEST_CLAIM + 1]
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("claim")
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        # Without anonymous files the text must fit into a pipe's buffer: a blocked write would never return.
        descriptor, write_end = os.pipe()
        os.set_blocking(write_end, False)
        os.write(write_end, data)
        os.close(write_end)
    os.set_inheritable(descriptor, True)
    return descriptor


def unstash(descriptor: int) -> str:
    """Reads and closes what `stash` left."""
    with open(descriptor, "rb") as stashed:
        return stashed.read(LONGEST_CLAIM + 1).decode("utf-8", "replace")


def harden() -> tuple[str, ...]:
    """Closes this process to other processes of its user; returns what the platform could not do.

    On Linux a process that is not dumpable gives its environment, memory and descriptors in /proc to nobody without
    CAP_SYS_PTRACE, and cannot be traced. Children that execute another program are dumpable again and share none of
    its memory.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return (f"memory is not hidden from the agent's own processes on {sys.platform}",)
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        return (f"memory is not hidden from the agent's own processes (prctl: errno {ctypes.get_errno()})",)
    return ()
