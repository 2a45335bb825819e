"""Sees the interrupts of the session's turn in its event stream. The SDK makes nothing of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx2

_MARK: Final = b'"user.interrupt"'
_LONGEST_LINE: Final = 65_536  # bytes; the event has no content, so a longer line is another one


def watched(response: httpx2.Response, on_interrupt: Callable[[], None]) -> httpx2.Response:
    """The same answer. One that is compressed is left alone: nobody hears of interrupts then."""
    if response.status_code == 200 and "content-encoding" not in response.headers:
        response.stream = _Watched(response.stream, on_interrupt)
    return response


class _Watched(httpx2.AsyncByteStream):
    def __init__(self, inner: Any, on_interrupt: Callable[[], None]) -> None:
        self._inner = inner
        self._on_interrupt = on_interrupt
        self._line = bytearray()
        self._skips = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            self._look(chunk)
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _look(self, chunk: bytes) -> None:
        *ends, rest = chunk.replace(b"\r", b"\n").split(b"\n")
        for end in ends:
            self._take(end)
            if not self._skips and is_interrupt(bytes(self._line)):
                self._on_interrupt()
            self._line.clear()
            self._skips = False
        self._take(rest)

    def _take(self, part: bytes) -> None:
        self._skips = self._skips or len(self._line) + len(part) > _LONGEST_LINE
        if self._skips:
            self._line.clear()
        else:
            self._line += part


def is_interrupt(line: bytes) -> bool:
    """A line of a stream of server-sent events. An interrupt of one thread among several is none of the session's."""
    if not line.startswith(b"data:") or _MARK not in line:
        return False
    try:
        event = json.loads(line[len(b"data:") :])
    except ValueError:
        return False
    return isinstance(event, dict) and event.get("type") == "user.interrupt" and event.get("session_thread_id") is None
