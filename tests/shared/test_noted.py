"""What was asked for is remembered, whether it was there or not; what was only listed is not."""

from __future__ import annotations

from shared.noted import NotedEnviron


def test_names_are_noted_by_every_way_of_asking_and_by_no_listing() -> None:
    environ = NotedEnviron({"A": "1", "B": "2", "C": "3"})
    assert sorted(environ) == ["A", "B", "C"] and len(environ) == 3
    assert environ.read == set()
    assert environ["A"] == "1" and environ.get("GONE", "") == "" and "B" in environ
    assert environ.read == {"A", "B", "GONE"}
