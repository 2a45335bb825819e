"""How the worker keeps its secrets from processes of the agent's user, which is its own.

The dispatcher starts it as root, and it becomes the agent's user as its first act (`become`). Until then it belongs to
somebody else, and from then on Linux keeps it "not dumpable": its environment, memory, descriptors and standard streams
are closed to every process without CAP_SYS_PTRACE, and so is tracing it. There is no moment between the two. Where no
process may start as root, the image's interpreter does as much: that user may run it and not read it, and Linux makes a
process of such a program not dumpable at its start (`sealed`). Where neither holds (an older image, a sandbox without
isolation, macOS) the worker closes itself as its first act (`harden`), and a program that is quicker than that finds
the claim in the environment; a log line says so. tests/image/session/worker/test_hand_over_spy.py and
test_secret_hiding.py beside it look from both sides.

Loaded by the program's first start, which is over in a few milliseconds: it imports nothing that takes longer.
"""

from __future__ import annotations

import os
import sys

LONGEST_CLAIM = 65_536  # bytes; a work secret is a few kilobytes

_PR_SET_DUMPABLE = 4
_SUID_DUMPABLE = "/proc/sys/fs/suid_dumpable"


class NoSuchUser(Exception):
    """The user to become is not there, or the system does not let this process become that user."""


def become(user: str) -> tuple[str, ...]:
    """Root becomes `user` (a name or a number), with that user's groups and home, and can never be root again. Returns
    what the platform leaves open. Raises NoSuchUser.

    Linux makes a process that changes its user not dumpable in the same step (proc(5), suid_dumpable), so nothing of it
    is open to the new user at any time.
    """
    import pwd

    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    except (KeyError, OSError) as error:
        raise NoSuchUser(f"cannot become {user!r}: {type(error).__name__}") from None
    if os.geteuid() == 0 or _is_root_again():
        raise NoSuchUser(f"{user!r} is root, or may become it")
    # What a daemon sets for root is not for the agent's tools.
    os.environ.update(HOME=entry.pw_dir, USER=entry.pw_name, LOGNAME=entry.pw_name)
    moment = _read(_SUID_DUMPABLE).strip() == "1"
    return (*(["fs.suid_dumpable is 1: the claim could be read for a moment"] if moment else []), *harden())


def _is_root_again() -> bool:
    try:
        os.setuid(0)
    except OSError:
        return False
    return True


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


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
