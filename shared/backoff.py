"""Pauses between attempts. One rule for all: they grow to a limit, and no two callers keep step.

Tried and not taken: tenacity and stamina retry on exceptions, and what our ports answer are values.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Final

JITTER: Final = 0.25
"""Each pause is up to so much shorter or longer: what failed together does not come back together."""

_MOST_GROWTHS: Final = 64  # far above every limit, and far below what a float can hold


def pauses(first: float, longest: float = math.inf, *, factor: float = 2.0) -> Iterator[float]:
    """Seconds before the second attempt, the third, and so on, without end: `first`, then `factor` times more each
    time up to `longest`, each of them jittered."""
    for attempt in itertools.count(1):
        yield pause_before(attempt, first, longest, factor=factor)


def pause_before(attempt: int, first: float, longest: float = math.inf, *, factor: float = 2.0) -> float:
    """The pause number `attempt` of `pauses`, for a loop that counts: none before attempt 0."""
    if not attempt:
        return 0.0
    grown = first * factor ** min(attempt - 1, _MOST_GROWTHS)
    return min(grown, longest) * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # no secret
