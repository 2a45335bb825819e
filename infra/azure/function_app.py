"""The functions on Azure Functions (Python v2 programming model): all paths over HTTP, and a timer that ticks.

A deployment has this file at its root, beside the packages functions, shared and image (docs/deploy/azure.md).
"""

from __future__ import annotations

import logging
import os

import azure.functions as func

from functions.asgi import app as asgi
from shared.service import Service
from shared.settings import Settings

os.environ.setdefault("DRAIN_MODE", "inline")  # an instance may be taken away once the answer is out
os.environ.setdefault("RACE_DEADLINE_SECONDS", "540")  # below host.json's functionTimeout
if "WEBSITE_HOSTNAME" in os.environ:  # a race that nobody waits for is a call of its own
    os.environ.setdefault("RACES_HANDED_TO", f"https://{os.environ['WEBSITE_HOSTNAME']}/fork_best_of_n")
app = func.AsgiFunctionApp(app=asgi, http_auth_level=func.AuthLevel.ANONYMOUS)  # the functions ask for proof themselves


@app.timer_trigger(schedule="0 * * * * *", arg_name="timer", run_on_startup=False, use_monitor=True)
async def scheduled_tick(timer: func.TimerRequest) -> None:
    """Nobody outside can call this, so it needs no token."""
    if timer.past_due:
        logging.getLogger(__name__).info("tick.past_due")
    service = Service(Settings.from_environ(os.environ))
    try:
        await service.tick()
    finally:
        await service.aclose()
