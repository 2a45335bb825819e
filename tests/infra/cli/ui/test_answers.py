"""What many browsers cost the services."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from infra.cli.fleet.pace import CALLS_A_MINUTE, LEAST, pause_after
from infra.cli.ui.answers import Shared, SharedEach


@pytest.mark.parametrize("calls", [1, 4, 30])
def test_however_many_look_and_whatever_a_look_takes_the_calls_a_minute_are_bounded(calls: int) -> None:
    now = 0.0
    looks: list[float] = []

    async def look() -> int:
        looks.append(now)
        return calls

    async def go() -> None:
        nonlocal now
        shared = Shared(look, pause_after, clock=lambda: now)
        while now < 600.0:
            await asyncio.gather(shared.get(), shared.get())
            now += 0.5

    asyncio.run(go())
    within = [sum(start <= each < start + 60.0 for each in looks) * calls for start in looks]
    assert max(within) <= CALLS_A_MINUTE + calls and len(looks) > 30
    assert min(after - before for before, after in itertools.pairwise(looks)) >= LEAST


def test_each_key_has_an_answer_of_its_own_and_the_oldest_ones_are_forgotten() -> None:
    asked: list[str] = []

    async def read(key: str) -> str:
        asked.append(key)
        return f"of {key}"

    async def go() -> None:
        each = SharedEach(read)
        assert list(await asyncio.gather(*map(each.get, "aba"))) == ["of a", "of b", "of a"]
        assert asked == ["a", "b"]
        for number in range(100):
            await each.get(str(number))
        await each.get("a")
        assert asked.count("a") == 2

    asyncio.run(go())
