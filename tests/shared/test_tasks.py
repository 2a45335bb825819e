"""Ends are seen to, whatever becomes of the caller."""

from __future__ import annotations

import asyncio

import pytest

from shared.tasks import drop, shielded, to_its_end, together


def test_shielded_work_is_done_to_its_end_and_the_cancellation_comes_after_it() -> None:
    async def play() -> None:
        gate, done = asyncio.Event(), []

        async def work() -> None:
            await gate.wait()
            done.append(True)

        caller = asyncio.create_task(shielded(work()))
        for _ in range(3):
            await asyncio.sleep(0)
            caller.cancel()
        assert not caller.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert done == [True] and len(asyncio.all_tasks()) == 1

    asyncio.run(play())


def test_what_shielded_work_raises_comes_before_a_cancellation() -> None:
    async def play() -> None:
        gate = asyncio.Event()

        async def work() -> None:
            await gate.wait()
            raise LookupError("the work's own")

        caller = asyncio.create_task(shielded(work()))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(LookupError, match="own"):
            await caller

    asyncio.run(play())


def test_waiting_for_an_end_outlasts_a_cancellation_and_drops_leave_nothing() -> None:
    async def play() -> None:
        gate = asyncio.Event()
        task = asyncio.create_task(gate.wait())
        waiter = asyncio.create_task(to_its_end(task))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.sleep(0)
        assert not waiter.done()
        await drop(task)
        with pytest.raises(asyncio.CancelledError):
            await waiter
        await drop(None)
        assert task.cancelled() and len(asyncio.all_tasks()) == 1

    asyncio.run(play())


def test_the_first_failure_of_works_done_together_ends_the_others_first() -> None:
    async def play() -> None:
        ended = []

        async def long() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        async def failing() -> None:
            await asyncio.sleep(0)
            raise LookupError

        with pytest.raises(LookupError):
            await together(long(), failing(), long())
        assert ended == [True, True]

    asyncio.run(play())
