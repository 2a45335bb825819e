"""One span and one measurement a request, on every runtime (OpenTelemetry's semantic conventions for HTTP servers).

Nothing of the request but its method and its route is told: a path that is none of ours is `other`, since an
unauthenticated caller could make any number of names.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import metrics, otel, tracing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

ROUTES: Final = frozenset({"/", "/on_run_started", "/poll_tick", "/fork_best_of_n"})
_SILENT: Final = frozenset({"/healthz", "/readyz", "/status", "/metrics"})
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_ERROR: Final = 500


class Answered:
    """`status`: what the caller was answered."""

    def __init__(self) -> None:
        self.status = _ERROR


@contextmanager
def request_span(method: str, path: str) -> Iterator[Answered]:
    answered = Answered()
    if path in _SILENT or not (metrics.is_on() or tracing.is_on()):
        yield answered
        return
    route = path if path in ROUTES else "other"
    known = {"http.request.method": method if method in _METHODS else "_OTHER", "http.route": route}
    began = time.monotonic()
    with tracing.span(f"{known['http.request.method']} {route}", known, kind="server") as span:
        try:
            yield answered
        finally:
            of = known | {"http.response.status_code": answered.status}
            span.set({"http.response.status_code": answered.status})
            if answered.status >= _ERROR:
                span.fail(str(answered.status))
            metrics.record(metrics.REQUESTS, time.monotonic() - began, of)


class RequestSpanMiddleware:
    """ASGI middleware: a request ends with the last byte of its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with request_span(scope["method"], scope["path"]) as answered:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    answered.status = message["status"]
                await send(message)

            await self._app(scope, receive, noted)


async def told(request: Request, handler: Callable[[Request], Awaitable[Response]]) -> Response:
    """The handler's answer, where the runtime may freeze the process with it: what waits to be exported goes first."""
    with request_span(request.method, request.scope["path"]) as answered:
        response = await handler(request)
        answered.status = response.status_code
    if metrics.is_on() or tracing.is_on():
        await asyncio.to_thread(otel.flush)
    return response
