"""`hands ui`: the pages as an ASGI app, for whoever has the token.

Reads only, unless it was started with `--act`: then an action is a POST with a token of its own, good once, for this
action on this session and for an hour. The policy allows this server's own script and style sheet and nothing else, so
that a text of an agent could not even then do anything if it slipped through (tests/infra/cli/ui/test_ui.py).
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.cli.environ import Loaded
from infra.cli.fleet import actions
from infra.cli.fleet.target import NotDone, target
from infra.cli.fork import page
from infra.cli.session.follow import FeedBroken, FeedRefused
from infra.cli.ui.pages import Reader, templates
from infra.cli.ui.policy import PolicyMiddleware
from shared.errors import HandsError

_STATIC: Final = Path(__file__).parent / "static"
_FILES: Final = {"htmx.min.js": "text/javascript", "ui.js": "text/javascript", "ui.css": "text/css"}
COOKIE: Final = "hands"
_ACTS: Final[Mapping[str, actions.Act]] = {
    "interrupt": actions.interrupt,
    "stop": actions.stop,
    "suspend": actions.suspend,
    "resume": actions.resume,
    "archive": actions.archive,
}
_ACT_SECONDS: Final = 3600
_LARGEST_FORM: Final = 4096
_MOST_USED: Final = 10_000
_STOP_LOOKING: Final = 286  # htmx ends its updates then


class Guard:
    """ASGI middleware: nobody without the token gets an answer.

    hosts: what a Host header may say; a page of somebody else's whose name was made to lead here is refused.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: frozenset[str]) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts

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
            return _page(request, "message.html.j2", 421, title="Not here", text=text)
        given = request.query_params.get("token", "")
        if given and request.method == "GET":
            return self._let_in(request, given)
        if _path(request) == "/login" and request.method == "POST":
            return self._let_in(request, (await _form(request)).get("token", ""))
        if _equal(request.cookies.get(COOKIE, ""), self._token):
            return None
        if _path(request) == "/ui.css":
            return None  # the page that asks for the token has it, too
        return _page(request, "login.html.j2", 401, wrong=False)

    def _let_in(self, request: Request, given: str) -> Response:
        if not _equal(given, self._token):
            return _page(request, "login.html.j2", 401, wrong=True)
        response = RedirectResponse(_base(request), 303)
        response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", max_age=86_400)
        return response


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode(errors="surrogateescape"))


class Pages:
    """The routes. `reader` stands for both services; `act` allows actions."""

    def __init__(self, loaded: Loaded, reader: Reader, *, act: bool) -> None:
        self._loaded = loaded
        self._reader = reader
        self._act = act
        self._signer = URLSafeTimedSerializer(secrets.token_hex(32), salt="action")
        self._used: dict[str, None] = {}

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
            return _page(request, "message.html.j2", 404, title="Not seen", text=str(error), back="races")
        live = "live" in request.query_params
        if found.report and not live:
            policy = f"{page.POLICY}; frame-ancestors 'none'"
            return HTMLResponse(found.report, headers={"content-security-policy": policy})
        status = _STOP_LOOKING if live and found.over else 200
        return _page(request, "race.html.j2", status, live=live, race=found.facts, report=bool(found.report))

    async def session(self, request: Request) -> Response:
        session_id = request.path_params["session"]

        async def read() -> dict[str, Any]:
            tokens = {name: self._signer.dumps([name, session_id, secrets.token_hex(8)]) for name in _ACTS}
            return {**await self._reader.session(session_id), "acts": tokens if self._act else {}}

        return await self._shown(request, "session.html.j2", read())

    async def do(self, request: Request) -> Response:
        session_id, name = request.path_params["session"], request.path_params["action"]
        if not self._act or name not in _ACTS:
            text = "This page only reads. To act: hands ui --act"
            return _page(request, "message.html.j2", 403, title="Not done", text=text)
        token = (await _form(request)).get("token", "")
        if not self._is_good(token, name, session_id):
            text = "The button is old, or was used before. Look at the page again, and press it there."
            return _page(request, "message.html.j2", 403, title="Not done", text=text)
        back = f"sessions/{session_id}"
        try:
            async with target(self._loaded, session_id) as aim:
                said = await _ACTS[name](aim, lambda _: True)
        except (NotDone, FeedBroken, FeedRefused, HandsError) as error:
            return _page(request, "message.html.j2", 409, title="Not done", text=str(error), back=back)
        return _page(request, "message.html.j2", 200, title="Done", text=said or "", back=back)

    async def static(self, request: Request) -> Response:
        name = _path(request).strip("/")
        return FileResponse(_STATIC / name, media_type=_FILES[name])

    def _is_good(self, token: str, name: str, session_id: str) -> bool:
        """Once: who sends it again must look again."""
        try:
            said = self._signer.loads(token, max_age=_ACT_SECONDS)
        except BadSignature:
            return False
        if said[:2] != [name, session_id] or token in self._used:
            return False
        self._used[token] = None
        if len(self._used) > _MOST_USED:
            del self._used[next(iter(self._used))]
        return True

    async def _shown(self, request: Request, template: str, reading: Any) -> Response:
        """With `live` in the query only what changes. Trouble of a service is a page, too. A thousand rows are drawn in
        a thread: whatever else is served here goes on."""
        live = "live" in request.query_params
        try:
            facts = await reading
        except (NotDone, FeedBroken, FeedRefused, HandsError) as error:
            return _page(request, "message.html.j2", 502, title="Not seen", text=str(error), live=live)
        return await asyncio.to_thread(_page, request, template, 200, live=live, **facts)


_TEMPLATES: Final = templates()


def _page(request: Request, template: str, status: int, **facts: Any) -> HTMLResponse:
    shown = {"live": False, "back": "", "base": _base(request), **facts}
    return HTMLResponse(_TEMPLATES.get_template(template).render(shown), status)


def _base(request: Request) -> str:
    """Relative: whatever is before these pages' path, here or at a gateway, does not matter."""
    return "../" * (_path(request).count("/") - 1) or "./"


def _path(request: Request) -> str:
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


async def _form(request: Request) -> Mapping[str, str]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _LARGEST_FORM:
            return {}
    return {name: values[0] for name, values in parse_qs(body.decode(errors="replace")).items()}


def pages_of(loaded: Loaded, reader: Reader, *, act: bool) -> Starlette:
    """The pages, for whoever may see them: the caller keeps everybody else out."""
    pages = Pages(loaded, reader, act=act)
    return Starlette(
        routes=[
            Route("/", pages.home),
            Route("/alarms", pages.alarms),
            Route("/races", pages.races),
            Route("/races/{race}", pages.race),
            Route("/sessions/{session}", pages.session),
            Route("/sessions/{session}/{action}", pages.do, methods=["POST"]),
            *(Route(f"/{name}", pages.static) for name in _FILES),
        ]
    )


def make_app(loaded: Loaded, reader: Reader, *, token: str, hosts: frozenset[str], act: bool) -> ASGIApp:
    """`hosts`: empty for any."""
    return PolicyMiddleware(Guard(pages_of(loaded, reader, act=act), token, hosts))


def address(host: str, port: int, token: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/?token={quote(token)}"
