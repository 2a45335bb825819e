"""Targets for functions-framework, from a plain checkout:

    functions-framework --source functions/main.py --target on_run_started   (or poll_tick, fork_best_of_n)
    functions-framework --source functions/main.py --target bundle           (all three, by path, on one port)

The framework loads this file in gunicorn's master and forks afterwards, so no SDK may be imported from here
(docs/wire/runtimes.md#0-findings; tests/functions/test_imports.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

# The framework puts this file's own folder on the path; the packages are beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from functions import fork_best_of_n as fork_module
from functions import on_run_started as webhook_module
from functions import poll_tick as tick_module
from functions.request_spans import told
from functions.requests import json_response
from shared import otel
from shared.telemetry import configure_logging

configure_logging(os.environ)


async def _told(request: Request, handler: Callable[[Request], Awaitable[Response]]) -> Response:
    otel.start(os.environ)  # here and not above: its threads must be this worker's own
    return await told(request, handler)


@functions_framework.aio.http
async def on_run_started(request: Request) -> Response:
    return await _told(request, webhook_module.on_run_started)


@functions_framework.aio.http
async def poll_tick(request: Request) -> Response:
    return await _told(request, tick_module.poll_tick)


@functions_framework.aio.http
async def fork_best_of_n(request: Request) -> Response:
    return await _told(request, fork_module.fork_best_of_n)


@functions_framework.aio.http
async def bundle(request: Request) -> Response:
    """All three by path; `/` is the webhook, as in the reference integration."""
    match request.scope["path"].rstrip("/"):
        case "" | "/on_run_started":
            return await _told(request, webhook_module.on_run_started)
        case "/poll_tick":
            return await _told(request, tick_module.poll_tick)
        case path if path == "/fork_best_of_n" or path.startswith("/fork_best_of_n/"):
            return await _told(request, fork_module.fork_best_of_n)
        case "/healthz" | "/readyz":
            return json_response({"ok": True})
        case _:
            return json_response({"error": {"type": "not_found", "message": "no such function"}}, status=404)
