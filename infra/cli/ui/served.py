"""The functions with the page below `/ui`, for their operator: `hands serve --ui`, or uvicorn with the options that
functions/asgi.py says and `infra.cli.ui.served:app`.

The page only reads. Whether a caller may look is decided by FUNCTIONS_TOKEN in the headers alone, shown as a bearer
token or as the password of HTTP Basic authentication, for which browsers ask. Whoever is refused costs neither a body
nor an import: what draws the pages is loaded when the operator looks first. tests/infra/cli/ui/test_served.py
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from functions.asgi import application
from functions.auth import require_token
from functions.requests import HttpError, not_configured, require_method
from functions.server.health import lifecycle_of
from functions.server.request_counter import PAGE_PATH
from infra.cli.ui.policy import PolicyMiddleware
from shared import metrics
from shared.errors import SecretUnavailable, SettingsError
from shared.secret import Secret, strong
from shared.service import Service
from shared.settings import Settings

_CHALLENGE: Final = {"www-authenticate": 'Basic realm="the token of the functions is the password", charset="UTF-8"'}


class OperatorsPage:
    """ASGI: the pages, for whoever shows FUNCTIONS_TOKEN. `environ` is read at the first look."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._pages: ASGIApp | None = None
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            settings = lifecycle_of(request).service.settings
            await require_token(Request({**scope, "headers": _as_bearer(scope)}), settings)
            require_method(request, "GET", "HEAD")
            await _require_strong(settings)
            answer = await self._made(request)
        except HttpError as error:
            error.headers.update(_CHALLENGE if error.status == 401 else {})
            answer = error.response()
        except (SettingsError, SecretUnavailable) as error:
            answer = not_configured(error)
        with metrics.unrecorded():
            await answer(scope, receive, send)

    async def _made(self, request: Request) -> ASGIApp:
        async with self._making:
            if self._pages is None:
                await asyncio.wait([lifecycle_of(request).preload])  # one import of an SDK at a time
                self._pages = await asyncio.to_thread(_made, self._environ, lifecycle_of(request).service)
            return self._pages


def _as_bearer(scope: Scope) -> list[tuple[bytes, bytes]]:
    return [(name, _bearer(value) if name.lower() == b"authorization" else value) for name, value in scope["headers"]]


def _bearer(value: bytes) -> bytes:
    """Basic credentials as the bearer token that is their password; anything else as it is."""
    scheme, _, rest = value.partition(b" ")
    if scheme.lower() != b"basic":
        return value
    try:
        return b"Bearer " + base64.b64decode(rest.strip(b" \t"), validate=True).partition(b":")[2]
    except ValueError:
        return value


async def _require_strong(settings: Settings) -> None:
    """Raises SettingsError for a token that can be guessed. The operator alone is told."""
    if settings.functions_token is not None:
        strong("FUNCTIONS_TOKEN", await settings.functions_token.areveal())


def _made(environ: Mapping[str, str], service: Service) -> ASGIApp:
    """`service`: of the functions beside it, whose calls are shown. For a thread: half a second of imports. Raises
    SettingsError, SecretUnavailable."""
    from infra.cli.environ import Loaded, elsewhere
    from infra.cli.fleet.call_use import Calls, told
    from infra.cli.fleet.survey import Seen
    from infra.cli.ui.app import pages_of
    from infra.cli.ui.pages import Reader

    loaded = elsewhere(environ)
    key = Secret("ANTHROPIC_API_KEY", loaded.need("ANTHROPIC_API_KEY", "the page lists sessions with it")).reveal()
    loaded = Loaded({**loaded.environ, "ANTHROPIC_API_KEY": key}, None)

    async def own_calls(seen: Seen) -> Calls:
        return told({"calls": service.call_use()})

    return pages_of(loaded, Reader(loaded, own_calls), act=False)


async def _to_the_page(request: Request) -> Response:
    return RedirectResponse(f"{PAGE_PATH.strip('/')}/", 307)  # relative: what a gateway has put before it stays


def beside_the_functions(environ: Mapping[str, str]) -> Starlette:
    return application(
        Route(PAGE_PATH, _to_the_page, methods=["GET"]),
        Mount(PAGE_PATH, PolicyMiddleware(OperatorsPage(environ))),
    )


app = beside_the_functions(os.environ)
