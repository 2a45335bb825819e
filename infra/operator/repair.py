"""`repair`: what the reconciler could not do with the environment key, done with the API key.

A stranded item leaves its session waiting for ever unless it gets a `user.interrupt` (contract claude 3.3), and a
service may refuse that event from an environment key. Each tick names such sessions in `needs_interrupt`; this command
makes one repair pass and sends the interrupts that are still owed. It ends the turns of those sessions.
"""

from __future__ import annotations

import sys

from infra.operator.environ import Loaded
from shared.settings import Settings


async def run(loaded: Loaded) -> int:
    """0 when no session waits any more, 1 when an interrupt failed. Raises SettingsError without an API key."""
    key = loaded.need("ANTHROPIC_API_KEY", "interrupts are sent with it")
    waiting = await _waiting(loaded)
    if not waiting:
        print("No session waits for an interrupt.")
        return 0
    from anthropic import AnthropicError, AsyncAnthropic

    failed = 0
    base_url = Settings.from_environ(loaded.environ).anthropic_url
    async with AsyncAnthropic(api_key=key, base_url=base_url, timeout=20.0) as client:
        for session in waiting:
            try:
                await client.beta.sessions.events.send(session, events=[{"type": "user.interrupt"}])
                print(f"interrupted {session}")
            except AnthropicError as error:
                failed += 1
                print(f"{session}: the interrupt failed ({type(error).__name__})", file=sys.stderr)
    return 1 if failed else 0


async def _waiting(loaded: Loaded) -> list[str]:
    from functions.bundle import Bundle

    settings = Settings.from_environ(loaded.environ)
    bundle = Bundle(settings, background=False)
    try:
        reports = [await bundle.reconciler(environment).reconcile() for environment in settings.environments.values()]
    finally:
        await bundle.aclose()
    return [session for report in reports for session in report.needs_interrupt]
