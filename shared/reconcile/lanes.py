"""Repairs side by side, so that none keeps another one waiting.

Each kind has a lane of its own with a few places, and each repair has a few seconds. What hangs or is refused holds one
place of its own kind for that long. The cap on ends counts what was ended, not what was tried.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from shared.reconcile.repairs import Done, Failed, Outcome, Repair
from shared.reports import CAPPED, Act

_T = TypeVar("_T")

AT_ONCE: Final = 8
_LANES: Final = (
    frozenset({Act.RESUME, Act.TOUCH, Act.UNMARK}),
    frozenset({Act.RELEASE, Act.FINISH, Act.STOP_ITEM, Act.STOP_WORKER}),
    frozenset({Act.SUSPEND}),
    frozenset({Act.MARK}),
    frozenset({Act.END_FAILED, Act.END_MARKED}),
    frozenset({Act.PREPARE}),
    frozenset({Act.END_NAMELESS, Act.END_RACE, Act.DELETE_SNAPSHOT, Act.END_PREPARED}),
)
_LANE_OF: Final = {act: number for number, lane in enumerate(_LANES) for act in lane}


async def side_by_side(do: Callable[[_T], Coroutine[Any, Any, None]], whom: Sequence[_T]) -> None:
    """`do` for each of them. One alone, and none, are most often, and need no task."""
    if len(whom) < 2:
        for each in whom:
            await do(each)
    else:
        async with asyncio.TaskGroup() as group:
            for each in whom:
                group.create_task(do(each))


class Lanes:
    """The lanes of one pass. `seconds` bounds each repair, `longer` those of some kinds instead; `ends` is how many
    capped ends may be done."""

    def __init__(
        self,
        do: Callable[[Repair], Awaitable[Outcome]],
        report: Callable[[Repair, Outcome], None],
        *,
        seconds: float,
        ends: int,
        longer: Mapping[Act, float] | None = None,
    ) -> None:
        self._do = do
        self._report = report
        self._seconds = seconds
        self._longer = longer or {}
        self._places: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))  # by lane
        self._allowance = _Allowance(ends)
        self.waiting: list[Repair] = []  # neither done nor tried
        self.capped: list[Repair] = []

    async def run(self, repairs: Sequence[Repair]) -> None:
        """All of them, each lane in the given order. What is cut off stays in `waiting`."""
        self.waiting += repairs
        await side_by_side(self._one, repairs)

    async def _one(self, repair: Repair) -> None:
        async with self._places[_LANE_OF[repair.act]]:
            if repair.act not in CAPPED:
                self._settle(repair, await self._bounded(repair))
            elif await self._allowance.take():
                outcome: Outcome = Failed("cut off")
                try:
                    outcome = await self._bounded(repair)
                finally:
                    self._allowance.used(isinstance(outcome, Done))
                self._settle(repair, outcome)
            else:
                self.capped.append(repair)

    async def _bounded(self, repair: Repair) -> Outcome:
        seconds = self._longer.get(repair.act, self._seconds)
        try:
            async with asyncio.timeout(seconds):
                return await self._do(repair)
        except TimeoutError:
            return Failed(f"no answer within {seconds:g} s")

    def _settle(self, repair: Repair, outcome: Outcome) -> None:
        self.waiting.remove(repair)
        self._report(repair, outcome)


class _Allowance:
    """So many may succeed. Who finds all of them under way waits until one has failed, or all have succeeded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way = 0
        self._succeeded = 0
        self._changed = asyncio.Event()

    async def take(self) -> bool:
        while self._under_way + self._succeeded >= self._most:
            if self._succeeded >= self._most:
                return False
            self._changed.clear()
            await self._changed.wait()
        self._under_way += 1
        return True

    def used(self, succeeded: bool) -> None:
        self._under_way -= 1
        self._succeeded += succeeded
        self._changed.set()
