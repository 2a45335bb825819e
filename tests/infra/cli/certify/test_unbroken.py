"""A call that makes something runs to its end, whatever becomes of its caller."""

from __future__ import annotations

import asyncio

import pytest

from infra.cli.certify.unbroken import to_its_end


class Making:
    """A call under way: `begun` when it is, and it ends when it may."""

    def __init__(self) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> str:
        self.begun.set()
        await self.may_end.wait()
        return "made"


def test_the_result_is_had_and_the_cancellation_comes_at_the_next_await() -> None:
    made: list[str] = []

    async def play() -> None:
        call = Making()

        async def make() -> None:
            made.append(await to_its_end(call()))
            await asyncio.sleep(0)
            made.append("went on")

        task = asyncio.ensure_future(make())
        await call.begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        call.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(play())
    assert made == ["made"]


def test_a_time_out_meanwhile_is_told_as_one() -> None:
    async def play() -> None:
        call = Making()
        asyncio.get_running_loop().call_later(0.05, call.may_end.set)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                assert await to_its_end(call()) == "made"
                await asyncio.sleep(0)
        await asyncio.sleep(0)  # nothing of it is left for whoever goes on

    asyncio.run(play())


def test_what_the_call_raises_is_raised() -> None:
    async def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        asyncio.run(to_its_end(fail()))
