"""How the worker keeps its secrets from processes of its own user, the agent's tools among them.

In an image of ours the worker's interpreter may be run and not read by that user. Linux makes a process of such a
program "not dumpable" at its start: its environment, memory, descriptors and standard streams are closed to every other
process without CAP_SYS_PTRACE, with no moment at which they are not (`sealed`). Elsewhere (an older image, a sandbox
without isolation, macOS) the worker closes itself as its first act (`harden`), and a program that is quicker than that
finds the claim in the environment; a log line says so. tests/image/session/worker/test_secret_hiding.py looks from both
sides.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from image.session.claim import STATE_VARIABLE

LONGEST_CLAIM: Final = 65_536  # bytes; a work secret is a few kilobytes

_PR_SET_DUMPABLE: Final = 4
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Whatever the image sets is meant for the agent's shell, except what is ours, what the names of secrets look like, what
# the shell sets itself, and what would run code of the image's in our own interpreter's place.
_OURS: Final = ("HANDS_", "ANTHROPIC_", "CLAUDE_", "TENSORLAKE_", "TL_", "FUNCTIONS_")
_SECRET: Final = re.compile(
    r"TOKEN|SECRET|PASSW|CREDENTIAL|COOKIE|(API|ACCESS|PRIVATE|SIGNING|ENCRYPTION|MASTER|AUTH)_?KEY|(^|_)KEYS?$"
)
_SHELLS: Final = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "BASH_ENV", "ENV", "PS1", "PS2"})
_WAY_OUT: Final = frozenset({"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"})
_PASSWORD_IN_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]*:[^/\s]+@", re.IGNORECASE)


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables for the agent's tools: the image's, without what is ours and without secrets, by name or where a
    URL holds a password. A proxy keeps its password, since it is the way out for the tools too."""
    kept = {name: value for name, value in environ.items() if name == STATE_VARIABLE or _for_tools(name, value)}
    kept.setdefault("PATH", _DEFAULT_PATH)
    kept.setdefault("LANG", "C.UTF-8")
    # A daemon that starts processes for another user may leave its own home here.
    if not os.access(kept.get("HOME", ""), os.W_OK):
        kept["HOME"] = _home()
    return kept


def _for_tools(name: str, value: str) -> bool:
    upper = name.upper()
    if upper in _WAY_OUT:
        return True
    if upper in _SHELLS or upper.startswith(_OURS) or _SECRET.search(upper):
        return False
    return not _PASSWORD_IN_URL.search(value)


def sealed() -> bool:
    """Whether this process has been closed to others of its user since it began. A process that is not dumpable has
    its directory in /proc owned by somebody else; for root there is no difference to see, and none to make."""
    try:
        return sys.platform == "linux" and Path("/proc/self").stat().st_uid != os.geteuid()
    except OSError:
        return False


def _home() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a container may run under a number without a name
        return "/"


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
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return (f"memory is not hidden from the agent's own processes on {sys.platform}",)
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        return (f"memory is not hidden from the agent's own processes (prctl: errno {ctypes.get_errno()})",)
    return ()
