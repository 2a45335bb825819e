"""Starts that come together: what they need of the machine's cores is bounded."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from infra.local.tensorlake.box import Box, Level
from infra.local.tensorlake.isolation import STARTS_PER_CORE, Isolation


def test_of_many_starts_at_once_a_few_for_each_core_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most, ended = 0, 0, 0

    async def start(*arguments: Any) -> None:
        nonlocal under_way, most, ended
        under_way += 1
        most = max(most, under_way)
        for _ in range(10):
            await asyncio.sleep(0)
        under_way -= 1
        ended += 1

    async def all_at_once() -> None:
        isolation = Isolation(Level.PLAIN, None, None, {})  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as group:
            for _ in range(100 * allowed):
                group.create_task(isolation.start(None, None, "", None))  # type: ignore[arg-type]

    allowed = STARTS_PER_CORE * (os.cpu_count() or 1)
    monkeypatch.setattr(Box, "start", start)
    asyncio.run(all_at_once())
    assert (most, ended) == (allowed, 100 * allowed)
