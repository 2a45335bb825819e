"""All functions on one ASGI app: for uvicorn in a sandbox, on a host or in a container.

    uvicorn functions.asgi:app --host 0.0.0.0 --port 5051 --ws none --backlog 128 \
        --http functions.server.http_protocol:BoundedHttpProtocol

The SDKs are imported in a thread once the server listens, so that it answers at once and a first webhook does not wait
for them (docs/wire/runtimes.md#1-functions-framework). `POST /` is the webhook path of the reference integration.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from functions.fork_best_of_n import fork_best_of_n
from functions.on_run_started import on_run_started
from functions.poll_tick import poll_tick
from functions.request_spans import RequestSpanMiddleware
from functions.requests import HttpError
from functions.server.descriptors import check_descriptor_limit
from functions.server.health import healthz, metrics, readyz, status
from functions.server.lifecycle import ServerLifecycle
from functions.server.request_counter import RequestCounterMiddleware
from functions.state import STATE, FunctionsState
from shared import otel
from shared.service import Service
from shared.settings import Settings
from shared.telemetry import configure_logging


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
    configure_logging(os.environ)
    otel.start(os.environ)
    check_descriptor_limit()
    state = FunctionsState(Service(Settings.from_environ(os.environ)), background=True)
    preload = asyncio.create_task(state.service.preload())
    lifecycle = ServerLifecycle(state.service, preload)
    try:
        async with lifecycle.running():
            yield {STATE: state, "lifecycle": lifecycle}
    finally:
        await asyncio.gather(preload, return_exceptions=True)
        await state.stop_races()
        await state.service.aclose()
        await asyncio.to_thread(otel.stop)


async def refused(request: Request, error: Exception) -> Response:
    """A path or a method that there is not, in the shape of every other error."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    kind = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_request")
    text = {404: "no such function", 405: "this function does not answer that method"}.get(status, "refused")
    return HttpError(status, kind, text, headers=headers).response()


def application(*more: BaseRoute) -> Starlette:
    """The functions, and what whoever serves them puts beside them."""
    made = Starlette(
        routes=[
            Route("/", on_run_started, methods=["POST"]),
            Route("/on_run_started", on_run_started, methods=["POST"]),
            Route("/poll_tick", poll_tick, methods=["POST"]),
            Route("/fork_best_of_n", fork_best_of_n, methods=["POST"]),
            Route("/fork_best_of_n/{race_id}", fork_best_of_n, methods=["GET", "DELETE"]),
            Route("/healthz", healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            Route("/status", status, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            *more,
        ],
        middleware=[Middleware(RequestCounterMiddleware), Middleware(RequestSpanMiddleware)],
        exception_handlers={HTTPException: refused},
        lifespan=lifespan,
    )
    made.router.redirect_slashes = False  # a redirect would send the caller wherever its Host header says
    return made


app = application()
