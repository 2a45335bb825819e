"""A schedule for servers that have none: tick inside the process, at its start and then every SELF_TICK_SECONDS.

Webhooks are dropped after three attempts, and work that is queued again is announced by none
(docs/wire/anthropic.md#t7), so served functions without a schedule would leave a session waiting indefinitely. It
ticks in process: no request to itself keeps a sandbox awake that could sleep (docs/wire/tensorlake.md#57-timeout_secs:
traffic through the proxy does).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from functions.tick_remarks import log_remarks

if TYPE_CHECKING:
    from shared.reports import TickReport

EVERY_SECONDS: Final = 60.0
"""What a server without any other schedule should set."""

log = logging.getLogger(__name__)


class Scheduler:
    """`tick` once at the start and then `every` so many seconds, one at a time; `soon` makes the next one due.

    done, failed: how many ticks there were. A tick that raises is a bug, which is logged once until one succeeds.
    """

    def __init__(self, tick: Callable[[], Awaitable[TickReport]], every: float) -> None:
        self._tick = tick
        self._every = every
        self._due = asyncio.Event()
        self.done = 0
        self.failed = 0

    def soon(self) -> None:
        """The world may have moved on without us: look now."""
        self._due.set()

    async def run(self) -> None:
        """For ever: cancel it."""
        in_trouble = False
        while True:
            self._due.clear()
            try:
                report = await self._tick()
            except Exception:  # the edge of the loop: a bug in one tick must not end the schedule
                self.failed += 1
                if not in_trouble:
                    log.exception("tick.bug")
                in_trouble = True
            else:
                self.done += 1
                in_trouble = False
                log_remarks(report)
            try:
                async with asyncio.timeout(self._every):
                    await self._due.wait()
            except TimeoutError:
                continue
