"""What was looked at, what it should be and what it is."""

from __future__ import annotations

from typing import NamedTuple


class RootFinding(NamedTuple):
    what: str
    wanted: str
    seen: str

    @property
    def good(self) -> bool:
        return self.wanted == self.seen
