"""Interrupts are found in a stream however it is cut, and nothing that a model says is one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx2
import pytest

from image.session.worker.interrupts import watched

INTERRUPT = {"type": "user.interrupt", "id": "sevt_1", "processed_at": "2026-10-20T09:00:10Z"}
HOSTILE = {"type": "agent.tool_use", "input": {"a": '"type":"user.interrupt"', "b": {"type": "user.interrupt"}}}


def frame(event: object) -> bytes:
    return b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n"


class Stream(httpx2.AsyncByteStream):
    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size = data, size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self.data), self.size):
            yield self.data[at : at + self.size]

    async def aclose(self) -> None:
        pass


def interrupts(data: bytes, size: int, **headers: str) -> int:
    """How many there are in it. All of it must pass."""
    told: list[None] = []

    async def read() -> bytes:
        answer = httpx2.Response(200, stream=Stream(data, size), headers=headers)
        return await watched(answer, lambda: told.append(None)).aread()

    assert asyncio.run(read()) == data
    return len(told)


@pytest.mark.parametrize("size", [1, 7, 65_536])
def test_each_interrupt_of_the_session_is_told_and_nothing_else(size: int) -> None:
    others = [HOSTILE, {**INTERRUPT, "session_thread_id": "sthr_1"}, [INTERRUPT], {"type": "session.status_idle"}]
    data = b"".join(map(frame, [*others, INTERRUPT, *others, INTERRUPT]))
    assert interrupts(data, size) == 2
    assert interrupts(data.replace(b"\n", b"\r\n"), size) == 2
    assert interrupts(b'data: {"type":"user.interrupt"\n\ndata: "user.interrupt"\n\n', size) == 0


def test_a_line_of_any_length_is_passed_and_not_kept() -> None:
    flood = b"data: " + b"x" * 3_000_000
    assert interrupts(flood + b"\n\n" + frame(INTERRUPT), 50_000) == 1
    assert interrupts(flood + b'{"type":"user.interrupt"}\n\n', 50_000) == 0
