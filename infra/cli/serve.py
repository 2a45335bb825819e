"""`serve`: the functions under uvicorn on this machine, as any server would run them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from typing import Final

from functions.auth import refuse_weak_secrets
from functions.server import BACKLOG, HTTP_PROTOCOL
from functions.server.request_counter import PAGE_PATH
from functions.server.scheduler import EVERY_SECONDS
from infra.cli.environ import Loaded
from infra.cli.offline_console import HOW_TO_REACH_IT, console
from infra.local.admin_client import AdminError
from infra.local.platform import webhooks_to
from infra.local.process import CannotListen, listen
from shared.secret import Secret, strong
from shared.settings import Settings

EXIT_CANNOT_LISTEN: Final = 2
_OWN: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
"""How a server that listens at every address is called from its own machine."""


def serve(loaded: Loaded, host: str | None, port: int, *, page: bool = False) -> int:
    """Until SIGTERM or ctrl-C. `loaded` is this process's environment already: the app reads it there.

    `host` None: every address with the real services, this machine alone with the offline platform, which is then
    told to send its webhooks here, where its admin token is at hand. `page`: with the page below /ui, for whoever has
    FUNCTIONS_TOKEN. Raises SettingsError.
    """
    import uvicorn

    if page:
        _check_page(loaded)
    if not loaded.environ.get("FUNCTIONS_TOKEN", "").strip():
        # Capabilities of agents are derived from it; a random one keeps everybody else out.
        os.environ["FUNCTIONS_TOKEN"] = secrets.token_urlsafe(32)
        print("FUNCTIONS_TOKEN is not set: nobody may call the tick and fork of this server", file=sys.stderr)
    if not loaded.environ.get("SELF_TICK_SECONDS", "").strip():
        os.environ["SELF_TICK_SECONDS"] = f"{EVERY_SECONDS:g}"
    settings = Settings.from_environ(os.environ)  # say what is missing before anything starts
    if settings.agent_fork:
        asyncio.run(refuse_weak_secrets(settings))
    elif settings.weak_token:
        print("FUNCTIONS_TOKEN is short: make it 32 characters or more, at random", file=sys.stderr)
    host = host or ("127.0.0.1" if loaded.offline else "0.0.0.0")
    try:
        listener = listen(host, port)
    except CannotListen as error:
        print(error, file=sys.stderr)
        return EXIT_CANNOT_LISTEN
    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    print(f"Serving {', '.join(settings.environments)} on {loaded.where}", file=sys.stderr)
    print(f"  webhook  http://{shown}:{port}/   (also /on_run_started)", file=sys.stderr)
    print(f"  others   /poll_tick  /fork_best_of_n  /healthz  /readyz   (process {os.getpid()})", file=sys.stderr)
    if page:
        print(f"  page     http://{shown}:{port}{PAGE_PATH}/   (the password is FUNCTIONS_TOKEN)", file=sys.stderr)
    every = settings.self_tick_seconds
    print(
        f"  schedule  {f'it ticks by itself, now and every {every:g} s' if every else 'none of its own'}",
        file=sys.stderr,
    )
    if not settings.signing_keys:
        print("  ANTHROPIC_WEBHOOK_SIGNING_KEY is not set: webhooks are answered 503", file=sys.stderr)
    config = uvicorn.Config(
        "infra.cli.ui.served:app" if page else "functions.asgi:app",
        http=HTTP_PROTOCOL,
        backlog=BACKLOG,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=120,
    )
    own = f"http://{_OWN.get(host, shown)}:{port}"
    with listener, _webhooks_from_offline(loaded, f"{own}/"):
        server = uvicorn.Server(config)
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn ends on them, then raises them again: that would end us before the webhooks are taken back.
            signal.signal(number, lambda *_: None)
        server.run(sockets=[listener])
    return 0 if server.started else 1


def _check_page(loaded: Loaded) -> None:
    """Raises SettingsError where nobody could look, or anybody."""
    loaded.need("ANTHROPIC_API_KEY", "the page lists sessions with it; create one in the Console")
    token = loaded.need("FUNCTIONS_TOKEN", "whoever wants to see the page is asked for it; take a long random text")
    strong("FUNCTIONS_TOKEN", Secret("FUNCTIONS_TOKEN", token).reveal())


@contextlib.contextmanager
def _webhooks_from_offline(loaded: Loaded, url: str) -> Iterator[None]:
    """The offline platform sends webhooks here while we serve, or a line says why it does not."""
    with contextlib.ExitStack() as sent:
        if loaded.offline and (why := _begun(loaded, url, sent)):
            print(f"  offline  no webhook is sent here: {why}", file=sys.stderr)
        yield


def _begun(loaded: Loaded, url: str, sent: contextlib.ExitStack) -> str:
    """Why not; empty where webhooks are sent until `sent` ends."""
    claude, key = console(loaded), loaded.environ.get("ANTHROPIC_WEBHOOK_SIGNING_KEY", "").strip()
    if claude is None:
        return HOW_TO_REACH_IT
    if not key:
        return "ANTHROPIC_WEBHOOK_SIGNING_KEY is not set"
    try:
        sent.enter_context(webhooks_to(claude, url, key))
    except AdminError as error:
        return f"the platform does not take it ({error})"
    return ""
