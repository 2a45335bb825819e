"""Pauses between attempts, as in shared/backoff.py, of which the worker, alone in its sandbox, can import nothing."""

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
    for growths in itertools.count():
        grown = min(first * factor ** min(growths, _MOST_GROWTHS), longest)
        yield grown * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads retries
