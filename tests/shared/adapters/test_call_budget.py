"""One process's calls: below the limit in any minute, claims first, and none while the service says to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from shared.adapters.call_budget import CallBudget, Holds, Priority, behind, retry_after
from shared.adapters.call_counts import HOURS, PARTS
from tests.support.virtual_time import run_virtual

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_no_sixty_seconds_see_more_calls_than_the_limit_however_many_ask() -> None:
    async def play(clock: Callable[[], float]) -> None:
        budget, sent = CallBudget(120, clock), []

        async def caller() -> None:
            while clock() < 180:
                await budget.admit(Priority.CLAIM)
                sent.append(clock())

        await asyncio.gather(*(caller() for _ in range(50)))
        busiest = max(sum(start <= at < start + 60 for at in sent) for start in range(120))
        assert 100 <= busiest <= 120 + 1

    run_virtual(play)


@pytest.mark.parametrize("limit", [0, 120])
def test_calls_are_counted_for_the_last_minute_and_the_busiest_one_of_each_part_of_six_hours(limit: int) -> None:
    async def play(clock: Callable[[], float]) -> None:
        budget = CallBudget(limit, clock)
        for calls, pause in ((20, 3_600.0), (5, 60.0), (7, 0.0)):
            for _ in range(calls):
                await budget.admit(Priority.CLAIM)
            await asyncio.sleep(pause)
        assert budget.counts.last_minute() == 7 and budget.per_minute == (limit or None)
        most = budget.counts.busiest()
        assert len(most) == PARTS and most[-1] == 7 and most[-7] == 20 and sum(most) == 27
        await asyncio.sleep(HOURS * 3600)
        assert budget.counts.last_minute() == sum(budget.counts.busiest()) == 0

    run_virtual(play)


def test_what_look_ups_leave_is_there_for_repairs_and_claims_at_once() -> None:
    async def play(clock: Callable[[], float]) -> None:
        budget = CallBudget(400, clock)
        looking = [asyncio.create_task(budget.admit(Priority.LOOKUP)) for _ in range(250)]
        with behind(Priority.LOOKUP):
            looking += [asyncio.create_task(budget.admit(Priority.CLAIM)) for _ in range(250)]
        await asyncio.sleep(0)
        began = clock()
        for priority, calls in ((Priority.REPAIR, 15), (Priority.CLAIM, 9)):
            for _ in range(calls):
                await budget.admit(priority)
            assert clock() == began, priority
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    run_virtual(play)


def test_without_a_limit_nothing_waits() -> None:
    async def play(clock: Callable[[], float]) -> None:
        budget = CallBudget(0, clock)
        for _ in range(10_000):
            await budget.admit(Priority.LOOKUP)
        assert clock() == 0.0

    run_virtual(play)


def test_a_credential_is_held_for_as_long_as_the_service_said_and_no_other_is() -> None:
    now = 100.0
    holds = Holds(lambda: now)
    assert holds.hold("key", 20.0) == 20.0
    assert (holds.left("key"), holds.left("other")) == (20.0, 0.0)
    holds.hold("key", 5.0)
    assert holds.left("key") == 20.0, "the longer of two is meant"
    now += 20.0
    assert holds.left("key") == 0.0
    assert holds.hold("key", 1e9) <= 600.0


def test_where_the_service_does_not_say_for_how_long_it_grows_until_something_is_answered() -> None:
    now = 0.0
    holds = Holds(lambda: now)
    waits = [holds.hold("key", None) for _ in range(12)]
    assert waits[0] < 2.0 and 30.0 < waits[-1] < 90.0
    holds.answered("key")
    assert holds.left("key") > 0.0, "that call had been sent before"
    now += 100.0
    holds.answered("key")
    assert holds.left("key") == 0.0 and holds.hold("key", None) < 2.0


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Fri, 02 Jan 2026 03:04:35 GMT"}, 30.0),
        ({"retry-after": "Fri, 02 Jan 2026 03:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form_and_nonsense_is_none(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds
