"""One server's life: its scheduler, its suspend detector, its request counters, and the SDKs' preload."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from functions.server.request_counter import RequestCounts
from functions.server.scheduler import Scheduler
from functions.server.suspend_detector import SuspendDetector
from shared.service import Service

if TYPE_CHECKING:
    from shared.reports import TickReport

log = logging.getLogger(__name__)


class ServerLifecycle:
    """One server's life. `preload` imports the SDKs; nothing ticks before it has ended."""

    def __init__(self, service: Service, preload: asyncio.Future[None]) -> None:
        self.service = service
        self.preload = preload
        self.request_counts = RequestCounts()
        self.scheduler = Scheduler(self._one_tick, service.settings.self_tick_seconds)
        self.suspend_detector = SuspendDetector(self._stood_still, longest=service.settings.standstill_seconds)
        self.started_at = time.time()

    def _stood_still(self, seconds: float) -> None:
        """Connections of before are dead or about to be, and what the queue did meanwhile is not known."""
        log.info("server.stood_still seconds=%.1f", seconds)
        self.service.renew_clients()
        self.scheduler.soon()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.suspend_detector.watch())]
        if self.service.settings.self_tick_seconds:
            tasks.append(asyncio.create_task(self._tick()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one_tick(self) -> TickReport:
        return await self.service.tick(patience=0.0)  # the next tick's repairs do not wait for this one's items

    async def _tick(self) -> None:
        await asyncio.wait([self.preload])  # imports that a tick would make would hold the event loop for a second
        await self.scheduler.run()

    def report(self) -> dict[str, Any]:
        settings = self.service.settings
        return {
            "sandbox": settings.server_sandbox,
            "started_at": self.started_at,
            "now": time.time(),
            "ready": self.preload.done(),
            "webhooks_open": bool(settings.signing_keys),
            "stood_still": self.suspend_detector.count,
            "self_tick_seconds": settings.self_tick_seconds,
            "own_ticks": {"count": self.scheduler.done, "failed": self.scheduler.failed},
            "visits": self.request_counts.report(),
            "calls": self.service.call_use(),
        }
