"""Which session a sandbox belongs to, written down in the sandbox itself (docs/architecture.md#the-name-is-the-record).

A sandbox made from another one's snapshot has that one's files, this record included: that is how a fork is told
from the session's own sandbox.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from image.session.claim import SESSION_FILE, Ended, Exit

_PREFIX = re.compile(r"\A(sesn|session)_")


def settle(state: Path, session_id: str) -> None:
    """Records the session at first use; raises Ended(BAD_CLAIM) where another one is recorded."""
    record = state / SESSION_FILE
    recorded = _read(record) or _write(record, session_id)
    if _significant(recorded) != _significant(session_id):
        raise Ended(Exit.BAD_CLAIM, "this sandbox belongs to another session")


def _significant(session_id: str) -> str:
    """The two prefixes mean the same; what follows is significant, its case too
    (docs/wire/anthropic.md#2-environments)."""
    return _PREFIX.sub("", session_id)


def _read(record: Path) -> str:
    try:
        return record.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _write(record: Path, session_id: str) -> str:
    """Returns what is recorded afterwards: linking a finished file lets exactly one of two first claims win, and
    nobody ever reads half of an id."""
    draft = record.with_name(f"{record.name}.{os.getpid()}")
    draft.write_text(session_id + "\n", encoding="utf-8")
    try:
        record.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return _read(record)
