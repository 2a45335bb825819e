"""`make demo`: one session from start to end on this machine, with nothing set up before and nothing left behind.

Both offline services, the functions under uvicorn, a webhook, a sandbox, Anthropic's own worker in it, real tool
calls on real files. Exit code 0 only when all of that was seen to happen.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from infra.cli.demos.play import DemoFailed, play
from infra.cli.environ import Loaded
from infra.cli.session.follow import Finish
from infra.cli.session.render import Line, LineStyle
from infra.local.platform import Isolation, Platform
from infra.local.process import RunningService
from shared import names
from shared.secret import Secret
from shared.settings import Settings

PROMPT: Final = "create hello.txt with 'hi' then read it back"
_FILE: Final = "/workspace/hello.txt"
_LONGEST_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen besides the stream. `missing`: what should have been seen and was not."""

    sandbox: str
    webhooks: int
    claude_calls: int
    tensorlake_calls: int
    missing: tuple[str, ...]


def run(isolation: Isolation) -> int:
    """The exit code."""
    # A good second of imports, while the services start.
    threading.Thread(target=__import__, args=("anthropic",), daemon=True).start()
    began = time.monotonic()

    def act(platform: Platform) -> str:
        server = platform.serve_functions()
        print(_opening(platform, server.url, time.monotonic() - began), flush=True)
        try:
            return asyncio.run(show(platform))
        except DemoFailed as error:
            raise DemoFailed(f"{error}{_said_by(server)}") from None

    return play(isolation, act)


def _said_by(server: RunningService) -> str:
    tail = server.stderr_tail()
    return f"\nWhat the functions said:\n{tail}" if tail else ""


def _opening(platform: Platform, functions: str, seconds: float) -> str:
    claude, tensorlake = platform.urls
    level = platform.isolation["level"] if platform.isolation["isolated"] else "NOT ISOLATED, plain processes"
    return (
        f"Offline, on this machine only (started in {seconds:.1f} s). The brain is a script, not a model.\n"
        f"  Claude side {claude}   sandboxes {tensorlake} ({level})   functions {functions}\n"
    )


async def show(platform: Platform) -> str:
    """Run a session on the screen. What was shown, in a line. Raises DemoFailed."""
    from infra.cli.session.command import open_client, watch
    from infra.cli.session.screen import Screen

    screen = Screen()
    environ = platform.environ
    began = time.monotonic()
    async with open_client(Loaded(environ, None)) as client:
        session = await client.beta.sessions.create(
            agent=environ["ANTHROPIC_AGENT_ID"], environment_id=environ["ANTHROPIC_ENVIRONMENT_ID"]
        )
        screen.say(Line(f"session {session.id}", LineStyle.STRONG))
        screen.say(Line(f"> {PROMPT}", LineStyle.QUIET))
        try:
            async with asyncio.timeout(_LONGEST_SECONDS):
                finish = await watch(client, session.id, PROMPT, screen, offline=True)
        except TimeoutError:
            screen.remark(f"✗ not done after {_LONGEST_SECONDS:g} s", LineStyle.WRONG)
            finish = Finish.LOST
    seconds = time.monotonic() - began
    evidence = await _look(platform, session.id)
    if evidence.missing or finish is not Finish.DONE:
        raise DemoFailed("; ".join(evidence.missing) or "the turn did not end well")
    calls = evidence.claude_calls + evidence.tensorlake_calls
    return (
        f"Shown: {evidence.webhooks} webhook(s) woke the functions, which gave the session the sandbox "
        f"{evidence.sandbox}, with Anthropic's worker in it; {calls} API calls, {seconds:.1f} s."
    )


async def _look(platform: Platform, session_id: str) -> Evidence:
    """Look behind the stream: was there a webhook, a sandbox of this session, and the file in it?"""
    from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes

    settings = Settings.from_environ(platform.environ)
    (environment_id,) = settings.environments
    name = names.sandbox_name(settings.prefix, environment_id, session_id)
    deliveries = [each for each in platform.claude.get("state")["deliveries"] if each["outcome"] == "delivered"]
    claude_calls = _total(platform.claude.get("requests")["counts"])
    tensorlake_calls = _total(platform.tensorlake.get("counts")["routes"])
    host = TensorlakeSandboxes(
        api_url=settings.tensorlake_url, api_key=Secret("key", platform.keys.sandboxes), bind_seconds=10.0
    )
    try:
        content = await host.read_file(name, _FILE, 1000)
    finally:
        await host.aclose()
    missing = []
    if not deliveries:
        missing.append("no webhook was delivered")
    if not isinstance(content, bytes) or content.strip() != b"hi":
        missing.append(f"{_FILE} in the sandbox {name} is not what the session wrote")
    return Evidence(name, len(deliveries), claude_calls, tensorlake_calls, tuple(missing))


def _total(counts: Mapping[str, Any]) -> int:
    """Calls of the service's own API: not the admin's."""
    return sum(int(count) for route, count in counts.items() if "_admin" not in route)
