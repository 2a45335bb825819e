"""How the worker keeps its secret from processes of its own user."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from typing import Final

from image.session.claim import STATE_VARIABLE

LONGEST_CLAIM: Final = 65_536  # bytes; a work secret is a few kilobytes

_PR_SET_DUMPABLE: Final = 4
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What the agent's shell may know. Proxies and certificates are the operator's way out of the sandbox, for its tools
# as well as for the worker.
_ORDINARY: Final = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TERM"}
)
_WAY_OUT: Final = frozenset({"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"})
_KEPT: Final = (
    _ORDINARY
    | _WAY_OUT
    | {name.lower() for name in _WAY_OUT}
    | {"SSL_CERT_FILE", "SSL_CERT_DIR", "WORKSPACE", STATE_VARIABLE}
)


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that outlive the first start: an allow-list, so that nothing unforeseen is handed on."""
    kept = {name: value for name, value in environ.items() if name in _KEPT}
    kept.setdefault("PATH", _DEFAULT_PATH)
    kept.setdefault("LANG", "C.UTF-8")
    # A daemon that starts processes for another user may leave its own home here.
    if not os.access(kept.get("HOME", ""), os.W_OK):
        kept["HOME"] = _home()
    return kept


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
