"""What a winner changed: the difference between two listings of a workspace.

The listings come from sandboxes in which somebody else's programs ran, so nothing in them is believed but what is
checked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from image.session.programs.workspace_tree import (
    PERMISSIONS,
    TEMPORARY,
    Change,
    Entry,
    Stop,
    depth_first,
    from_text,
    to_text,
)

_DIGEST: Final = re.compile(r"[0-9a-f]{64}|\?\d{1,20}")
_LONGEST_SHOWN: Final = 300
_LARGEST: Final = 2**62

Listing = Mapping[bytes, Entry]


class Nonsense(Exception):
    """What a sandbox said cannot be what the program says."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`skipped` are paths whose change is not moved, with what lies below them."""

    changes: Sequence[Change]
    skipped: Sequence[bytes]


def listing(rows: Any) -> Listing:
    """Raises Nonsense."""
    if not isinstance(rows, list):
        raise Nonsense
    found: dict[bytes, Entry] = {}
    for row in rows:
        if not isinstance(row, list) or len(row) != 5:
            raise Nonsense
        found[_path(row[0])] = entry(row[1:])
    for path in found:
        parent = path.rpartition(b"/")[0]
        if parent and (parent not in found or found[parent].kind != "d"):
            raise Nonsense
    return found


def entry(row: Any) -> Entry:
    """Raises Nonsense."""
    match row:
        case ["d", int(mode), 0, None | "?" as value] if 0 <= mode <= PERMISSIONS:
            return Entry("d", mode, 0, value)
        case ["f", int(mode), int(size), str(value)] if 0 <= mode <= PERMISSIONS and 0 <= size <= _LARGEST:
            if _DIGEST.fullmatch(value):
                return Entry("f", mode, size, value)
        case ["l", 0, 0, str(value)] if 0 < len(value) < 4096 and "\0" not in value and max(value) <= "\xff":
            return Entry("l", 0, 0, value)
        case ["o", 0, 0, None]:
            return Entry("o", 0, 0, None)
    raise Nonsense


def difference(base: Listing, winner: Listing) -> Difference:
    """Parents come before what lies below them."""
    changes, skipped = [], []
    barrier: bytes | None = None
    for path in sorted(base.keys() | winner.keys(), key=depth_first):
        if barrier is not None and path.startswith(barrier):
            continue
        before, now = base.get(path), winner.get(path)
        if before == now:
            continue
        if _fixed(before) or _fixed(now) or (now is not None and now.unreadable):
            skipped.append(path)
            barrier = path + b"/"
            continue
        changes.append(Change(path, before, now))
    return Difference(changes, skipped)


def shown(path: bytes) -> str:
    """A path for a report: on one line, whatever bytes it has."""
    text = path.decode("utf-8", "backslashreplace")
    text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def to_wire(changes: Sequence[Change]) -> list[Any]:
    return [[to_text(change.path), change.base, change.now] for change in changes]


def _path(text: Any) -> bytes:
    if not isinstance(text, str):
        raise Nonsense
    try:
        path = from_text(text)
    except Stop:
        raise Nonsense from None
    if any(part.startswith(TEMPORARY) for part in path.split(b"/")):
        raise Nonsense
    return path


def _fixed(entry: Entry | None) -> bool:
    """Sockets, pipes and devices stay where they are."""
    return entry is not None and entry.kind == "o"
