"""A full quota is asked about by one item, with growing pauses, and known to all."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable

import pytest

from shared.claims.capacity import Capacity
from shared.deadline import Deadline
from tests.support.virtual_time import run_virtual


def test_one_of_many_asks_again_and_the_shortage_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def play(clock: Callable[[], float]) -> None:
        room = Capacity("env_1", clock)
        room.lacks("HTTP 429: quota")
        asked: list[float] = []

        async def item() -> bool:
            while True:
                async with room.turn(Deadline.after(45.0 - clock(), clock)) as granted:
                    if not granted:
                        return False
                    asked.append(clock())
                    await asyncio.sleep(0.1)
                    room.lacks("HTTP 429: quota")

        assert await asyncio.gather(*(item() for _ in range(50))) == [False] * 50
        assert 2 <= len(asked) <= 8
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert gaps[-1] > gaps[0]

    with caplog.at_level(logging.WARNING):
        run_virtual(play)
    assert len([record for record in caplog.records if "capacity.full" in record.message]) == 1


def test_when_there_is_room_the_waiting_go_in_one_at_a_time() -> None:
    async def play(clock: Callable[[], float]) -> None:
        room = Capacity("env_1", clock)
        room.lacks("HTTP 403: limit")
        inside = most = made = 0

        async def item() -> None:
            nonlocal inside, most, made
            async with room.turn(Deadline.after(60.0, clock)) as granted:
                assert granted
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.2)
                made += 1
                room.has_room()
                inside -= 1

        await asyncio.gather(*(item() for _ in range(20)))
        assert (made, most) == (20, 1)
        assert room.shortage is None
        async with room.turn(Deadline.after(1.0, clock)) as granted:
            assert granted

    run_virtual(play)


def test_an_item_that_is_cancelled_while_it_asks_leaves_its_turn_to_the_next() -> None:
    async def play(clock: Callable[[], float]) -> None:
        room = Capacity("env_1", clock)
        room.lacks("HTTP 402")
        entered = asyncio.Event()

        async def hangs() -> None:
            async with room.turn(Deadline.after(60.0, clock)):
                entered.set()
                await asyncio.Event().wait()

        first = asyncio.create_task(hangs())
        await entered.wait()
        second = asyncio.create_task(hangs())
        await asyncio.sleep(1.0)
        first.cancel()
        entered.clear()
        await entered.wait()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)

    run_virtual(play)
