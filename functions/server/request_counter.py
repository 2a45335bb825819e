"""Counts who calls a served bundle: the sender of webhooks, holders of a token, unauthenticated callers.

Any request wakes a sandbox that sleeps and keeps it awake, before anything of ours can refuse it. So what
unauthenticated callers cost is counted and shown (`/status`): every answer from 400 to 499 went to one. Nothing of
their requests is kept.
"""

from __future__ import annotations

import enum
import time
from collections import Counter
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

WEBHOOK_PATHS: Final = frozenset({"/", "/on_run_started"})
OWN_PATHS: Final = frozenset({"/healthz", "/readyz", "/status", "/metrics"})
TICK_PATH: Final = "/poll_tick"
PAGE_PATH: Final = "/ui"
"""Where a server with the page has it (infra/cli/ui/served.py)."""


class CallerKind(enum.StrEnum):
    """Who was answered, and `FAILED` for whoever met an error of ours."""

    WEBHOOK = "webhooks"
    TICK = "ticks"
    CALL = "calls"
    FAILED = "failures"
    STRANGER = "strangers"


class RequestCounts:
    """Counts since the start of this process."""

    def __init__(self) -> None:
        self._counts: Counter[CallerKind] = Counter()
        self._last: dict[CallerKind, float] = {}

    def answered(self, path: str, status: int, now: float) -> None:
        visitor = _visitor(path, status)
        if visitor is not None:
            self._counts[visitor] += 1
            self._last[visitor] = now

    def report(self) -> dict[str, Any]:
        """Of each kind how many, and when the last one came (seconds since the epoch, None for never)."""
        return {each.value: {"count": self._counts[each], "last_at": self._last.get(each)} for each in CallerKind}


def _visitor(path: str, status: int) -> CallerKind | None:
    """None for the owner's own looks."""
    if 400 <= status < 500:
        return CallerKind.STRANGER
    if path in OWN_PATHS or path == PAGE_PATH or path.startswith(f"{PAGE_PATH}/"):
        return None
    if status >= 500:
        return CallerKind.FAILED
    if path in WEBHOOK_PATHS:
        return CallerKind.WEBHOOK
    return CallerKind.TICK if path == TICK_PATH else CallerKind.CALL


class RequestCounterMiddleware:
    """ASGI middleware that tells the server's `ServerLifecycle` of every request and every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lifecycle = scope.get("state", {}).get("lifecycle")
        if scope["type"] != "http" or lifecycle is None:
            await self._app(scope, receive, send)
            return
        lifecycle.suspend_detector.look()  # a request that woke us must not use what went stale in our sleep
        path: str = scope["path"]

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                lifecycle.request_counts.answered(path, message["status"], time.time())
            await send(message)

        await self._app(scope, receive, counted)
