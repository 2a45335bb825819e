"""Who wins: the best score, then the shorter run, then the earlier place in the request."""

from __future__ import annotations

import math
from collections.abc import Iterable

from shared.races.request import BranchReport


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
