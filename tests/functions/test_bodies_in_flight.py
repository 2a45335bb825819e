"""Many bodies at once: memory is bounded, and whoever sends slowly keeps nobody out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from starlette.requests import Request

from functions import requests
from functions.requests import BodiesInFlight, HttpError

Receive = Callable[[], Awaitable[dict[str, object]]]


def request(*parts: bytes, ends: bool) -> Request:
    """A body of these parts, which then ends or stands still."""
    coming = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def receive() -> dict[str, object]:
        if coming:
            return coming.pop(0)
        if not ends:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


async def settled(bodies: BodiesInFlight, *asked: Request, proven: bool = False) -> list[asyncio.Task[bytes]]:
    tasks = [asyncio.create_task(bodies.read(each, proven=proven)) for each in asked]
    for _ in range(20):
        await asyncio.sleep(0)
    return tasks


def status_of(task: asyncio.Task[bytes]) -> int | None:
    if not task.done():
        return None
    error = task.exception()
    return error.status if isinstance(error, HttpError) else 200


async def ended(tasks: list[asyncio.Task[bytes]]) -> None:
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_slow_senders_make_room_for_one_who_sends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_UNPROVEN", 5)

    async def scenario() -> None:
        bodies = BodiesInFlight()
        slow = await settled(bodies, *(request(b"x", ends=False) for _ in range(12)))
        assert [status_of(each) for each in slow] == [503] * 7 + [None] * 5  # the longest first
        assert await bodies.read(request(b"hello", ends=True), proven=False) == b"hello"
        await asyncio.wait(slow, return_when=asyncio.ALL_COMPLETED, timeout=0.01)
        assert [status_of(each) for each in slow].count(None) == 4
        await ended(slow)

    asyncio.run(scenario())


def test_all_bodies_together_are_bounded_in_bytes_and_the_unproven_ones_give_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "MOST_BYTES", 100)

    async def scenario() -> None:
        bodies = BodiesInFlight()
        unproven = await settled(bodies, *(request(b"x" * 30, ends=False) for _ in range(3)))
        proven = await settled(bodies, *(request(b"y" * 30, ends=False) for _ in range(3)), proven=True)
        assert [status_of(each) for each in unproven] == [503, 503, 503]
        assert [status_of(each) for each in proven] == [None, None, None]
        (late,) = await settled(bodies, request(b"z" * 30, ends=False), proven=True)
        assert status_of(late) == 503  # nothing is left that could make room
        await ended(proven)
        assert await bodies.read(request(b"z" * 30, ends=True), proven=True) == b"z" * 30

    asyncio.run(scenario())


@pytest.mark.parametrize("proven", [True, False])
def test_what_was_read_given_up_or_cancelled_counts_no_more(proven: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_BYTES", 50)
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.01)
    monkeypatch.setattr(requests, "UNPROVEN_SECONDS", 0.01)

    async def scenario() -> None:
        bodies = BodiesInFlight()
        for _ in range(10):
            assert await bodies.read(request(b"x" * 40, ends=True), proven=proven) == b"x" * 40
            with pytest.raises(HttpError):
                await bodies.read(request(b"x" * 40, ends=False), proven=proven)
            gone = asyncio.create_task(bodies.read(request(b"x" * 40, ends=False), proven=proven))
            await asyncio.sleep(0)
            await ended([gone])

    asyncio.run(scenario())


def test_the_oldest_makes_room_although_it_is_the_one_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MOST_BYTES", 50)

    async def scenario() -> None:
        with pytest.raises(HttpError) as caught:
            await BodiesInFlight().read(request(b"x" * 30, b"x" * 30, ends=False), proven=False)
        assert caught.value.status == 503 and caught.value.headers["retry-after"] == "1"

    asyncio.run(scenario())
