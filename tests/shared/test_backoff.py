"""Pauses grow to their limit and are never the same for two callers."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from shared.backoff import JITTER, pause_before, pauses


def test_pauses_grow_by_the_factor_up_to_the_longest() -> None:
    seen = list(islice(pauses(0.2, 3.0), 9))
    for pause, middle in zip(seen, [0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0, 3.0, 3.0], strict=True):
        assert middle * (1 - JITTER) <= pause <= middle * (1 + JITTER)


def test_two_callers_that_failed_together_do_not_come_back_together() -> None:
    random.seed("any")
    together = [list(islice(pauses(1.0), 5)) for _ in range(20)]
    assert all(len({round(each[attempt], 6) for each in together}) == 20 for attempt in range(5))


def test_a_loop_that_counts_gets_the_same_pauses_and_none_before_its_first_attempt() -> None:
    assert pause_before(0, 5.0) == 0.0
    assert 8.0 * (1 - JITTER) <= pause_before(4, 1.0) <= 8.0 * (1 + JITTER)


@pytest.mark.parametrize("attempt", [100, 5000])
def test_a_very_long_row_of_failures_stays_at_the_limit(attempt: int) -> None:
    assert pause_before(attempt, 0.2, 60.0) <= 60.0 * (1 + JITTER)
