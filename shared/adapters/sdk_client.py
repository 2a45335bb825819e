"""Clients that were replaced, because their key was rotated: closed when the calls that still use them must be over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

log = logging.getLogger(__name__)

RETIRED_SECONDS: Final = 1800.0
"""Longer than any one call: the longest are a command of a race (900 s by default) and a list of very many pages."""

Close = Callable[[], Awaitable[None]]


class RetiredClients:
    """`seconds` pass between `add` and the close. Whatever is left is closed by `aclose`, at once."""

    def __init__(self, seconds: float = RETIRED_SECONDS) -> None:
        self._seconds = seconds
        self._waiting: dict[Close, asyncio.TimerHandle] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def add(self, close: Close) -> None:
        """Needs a running loop."""
        self._waiting[close] = asyncio.get_running_loop().call_later(self._seconds, self._due, close)

    async def aclose(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for close, timer in waiting.items():
            timer.cancel()
            await _closed(close)
        if self._closing:
            await asyncio.wait(self._closing)

    def _due(self, close: Close) -> None:
        self._waiting.pop(close, None)
        task = asyncio.get_running_loop().create_task(_closed(close))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _closed(close: Close) -> None:
    try:
        await close()
    except Exception:  # nobody uses it any more, and nobody can help
        log.warning("client.not_closed", exc_info=True)
