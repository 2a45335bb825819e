"""What a race tells its caller while it runs: each event, and the last line of a running branch now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from shared.deadline import Clock
from shared.races import events
from shared.races.branch import BranchRunner
from shared.races.report import Phase, RaceSpan
from shared.races.shell import SandboxShell

_LOOK_SECONDS: Final = 1.0  # between two looks at what a branch writes


class RaceProgress:
    """`on_event` is None where nobody listens; `now` gives seconds since the race began."""

    def __init__(self, on_event: events.OnEvent | None, shell: SandboxShell, now: Clock) -> None:
        self._on_event = on_event
        self._shell = shell
        self._now = now
        self._has_begun = False

    def tell(self, event: events.Event) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def began(self, race_id: str, branches: Sequence[str]) -> None:
        """Told once, however often it is called."""
        if not self._has_begun:
            self._has_begun = True
            self.tell(events.RaceBegan(race_id=race_id, branches=tuple(branches), at=self._now()))

    def phase_began(self, phase: Phase, branch: str | None) -> None:
        self.tell(events.PhaseBegan(branch=branch, phase=phase, at=self._now()))

    def decided(self, runner: BranchRunner, why_not: str | None = None) -> None:
        """Told once for each branch. `why_not` is the reason of one that has no verdict."""
        if not runner.told:
            runner.told = True
            self.tell(events.BranchDecided(report=runner.report(why_not), at=self._now()))

    @asynccontextmanager
    async def watching(self, name: str, sandbox_id: str, mark: str) -> AsyncIterator[None]:
        """Tells the last line of a running branch, once a second, while somebody listens."""
        if self._on_event is None:
            yield
            return
        watching = asyncio.create_task(self._watch(name, sandbox_id, mark))
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    async def _watch(self, name: str, sandbox_id: str, mark: str) -> None:
        told = ""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            line = (await self._shell.last_line(sandbox_id, mark))[: events.LINE_CHARACTERS]
            if line and line != told:
                told = line
                self.tell(events.OutputLine(branch=name, line=line, at=self._now()))


class Timeline:
    """Spans in the order in which they began; one that was cancelled ends where it was cancelled.

    `began` is told of each phase as it begins.
    """

    def __init__(self, clock: Clock, began: Callable[[Phase, str | None], None] = lambda phase, branch: None) -> None:
        self._clock = clock
        self._tell = began
        self._began = clock()
        self._spans: list[RaceSpan] = []

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
        self._spans.append(RaceSpan(phase=phase, branch=branch, start=start, end=self.now()))

    def spans(self) -> tuple[RaceSpan, ...]:
        return tuple(sorted(self._spans, key=lambda span: span.start))
