"""The score in a JUnit XML report: the share of tests that passed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from shared.races.scores import NoScore

MOST_NAMES: Final = 50
_LONGEST_NAME: Final = 200


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
    """Raises NoScore. A document with declarations of its own is refused: its entities can grow without bound."""
    if b"<!" in data.replace(b"<![CDATA[", b"").replace(b"<!--", b""):
        raise NoScore("the JUnit XML has declarations of its own")
    try:
        root = ElementTree.fromstring(data)  # noqa: S314  # without declarations nothing expands
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError):
        raise NoScore("the file is no JUnit XML") from None
    passed = failed = 0
    failing: list[str] = []
    for case in root.iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            failed += 1
            if len(failing) < MOST_NAMES:
                name = ".".join(filter(None, (case.get("classname"), case.get("name")))) or "a test without a name"
                failing.append("".join(each if each.isprintable() else "?" for each in name[:_LONGEST_NAME]))
        elif "skipped" not in kinds:
            passed += 1
    suite = Suite(passed, failed, tuple(failing))
    if math.isnan(suite.share):
        raise NoScore("the JUnit XML names no test that ran")
    return suite
