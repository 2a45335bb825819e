"""What a long-lived server has besides its handlers: a ticker, an eye on the clock, counters, and the doors to them.

In a sandbox (SERVER_SANDBOX) only the webhook is open without a token: whatever the public address shows to strangers
is shown to everybody, so `/healthz` and `/readyz` are closed there too. `/status` is closed everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from functions.auth import require_token
from functions.requests import HttpError, not_configured
from functions.server.request_counter import RequestCounts
from functions.server.scheduler import Scheduler
from functions.server.suspend_detector import SuspendDetector
from functions.state import Bundle
from shared.errors import SecretUnavailable, SettingsError
from shared.owner_keys import HEADER, PARAMETER, owner_key

log = logging.getLogger(__name__)


class ServerLifecycle:
    """One server's life. `preload` imports the SDKs; nothing ticks before it has ended."""

    def __init__(self, bundle: Bundle, preload: asyncio.Future[None]) -> None:
        self.bundle = bundle
        self.preload = preload
        self.request_counts = RequestCounts()
        self.scheduler = Scheduler(bundle.tick, bundle.settings.self_tick_seconds)
        self.suspend_detector = SuspendDetector(self._stood_still, longest=bundle.settings.standstill_seconds)
        self.started_at = time.time()

    def _stood_still(self, seconds: float) -> None:
        """Connections of before are dead or about to be, and what the queue did meanwhile is not known."""
        log.info("server.stood_still seconds=%.1f", seconds)
        self.bundle.renew_clients()
        self.scheduler.soon()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.suspend_detector.watch())]
        if self.bundle.settings.self_tick_seconds:
            tasks.append(asyncio.create_task(self._tick()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _tick(self) -> None:
        await asyncio.wait([self.preload])  # imports that a tick would make would hold the event loop for a second
        await self.scheduler.run()

    def report(self) -> dict[str, Any]:
        settings = self.bundle.settings
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
        }


def lifecycle_of(request: Request) -> ServerLifecycle:
    lifecycle = request.scope["state"]["lifecycle"]
    if not isinstance(lifecycle, ServerLifecycle):
        raise TypeError("the lifespan state's serving is not a Serving")
    return lifecycle


async def healthz(request: Request) -> Response:
    """Alive: answers while the SDKs are still being imported."""
    return _refusal(request, health=True) or JSONResponse({"ok": True})


async def readyz(request: Request) -> Response:
    """Ready: the SDKs are imported. 503 until then."""
    refusal = _refusal(request)
    if refusal is not None:
        return refusal
    ready = lifecycle_of(request).preload.done()
    return JSONResponse({"ready": ready}, status_code=200 if ready else 503)


async def status(request: Request) -> Response:
    """How this server fares, for its owner: counters since its start. 401 without the token or the owner's key."""
    return _refusal(request, always=True) or JSONResponse(lifecycle_of(request).report())


def _refusal(request: Request, *, health: bool = False, always: bool = False) -> Response | None:
    """None for whoever may look: everybody on a host, the owner and the supervisor in a sandbox."""
    settings = lifecycle_of(request).bundle.settings
    if not settings.server_sandbox and not always:
        return None
    try:
        tensorlake_key = settings.tensorlake_key.reveal()
        if _equal(request.headers.get(HEADER, ""), owner_key(tensorlake_key, "status")):
            return None
        if health and _equal(request.query_params.get(PARAMETER, ""), owner_key(tensorlake_key, "health")):
            return None
        require_token(request, settings)
    except HttpError as error:
        return error.response()
    except (SettingsError, SecretUnavailable) as error:
        return not_configured(error)
    return None


def _equal(shown: str, key: str) -> bool:
    return hmac.compare_digest(shown.encode(errors="surrogateescape"), key.encode())
