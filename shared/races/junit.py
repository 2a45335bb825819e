"""The score in a JUnit XML report: the share of tests that passed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.parsers import expat

from shared.races.scores import NoScore

MOST_NAMES: Final = 50
_LONGEST_NAME: Final = 200
_DEEPEST: Final = 100


@dataclass(frozen=True, slots=True)
class Suite:
    """`failing` are the first names of those that failed or had an error."""

    passed: int
    failed: int
    failing: tuple[str, ...]

    @property
    def share(self) -> float:
        """NaN where no test ran."""
        ran = self.passed + self.failed
        return self.passed / ran if ran else math.nan


def read(data: bytes) -> Suite:
    """Raises NoScore. The document is counted while it is read and never held as a tree; one with declarations of its
    own is refused: its entities can grow without bound."""
    found = _Counted()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = found.declared
    parser.StartElementHandler = found.begins
    parser.EndElementHandler = found.ends
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError):
        raise NoScore("the file is no JUnit XML") from None
    suite = Suite(found.passed, found.failed, tuple(found.failing))
    if math.isnan(suite.share):
        raise NoScore("the JUnit XML names no test that ran")
    return suite


class _Counted:
    """`_case` is the test that is being read: at which depth, its name, and whether it failed or was skipped."""

    def __init__(self) -> None:
        self.passed = self.failed = 0
        self.failing: list[str] = []
        self._depth = 0
        self._case: tuple[int, str] | None = None
        self._failed = self._skipped = False

    def declared(self, *_: object) -> None:
        raise NoScore("the JUnit XML has declarations of its own")

    def begins(self, tag: str, of: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NoScore("the JUnit XML is too deep")
        if self._case is None:
            if tag == "testcase":
                name = ".".join(filter(None, (of.get("classname"), of.get("name")))) or "a test without a name"
                self._case, self._failed, self._skipped = (self._depth, name[:_LONGEST_NAME]), False, False
        elif self._depth == self._case[0] + 1:
            self._failed |= tag in ("failure", "error")
            self._skipped |= tag == "skipped"

    def ends(self, tag: str) -> None:
        if self._case is not None and self._depth == self._case[0]:
            self._count(self._case[1])
            self._case = None
        self._depth -= 1

    def _count(self, name: str) -> None:
        if self._failed:
            self.failed += 1
            if len(self.failing) < MOST_NAMES:
                self.failing.append("".join(each if each.isprintable() else "?" for each in name))
        elif not self._skipped:
            self.passed += 1
