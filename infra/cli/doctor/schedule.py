"""Does anybody tick? A server that lives in a sandbox sleeps between webhooks, and its own ticker sleeps with it."""

from __future__ import annotations

import asyncio
from typing import Final

from infra.cli.doctor.context import DoctorContext, account_of
from infra.cli.doctor.findings import Say, info, ok, warning
from infra.sandbox.look import ServerLook, look
from shared.adapters.sandbox_answers import sdk_reason

SHORTEST_PATIENCE: Final = 900.0
"""Seconds without a call from which on a schedule is missed: three of the pauses that the guide shows."""
_PAUSES: Final = 3


async def check_schedule(context: DoctorContext, say: Say) -> None:
    """Wakes nothing: a server that sleeps is not asked."""
    from tensorlake.sandbox import SandboxError

    try:
        server = await asyncio.to_thread(look, account_of(context))
    except SandboxError as problem:
        why = sdk_reason(problem, context.settings.tensorlake_url)
        say(info("HANDS304", f"whether there is a server sandbox is not known ({why})"))
        return
    judge(server, say)


def judge(server: ServerLook | None, say: Say) -> None:
    """By the server's own clock and counters. A sleeper is a warning: nobody may be calling it at all."""
    if server is None:
        return  # a host, a poller or a function: none of them tells whether a schedule calls it
    if server.report is None:
        why = server.silence or f"it is {server.status}, and only an awake server tells; make webhook-sandbox wakes it"
        say(warning("HANDS304", f"whether a schedule ticks the server sandbox is not known: {why}"))
        return
    now, started = float(server.report["now"]), float(server.report["started_at"])
    ticks = server.report["visits"]["ticks"]
    count, last = int(ticks["count"]), ticks["last_at"]
    if not count or last is None:
        up = now - started
        if up < SHORTEST_PATIENCE:
            seen = f"not yet known whether a schedule ticks the server sandbox: its server is up for {_minutes(up)}"
            say(info("HANDS304", seen))
        else:
            say(warning("HANDS304", f"nobody has called /poll_tick of the server sandbox in {_minutes(up)}"))
        return
    silent = now - float(last)
    pause = (float(last) - started) / count if count > 1 else 0.0
    times = f"{count} times since its server started, the last {_minutes(silent)} ago"
    if silent > max(SHORTEST_PATIENCE, _PAUSES * pause):
        say(warning("HANDS304", f"the schedule of the server sandbox seems to have ended: it called {times}"))
    else:
        say(ok("HANDS304", f"a schedule ticks the server sandbox: {times}"))


def _minutes(seconds: float) -> str:
    return f"{max(seconds, 0) / 60:.0f} min"
