"""`hands ui`: the pages as an ASGI app, for whoever has the token.

Reads only, unless it was started with `--act` (acting.py). The policy (policy.py) allows this server's own script and
style sheet and nothing else, so that a text of an agent could not even then do anything if it slipped through
(tests/infra/cli/ui/test_ui.py).
"""

from __future__ import annotations

import asyncio
import hmac
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.cli.environ import Loaded
from infra.cli.fleet.lists import NotThere
from infra.cli.fleet.target import NotCarriedOut
from infra.cli.fork import page
from infra.cli.session.follow import FeedBroken, FeedRefused
from infra.cli.ui.acting import Acting, form_of
from infra.cli.ui.drawing import base, drawn, path_of
from infra.cli.ui.pages import Reader
from infra.cli.ui.policy import PolicyMiddleware
from shared.errors import HandsError

_STATIC: Final = Path(__file__).parent / "static"
_FILES: Final = {"htmx.min.js": "text/javascript", "ui.js": "text/javascript", "ui.css": "text/css"}
COOKIE: Final = "hands"
_STOP_LOOKING: Final = 286  # htmx ends its updates then


class Guard:
    """ASGI middleware: nobody without the token gets an answer.

    hosts: what a Host header may say; a page of somebody else's whose name was made to lead here is refused.
    by_address: the token may stand in the address, which is kept in logs and histories.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str], *, by_address: bool) -> None:
        self._app = app
        self._token = token
        self._cookie = cookie_of(token)
        self._hosts = hosts
        self._by_address = by_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        response = await self._refusal(request)
        await (response or self._app)(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        if self._hosts and request.url.hostname not in self._hosts:
            text = "This server is not known by that name."
            return drawn(request, "message.html.j2", 421, title="Not here", text=text)
        given = request.query_params.get("token", "")
        if given and self._by_address and request.method == "GET":
            return self._let_in(request, given)
        if path_of(request) == "/login" and request.method == "POST":
            return self._let_in(request, (await form_of(request)).get("token", ""))
        if _equal(request.cookies.get(COOKIE, ""), self._cookie):
            return None
        if path_of(request) == "/ui.css":
            return None  # the page that asks for the token has it, too
        return drawn(request, "login.html.j2", 401, wrong=False)

    def _let_in(self, request: Request, given: str) -> Response:
        if not _equal(given, self._token):
            return drawn(request, "login.html.j2", 401, wrong=True)
        response = RedirectResponse(base(request), 303)
        response.set_cookie(COOKIE, self._cookie, httponly=True, samesite="strict", max_age=86_400)
        return response


def cookie_of(token: str) -> str:
    """What a browser keeps. It shows the page and is not the token, which may be good for more."""
    return hmac.digest(token.encode(errors="surrogateescape"), b"the cookie of the page", "sha256").hex()


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode(errors="surrogateescape"))


class Pages:
    """The routes that read. `reader` stands for both services."""

    def __init__(self, reader: Reader, acting: Acting) -> None:
        self._reader = reader
        self._acting = acting

    async def home(self, request: Request) -> Response:
        return await self._shown(request, "home.html.j2", self._reader.home())

    async def alarms(self, request: Request) -> Response:
        async def read() -> dict[str, Any]:
            return {"lines": await self._reader.alarms.get()}

        return await self._shown(request, "alarms.html.j2", read())

    async def races(self, request: Request) -> Response:
        return await self._shown(request, "races.html.j2", self._reader.races())

    async def race(self, request: Request) -> Response:
        """Its report, which is a page of its own with a policy of its own; else how it fares."""
        try:
            found = await self._reader.race(request.path_params["race"])
        except HandsError as error:
            return drawn(request, "message.html.j2", 404, title="Not seen", text=str(error), back="races")
        live = "live" in request.query_params
        if found.report and not live:
            policy = f"{page.POLICY}; frame-ancestors 'none'"
            return HTMLResponse(found.report, headers={"content-security-policy": policy})
        status = _STOP_LOOKING if live and found.over else 200
        return drawn(request, "race.html.j2", status, live=live, race=found.facts, report=bool(found.report))

    async def session(self, request: Request) -> Response:
        session_id = request.path_params["session"]

        async def read() -> dict[str, Any]:
            return {**await self._reader.session(session_id), "acts": self._acting.tokens_for(session_id)}

        return await self._shown(request, "session.html.j2", read())

    async def static(self, request: Request) -> Response:
        name = path_of(request).strip("/")
        return FileResponse(_STATIC / name, media_type=_FILES[name])

    async def _shown(self, request: Request, template: str, reading: Any) -> Response:
        """With `live` in the query only what changes. Trouble of a service is a page, too. A thousand rows are drawn in
        a thread: whatever else is served here goes on."""
        live = "live" in request.query_params
        try:
            facts = await reading
        except (NotCarriedOut, FeedBroken, FeedRefused, HandsError) as error:
            status = 404 if isinstance(error, NotThere) else 502
            return drawn(request, "message.html.j2", status, title="Not seen", text=str(error), live=live)
        return await asyncio.to_thread(drawn, request, template, 200, live=live, **facts)


def pages_of(loaded: Loaded, reader: Reader, *, act: bool) -> Starlette:
    """The pages, for whoever may see them: the caller keeps everybody else out."""
    acting = Acting(loaded, allowed=act)
    pages = Pages(reader, acting)
    return Starlette(
        routes=[
            Route("/", pages.home),
            Route("/alarms", pages.alarms),
            Route("/races", pages.races),
            Route("/races/{race}", pages.race),
            Route("/sessions/{session}", pages.session),
            Route("/sessions/{session}/{action}", acting.do, methods=["POST"]),
            Route("/sessions/{session}/calls/{call}", acting.call),
            Route("/sessions/{session}/calls/{call}/{answer}", acting.answer, methods=["POST"]),
            *(Route(f"/{name}", pages.static) for name in _FILES),
        ]
    )


def make_app(
    loaded: Loaded, reader: Reader, *, token: str, hosts: frozenset[str], act: bool, by_address: bool = True
) -> ASGIApp:
    """`hosts`: empty for any. `by_address`: see Guard."""
    return PolicyMiddleware(Guard(pages_of(loaded, reader, act=act), token, hosts, by_address=by_address))


def address(host: str, port: int, token: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/?token={quote(token)}"
