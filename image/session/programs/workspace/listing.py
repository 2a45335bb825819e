"""What a sandbox says of its tree, checked, and what differs between two of them."""

from __future__ import annotations

import re
from typing import Any

from image.session.programs.workspace.entries import (
    PERMISSIONS,
    TEMPORARY,
    Stop,
    TreeChange,
    TreeEntry,
    depth_first,
    from_text,
    of_kind,
    parent_of,
)

NONSENSE = "its answer makes no sense"
_DIGEST = re.compile(r"[0-9a-f]{64}|\?\d{1,20}")
_LARGEST_FILE = 2**62


class Nonsense(Stop):
    """What a sandbox said cannot be what this program says."""

    def __init__(self) -> None:
        super().__init__(NONSENSE)


def checked_path(text: Any) -> bytes:
    """Raises Nonsense."""
    try:
        path = from_text(text)
    except Stop:
        raise Nonsense from None
    if any(part.startswith(TEMPORARY) for part in path.split(b"/")):
        raise Nonsense
    return path


def checked_entry(row: Any) -> TreeEntry:
    """Raises Nonsense."""
    if not isinstance(row, list) or len(row) != 4 or any(type(each) is not int for each in row[1:3]):
        raise Nonsense
    kind, mode, size, value = row
    fits = False
    if kind == "d":
        fits = 0 <= mode <= PERMISSIONS and size == 0 and value in (None, "?")
    elif kind == "f":
        fits = 0 <= mode <= PERMISSIONS and 0 <= size <= _LARGEST_FILE
        fits = fits and isinstance(value, str) and _DIGEST.fullmatch(value) is not None
    elif kind == "l":
        fits = (mode, size) == (0, 0) and isinstance(value, str) and 0 < len(value) < 4096
        fits = fits and "\0" not in value and max(value) <= "\xff"
    elif kind == "o":
        fits = (mode, size, value) == (0, 0, None)
    if not fits:
        raise Nonsense
    return TreeEntry(kind, mode, size, value)


def checked_listing(rows: Any) -> dict[bytes, TreeEntry]:
    """Raises Nonsense."""
    if not isinstance(rows, list):
        raise Nonsense
    found: dict[bytes, TreeEntry] = {}
    for row in rows:
        if not isinstance(row, list) or len(row) != 5:
            raise Nonsense
        found[checked_path(row[0])] = checked_entry(row[1:])
    for path in found:
        if parent_of(path) and not of_kind(found.get(parent_of(path)), "d"):
            raise Nonsense
    return found


def difference(base: dict[bytes, TreeEntry], winner: dict[bytes, TreeEntry]) -> tuple[list[TreeChange], list[bytes]]:
    """The changes, parents before what lies below them, and the paths whose change is not moved, with what lies below
    them."""
    changes, skipped = [], []
    barrier: bytes | None = None
    for path in sorted(base.keys() | winner.keys(), key=depth_first):
        if barrier is not None and path.startswith(barrier):
            continue
        before, now = base.get(path), winner.get(path)
        if before == now:
            continue
        # Sockets, pipes and devices stay where they are.
        if of_kind(before, "o") or of_kind(now, "o") or (now is not None and now.unreadable):
            skipped.append(path)
            barrier = path + b"/"
            continue
        changes.append(TreeChange(path, before, now))
    return changes, skipped
