"""Who wins: the best score, then the shorter run, then the earlier place in the request."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final

from shared.races.report import BranchReport


def winner(branches: Iterable[BranchReport], *, higher_is_better: bool) -> BranchReport | None:
    """The best branch that is `ok`, or None. The order in which branches finished plays no part."""
    able = [branch for branch in branches if branch.status == "ok" and branch.score is not None]
    return min(able, key=lambda branch: rank(branch, higher_is_better=higher_is_better), default=None)


def reaches(score: float, mark: float, *, higher_is_better: bool) -> bool:
    """Whether a score is at least as good as this mark."""
    return score >= mark if higher_is_better else score <= mark


def rank(branch: BranchReport, *, higher_is_better: bool) -> tuple[float, float, int]:
    """What to order branches by that are `ok`, the best first."""
    score = branch.score if branch.score is not None else math.nan
    run = branch.run_seconds if branch.run_seconds is not None else math.inf
    return (-score if higher_is_better else score, run, branch.index)


# `nan` and `inf` are numbers here, so that who prints them is told that they are no score.
_NUMBER: Final = re.compile(
    r"(?<![\w.])[-+]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?|nan|inf(?:inity)?)(?!\w)(?!\.\d)",
    re.IGNORECASE | re.ASCII,
)
_LONGEST_PART: Final = 60
_LONGEST_LINE: Final = 200


class NoScore(Exception):
    """There is no number where one should be. The text is fit for a report."""


def stated(text: str) -> float:
    """The score that a text states: its last line `score=<number>`, else its last line where that is one number.

    Raises NoScore. A summary for people ("5 passed, 2 warnings in 0.12s") has numbers, and none is known to be meant.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        name, equals, value = line[:_LONGEST_LINE].partition("=")
        if equals and name.strip().lower() == "score":
            return whole(value)
    if not lines:
        raise NoScore("there is no number")
    if _NUMBER.fullmatch(lines[-1][:_LONGEST_LINE]) is None:
        raise NoScore("the last line is not one number: write score=<number>, or the number to the file $SCORE_FILE")
    return whole(lines[-1])


def finite(number: float) -> float:
    """The number itself. Raises NoScore for what is infinite or not a number."""
    if not math.isfinite(number):
        raise NoScore("the score is not a finite number")
    return number


def whole(text: str) -> float:
    """A text that is one number and nothing else. Raises NoScore."""
    if _NUMBER.fullmatch(text.strip()) is None:
        raise NoScore("what was found is not a number")
    return finite(float(text))


def from_json(text: str, path: str) -> float:
    """What `path` (keys and indices with dots between) names in the document that `text` is, or that its last line
    is. Raises NoScore."""
    document = _document(text)
    for part in path.split("."):
        document = _step(document, part)
    if isinstance(document, bool) or not isinstance(document, int | float):
        raise NoScore(f"the JSON has no number at {path[:_LONGEST_PART]}")
    try:
        return finite(float(document))
    except OverflowError:
        raise NoScore("the score is not a finite number") from None


def _document(text: str) -> Any:
    lines = text.strip().splitlines()
    for candidate in (text, lines[-1] if lines else ""):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue
    raise NoScore("what was written is not JSON")


def _step(document: Any, part: str) -> Any:
    if isinstance(document, dict) and part in document:
        return document[part]
    if isinstance(document, list) and re.fullmatch(r"-?[0-9]{1,9}", part):
        index = int(part)
        if -len(document) <= index < len(document):
            return document[index]
    raise NoScore(f"the JSON has nothing at {part[:_LONGEST_PART]}")
