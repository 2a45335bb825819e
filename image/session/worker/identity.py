"""Which session a sandbox belongs to, written down in the sandbox itself (docs/architecture.md#the-name-is-the-record).

A sandbox made from another one's snapshot has that one's files, this record included: that is how a fork is told
from the session's own sandbox.
"""

from __future__ import annotations

import re
from typing import Final

from image.session.claim import SESSION_FILE, Ended, Exit
from image.session.worker.new_workspace import FIRST_USE
from image.session.worker.state_directory import StateDirectory

_PREFIX = re.compile(r"\A(sesn|session)_")
_ID: Final = re.compile(r"[!-~]{1,512}")  # anything else is no id that a worker wrote


_LONGEST_ID: Final = 1024  # bytes


def settle(state: StateDirectory, session_id: str) -> None:
    """Records the session at first use, and that it is the first; raises Ended(BAD_CLAIM) where another one is
    recorded."""
    recorded = _read(state)
    if not _ID.fullmatch(recorded):
        if not _is_there(state):
            state.write_once(FIRST_USE, b"no call has run\n")
        state.set_aside(SESSION_FILE)
        state.write_once(SESSION_FILE, f"{session_id}\n".encode())
        recorded = _read(state)
    if _significant(recorded) != _significant(session_id):
        raise Ended(Exit.BAD_CLAIM, "this sandbox belongs to another session")


def _significant(session_id: str) -> str:
    """The two prefixes mean the same; what follows is significant, its case too
    (docs/wire/anthropic.md#2-environments)."""
    return _PREFIX.sub("", session_id)


def _is_there(state: StateDirectory) -> bool:
    """What an agent has broken is no first use."""
    try:
        state.stat(SESSION_FILE)
    except FileNotFoundError:
        return False
    return True


def _read(state: StateDirectory) -> str:
    return state.read(SESSION_FILE, _LONGEST_ID).decode("utf-8", "replace").strip()
