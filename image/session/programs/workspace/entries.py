"""What a tree consists of and what is changed in it: entries, changes, paths.

Names are bytes; on the wire each byte is one character (latin-1). An entry is `[kind, mode, size, value]`: kind `d`,
`f`, `l` or `o` (a socket, pipe or device), the permission bits, the size of a file, and as value a file's SHA-256 or a
link's target. What cannot be read has a value that begins with `?`.

A change is `[path, entry in the base or null, entry in the winner or null]`.
"""

from __future__ import annotations

from typing import NamedTuple

TEMPORARY = b".race-promotion-"
PERMISSIONS = 0o777


class Stop(Exception):
    """The text is the reason."""


class TreeEntry(NamedTuple):
    kind: str
    mode: int
    size: int
    value: str | None

    @property
    def unreadable(self) -> bool:
        return self.kind != "l" and self.value is not None and self.value.startswith("?")


class TreeChange(NamedTuple):
    path: bytes
    base: TreeEntry | None
    now: TreeEntry | None


def to_text(path: bytes) -> str:
    return path.decode("latin-1")


def from_text(text: str) -> bytes:
    """Raises Stop for what is no path below a directory."""
    try:
        path = text.encode("latin-1")
    except (AttributeError, UnicodeEncodeError):
        raise Stop("a path is not one") from None
    if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise Stop("a path leads elsewhere")
    return path


def parent_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def name_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def depth_first(path: bytes) -> list[bytes]:
    """Sorts parents before children, and everything below a path next to it."""
    return path.split(b"/")


def of_kind(entry: TreeEntry | None, kind: str) -> bool:
    return entry is not None and entry.kind == kind
