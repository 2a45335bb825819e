"""Whether the service has room for another sandbox, as the creates of this process have found out.

A full quota is an answer to wait on: it is known to all items of an environment at once, one of them asks again with
growing pauses, and nobody else does. When there is room the others go in one at a time, so that a quota that is nearly
full is not met by all of them together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

from shared.backoff import pauses
from shared.deadline import Clock, Deadline

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 2.0
_LONGEST_PAUSE: Final = 30.0


class Capacity:
    """One environment's. `shortage` says why there was no room at the last try; None where nothing is known to lack."""

    def __init__(self, environment_id: str, clock: Clock = time.monotonic) -> None:
        self._environment_id = environment_id
        self._clock = clock
        self.shortage: str | None = None
        self._again_at = 0.0
        self._pauses: Iterator[float] = pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._asking = False
        self._waiting = 0
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def turn(self, deadline: Deadline) -> AsyncIterator[bool]:
        """Holds the right to make a sandbox: at once where nothing is known to lack, else when it is one's turn. False
        where that does not come before the deadline."""
        self._waiting += 1
        try:
            granted = await self._granted(deadline)
        finally:
            self._waiting -= 1
        mine = granted and self.shortage is not None
        try:
            yield granted
        finally:
            if mine:
                self._asking = False
                self._tell()

    async def _granted(self, deadline: Deadline) -> bool:
        while self.shortage is not None:
            now = self._clock()
            if not self._asking and now >= self._again_at:
                self._asking = True
                return True
            if deadline.passed:
                return False
            wait = deadline.left() if self._asking else min(self._again_at - now, deadline.left())
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return True

    def lacks(self, reason: str) -> None:
        """A create or a resume found no room."""
        if self.shortage is None:
            log.warning("capacity.full environment=%s reason=%s", self._environment_id, reason)
        self.shortage = reason
        self._again_at = self._clock() + next(self._pauses)
        self._tell()

    def has_room(self) -> None:
        """A sandbox was made: whoever waits may try next."""
        if self.shortage is None:
            return
        self._again_at = self._clock()
        if not self._waiting:
            log.info("capacity.free environment=%s", self._environment_id)
            self.shortage = None
            self._pauses = pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
