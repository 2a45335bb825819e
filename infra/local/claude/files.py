"""Uploaded files: bytes with a name and a type. Here each may be downloaded again."""

from __future__ import annotations

import mimetypes

from infra.local.claude.clock import Clock
from infra.local.claude.errors import invalid
from infra.local.claude.shelf import Kept, Shelf

_LONGEST_NAME = 255


class Files:
    def __init__(self, clock: Clock) -> None:
        self.shelf = Shelf(clock, "file", "file")
        self._contents: dict[str, bytes] = {}

    def add(self, name: str, content: bytes, mime_type: str | None) -> Kept:
        if not 0 < len(name) <= _LONGEST_NAME or any(ord(each) < 32 or each in '<>:"|?*\\/' for each in name):
            raise invalid(f'file: the name must have 1 to {_LONGEST_NAME} characters, and none of <>:"|?*\\/')
        guessed = mime_type or mimetypes.guess_type(name)[0] or "application/octet-stream"
        row = self.shelf.add({"filename": name, "mime_type": guessed, "size_bytes": len(content), "downloadable": True})
        self._contents[row.id] = content
        return row

    def content(self, row: Kept) -> bytes:
        return self._contents[row.id]

    def remove(self, row: Kept) -> None:
        self.shelf.remove(row)
        self._contents.pop(row.id, None)
