"""When what happened in a race, on one clock that starts with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.deadline import Clock
from shared.races.request import Phase, Span


class Timeline:
    """Spans in the order in which they began; one that was cancelled ends where it was cancelled.

    `began` is told of each phase as it begins.
    """

    def __init__(self, clock: Clock, began: Callable[[Phase, str | None], None] = lambda phase, branch: None) -> None:
        self._clock = clock
        self._tell = began
        self._began = clock()
        self._spans: list[Span] = []

    def now(self) -> float:
        """Seconds since the race began."""
        return round(self._clock() - self._began, 3)

    @contextmanager
    def span(self, phase: Phase, branch: str | None = None) -> Iterator[None]:
        start = self.now()
        self._tell(phase, branch)
        try:
            yield
        finally:
            self.add(phase, branch, start)

    def add(self, phase: Phase, branch: str | None, start: float) -> None:
        """A span from `start` until now."""
        self._spans.append(Span(phase=phase, branch=branch, start=start, end=self.now()))

    def spans(self) -> tuple[Span, ...]:
        return tuple(sorted(self._spans, key=lambda span: span.start))
