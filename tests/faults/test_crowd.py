"""A small crowd of the kind that `python -m tests.benchmarks scale` has for a day."""

from __future__ import annotations

from tests.faults.explorer.run import prepared
from tests.support.model.crowd import Crowd, Size


def test_a_working_load_is_served_beside_sleepers_and_nothing_is_starved() -> None:
    with prepared() as loop:
        crowd = Crowd(Size(sandboxes=60, live=20, copies=4, seconds=3 * 3600.0, turns=0.5), loop)
        figures = loop.run(crowd.play(), most_steps=5_000_000)
    assert crowd.truth.violations == []
    assert figures.turns >= 60
    assert (figures.late, figures.put_to_sleep) == (0, 0)
    assert max(figures.waits) < 30.0
    assert sum(sum(counts) for counts in figures.calls.values()) < 60 * 3 * 60
    assert not figures.alarms
