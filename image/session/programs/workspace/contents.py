"""The contents of changed files, which travel as parts."""

# A tree is walked by directory descriptors, which pathlib does not know.
# ruff: noqa: PTH118, PTH123, PTH202

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

from image.session.programs.workspace.entries import Stop


class Contents:
    """What travelled: a stream of contents, cut into parts. Each is found by its digest."""

    def __init__(self, directory: str, parts: list[str], stream: list[tuple[str, int]]) -> None:
        self._parts = [os.path.join(directory, name) for name in parts]
        self._size = os.path.getsize(self._parts[0]) if parts else 0
        self._place: dict[str, tuple[int, int]] = {}
        offset = 0
        for digest, size in stream:
            self._place[digest] = (offset, size)
            offset += size

    def check(self) -> None:
        """Raises Stop unless everything arrived as it was sent."""
        for digest in self._place:
            found = hashlib.sha256()
            for data in self.read(digest):
                found.update(data)
            if found.hexdigest() != digest:
                raise Stop("a content arrived damaged")

    def read(self, digest: str) -> Iterator[bytes]:
        offset, left = self._place[digest]
        while left:
            number, start = divmod(offset, self._size)
            with open(self._parts[number], "rb") as file:
                file.seek(start)
                data = file.read(left)
            if not data:
                raise Stop("a part is too short")
            yield data
            offset += len(data)
            left -= len(data)
