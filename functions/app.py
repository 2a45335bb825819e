"""All functions on one ASGI app: for uvicorn in a sandbox, on a host or in a container.

    uvicorn functions.app:app --host 0.0.0.0 --port 5051

The SDKs are imported in a thread once the server listens, so that it answers at once and a first webhook does not wait
for them (contract runtimes 1). `POST /` is the webhook path of the reference integration.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from functions.bundle import Bundle
from functions.fork_best_of_n import fork_best_of_n
from functions.on_run_started import on_run_started
from functions.poll_tick import poll_tick
from shared.settings import Settings
from shared.telemetry import configure_logging


async def healthz(request: Request) -> Response:
    """Alive: answers while the SDKs are still being imported."""
    return JSONResponse({"ok": True})


async def readyz(request: Request) -> Response:
    """Ready: the SDKs are imported. 503 until then."""
    preload: asyncio.Task[None] = request.state.preload
    ready = preload.done()
    return JSONResponse({"ready": ready}, status_code=200 if ready else 503)


def preload_sdks() -> None:
    """Import what the first drain needs."""
    import anthropic  # noqa: F401
    import tensorlake.sandbox  # noqa: F401


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
    configure_logging(os.environ)
    bundle = Bundle(Settings.from_environ(os.environ), background=True)
    preload = asyncio.create_task(asyncio.to_thread(preload_sdks))
    try:
        yield {"bundle": bundle, "preload": preload}
    finally:
        await asyncio.gather(preload, return_exceptions=True)
        await bundle.aclose()


app = Starlette(
    routes=[
        Route("/", on_run_started, methods=["POST"]),
        Route("/on_run_started", on_run_started, methods=["POST"]),
        Route("/poll_tick", poll_tick, methods=["POST"]),
        Route("/fork_best_of_n", fork_best_of_n, methods=["POST"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
    ],
    lifespan=lifespan,
)
