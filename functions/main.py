"""Targets for functions-framework, from a plain checkout:

    functions-framework --source functions/main.py --target on_run_started   (or poll_tick, fork_best_of_n)
    functions-framework --source functions/main.py --target bundle           (all three, by path, on one port)

The framework loads this file in gunicorn's master and forks afterwards, so no SDK may be imported from here
(docs/wire/runtimes.md#0-findings; tests/functions/test_imports.py).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The framework puts this file's own folder on the path; the packages are beside it.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response

from functions import fork_best_of_n as fork_module
from functions import on_run_started as webhook_module
from functions import poll_tick as tick_module
from functions.requests import json_response
from shared.telemetry import configure_logging

configure_logging(os.environ)


@functions_framework.aio.http
async def on_run_started(request: Request) -> Response:
    return await webhook_module.on_run_started(request)


@functions_framework.aio.http
async def poll_tick(request: Request) -> Response:
    return await tick_module.poll_tick(request)


@functions_framework.aio.http
async def fork_best_of_n(request: Request) -> Response:
    return await fork_module.fork_best_of_n(request)


@functions_framework.aio.http
async def bundle(request: Request) -> Response:
    """All three by path; `/` is the webhook, as in the reference integration."""
    match request.scope["path"].rstrip("/"):
        case "" | "/on_run_started":
            return await webhook_module.on_run_started(request)
        case "/poll_tick":
            return await tick_module.poll_tick(request)
        case "/fork_best_of_n":
            return await fork_module.fork_best_of_n(request)
        case "/healthz" | "/readyz":
            return json_response({"ok": True})
        case _:
            return json_response({"error": {"type": "not_found", "message": "no such function"}}, status=404)
