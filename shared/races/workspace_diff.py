"""What a winner changed, as the checkpoint's sandbox says it.

Somebody else's programs ran in the winner's sandbox, and files of the source's agent are in both: nothing is believed
but what is checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from image.session.programs.workspace.entries import TreeChange, TreeEntry, depth_first, to_text
from image.session.programs.workspace.listing import Nonsense, checked_entry, checked_path

_LONGEST_SHOWN: Final = 300


@dataclass(frozen=True, slots=True)
class Difference:
    """`changes` have parents before what lies below them. `skipped` are paths whose change is not moved, with what lies
    below them."""

    changes: Sequence[TreeChange]
    skipped: Sequence[bytes]


def difference(answer: Any, most: int) -> Difference:
    """Raises Nonsense, also for more than `most` changes."""
    if not isinstance(answer, dict):
        raise Nonsense
    rows, skipped = answer.get("changes"), answer.get("skipped")
    if not isinstance(rows, list) or not isinstance(skipped, list) or len(rows) > most:
        raise Nonsense
    changes = [_change(row) for row in rows]
    if len({change.path for change in changes}) != len(changes):
        raise Nonsense
    changes.sort(key=lambda change: depth_first(change.path))
    return Difference(changes, [checked_path(path) for path in skipped])


def shown(path: bytes) -> str:
    """A path for a report: on one line, whatever bytes it has."""
    text = path.decode("utf-8", "backslashreplace")
    text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def to_wire(changes: Sequence[TreeChange]) -> list[Any]:
    return [[to_text(change.path), change.base, change.now] for change in changes]


def _change(row: Any) -> TreeChange:
    if not isinstance(row, list) or len(row) != 3:
        raise Nonsense
    base, now = (None if each is None else checked_entry(each) for each in row[1:])
    if base == now or _is_moved_by_nobody(base) or _is_moved_by_nobody(now):
        raise Nonsense
    return TreeChange(checked_path(row[0]), base, now)


def _is_moved_by_nobody(entry: TreeEntry | None) -> bool:
    return entry is not None and entry.kind == "o"
