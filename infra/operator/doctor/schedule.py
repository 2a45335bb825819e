"""Does anybody tick? A server that lives in a sandbox sleeps between webhooks, and its own ticker sleeps with it."""

from __future__ import annotations

import asyncio

from infra.operator.doctor.findings import Say, info, ok, warning
from infra.operator.doctor.ground import Ground
from infra.sandbox.account import Account
from infra.sandbox.look import Look, look


async def check_schedule(ground: Ground, say: Say) -> None:
    """Wakes nothing: a server that sleeps is not asked."""
    from tensorlake.sandbox import SandboxError

    settings = ground.settings
    account = Account(settings.tensorlake_url, settings.tensorlake_key, settings.prefix)
    try:
        server = await asyncio.to_thread(look, account)
    except SandboxError as problem:
        say(info("HANDS304", f"whether there is a server sandbox is not known ({type(problem).__name__})"))
        return
    judge(server, say)


def judge(server: Look | None, say: Say) -> None:
    if server is None:
        return  # a host, a poller or a function: none of them tells whether a schedule calls it
    match server.outside_ticks:
        case None:
            why = f"it is {server.status}" if not server.awake else server.silence
            say(info("HANDS304", f"whether a schedule ticks the server sandbox is not known: {why}"))
        case 0:
            say(warning("HANDS304", "no schedule has called /poll_tick of the server sandbox since the server started"))
        case count:
            say(ok("HANDS304", f"a schedule has ticked the server sandbox {count} times since the server started"))
