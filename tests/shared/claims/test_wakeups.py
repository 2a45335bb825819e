"""A storm of webhooks makes one drain, and one more; none is dropped."""

from __future__ import annotations

import asyncio

from shared.claims.wakeups import SingleFlight
from shared.deadline import Deadline


class Work:
    def __init__(self) -> None:
        self.begun = 0
        self.running = 0
        self.most_at_once = 0
        self.gate = asyncio.Event()

    async def __call__(self, until: Deadline | None = None) -> int:
        self.begun += 1
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        number = self.begun
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        return number


def test_wake_ups_during_a_run_ask_for_exactly_one_more() -> None:
    async def scenario() -> None:
        work = Work()
        flight = SingleFlight(work)
        first = flight.wake()
        await asyncio.sleep(0)
        later = [flight.wake() for _ in range(100)]
        work.gate.set()
        assert await first == 1
        assert set(await asyncio.gather(*later)) == {2}
        assert work.begun == 2
        assert work.most_at_once == 1

    asyncio.run(scenario())


def test_a_wake_up_after_a_run_starts_another() -> None:
    async def scenario() -> None:
        work = Work()
        work.gate.set()
        flight = SingleFlight(work)
        assert [await flight.wake() for _ in range(3)] == [1, 2, 3]

    asyncio.run(scenario())


def test_a_run_that_raises_does_not_stop_the_next_one() -> None:
    async def scenario() -> None:
        calls = 0

        async def work(_: Deadline | None) -> int:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0)
            if calls == 1:
                raise RuntimeError("first")
            return calls

        flight = SingleFlight(work)
        first = flight.wake()
        second = flight.wake()
        await asyncio.wait([first, second])
        assert isinstance(first.exception(), RuntimeError)
        assert second.result() == 2

    asyncio.run(scenario())


def test_closing_leaves_no_task_behind() -> None:
    async def scenario() -> None:
        flight = SingleFlight(Work())
        running, waiting = flight.wake(), None
        await asyncio.sleep(0)
        waiting = flight.wake()
        await flight.aclose(grace=0.01)
        assert running.cancelled()
        assert waiting.cancelled()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())
