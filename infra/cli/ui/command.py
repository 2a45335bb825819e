"""`hands ui` from its flags to its end."""

from __future__ import annotations

import secrets
import sys
from typing import Final

import uvicorn

from infra.cli.environ import Loaded
from infra.cli.ui.app import address, make_app
from infra.cli.ui.pages import Reader
from infra.local.process import CannotListen, listen
from shared.errors import SettingsError
from shared.secret import strong
from shared.settings import Settings

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def run(loaded: Loaded, *, host: str, port: int, act: bool) -> int:
    """Serves until ctrl-C. On this machine's own address with a token made at random, elsewhere with FUNCTIONS_TOKEN.
    Raises SettingsError."""
    settings = Settings.from_environ(loaded.environ)
    loaded.need("ANTHROPIC_API_KEY", "sessions are listed with it; create one in the Console")
    own = host in _LOOPBACK
    token = secrets.token_urlsafe(32)
    if not own:
        if settings.functions_token is None:
            raise SettingsError("FUNCTIONS_TOKEN is not set: without it the page is for this machine alone")
        token = settings.functions_token.reveal()
        strong("FUNCTIONS_TOKEN", token)
    try:
        listener = listen(host, port)
    except CannotListen as error:
        print(error, file=sys.stderr)
        return 1
    hosts = frozenset(_LOOPBACK) if own else frozenset[str]()
    app = make_app(loaded, Reader(loaded), token=token, hosts=hosts, act=act, by_address=own)
    shown = address(host, listener.getsockname()[1], token) if own else f"port {listener.getsockname()[1]}"
    print(f"The page of {loaded.where}: {shown}", flush=True)
    if not own:
        print("It asks for FUNCTIONS_TOKEN. Put TLS before it: the token and the page are readable on the way.")
    with listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, ws="none"))
        server.run(sockets=[listener])
    return 0
