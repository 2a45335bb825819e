"""`repair`: what the reconciler could not do with the environment key, done with the API key.

A stranded item leaves its session waiting indefinitely unless its calls are answered or it gets a `user.interrupt`
(docs/wire/anthropic.md#33-state-machine), and a service may refuse both from an environment key. Each tick names such
sessions in `needs_interrupt`; this command makes one repair pass and does for them what the tick would have done.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from infra.cli.environ import Loaded
from shared.adapters.open_calls import lost_calls, read_open_calls
from shared.settings import Settings
from shared.unanswered import unanswered

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


async def run(loaded: Loaded) -> int:
    """0 when no session waits any more, 1 when one could not be helped. Raises SettingsError without an API key."""
    key = loaded.need("ANTHROPIC_API_KEY", "lost calls are answered with it")
    waiting = await _waiting(loaded)
    if not waiting:
        print("No session waits for a lost worker.")
        return 0
    from anthropic import AnthropicError, APIConnectionError, AsyncAnthropic

    failed = 0
    base_url = Settings.from_environ(loaded.environ).anthropic_url
    async with AsyncAnthropic(api_key=key, base_url=base_url, timeout=20.0) as client:
        for session in waiting:
            try:
                print(f"{session}: {await _repair(client, session)}")
            except AnthropicError as error:
                failed += 1
                why = unanswered(error) if isinstance(error, APIConnectionError) else type(error).__name__
                print(f"{session}: not repaired ({why})", file=sys.stderr)
    return 1 if failed else 0


async def _repair(client: AsyncAnthropic, session: str) -> str:
    calls = await read_open_calls(client, session)
    if calls.given_up:
        await client.beta.sessions.events.send(session, events=[{"type": "user.interrupt"}])
        return "its turn is interrupted"
    if calls.ids:
        await client.beta.sessions.events.send(session, events=lost_calls(calls))
    return f"{len(calls.ids)} lost call(s) answered with an error"


async def _waiting(loaded: Loaded) -> list[str]:
    from shared.service import Service

    settings = Settings.from_environ(loaded.environ)
    service = Service(settings)
    try:
        reports = [await service.reconciler(environment).reconcile() for environment in settings.environments.values()]
    finally:
        await service.aclose()
    return [session for report in reports for session in report.needs_interrupt]
