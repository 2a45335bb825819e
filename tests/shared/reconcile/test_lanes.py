"""Every kind of repair has its place beside the others (docs/reconciler.md#limits)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from shared.reconcile.lanes import Lanes
from shared.reconcile.repairs import Done
from shared.reports import Act


@dataclass(frozen=True, slots=True)
class Due:
    act: Act
    target: str = ""
    why: str = ""


def test_repairs_of_every_kind_are_done() -> None:
    done: list[Act] = []

    async def do(repair: object) -> Done:
        return Done()

    lanes = Lanes(do, lambda repair, outcome: done.append(repair.act), seconds=60.0, ends=len(Act))
    asyncio.run(lanes.run([Due(act) for act in Act]))  # type: ignore[misc]
    assert sorted(done) == sorted(Act)
    assert not lanes.waiting and not lanes.capped
