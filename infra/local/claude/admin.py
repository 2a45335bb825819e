"""The admin API: everything the live service keeps in its console, and the knobs that it does not have.

All routes are under `/_admin/` and want the header `X-Admin-Token` with the token of the ready line.

| route | what it does |
|---|---|
| GET `state` | sessions, items with their history, webhook endpoints and deliveries; no credential |
| GET `state?session=ID` | the same, with the sessions and items of this one alone |
| GET, PATCH `settings` | the knobs of `knobs.py` |
| POST `keys/api`, `keys/environment` | mint a key: `{"value"?: "...", "environment_id": "..."}` |
| DELETE `keys` | revoke: `{"value": "..."}` |
| POST `tokens/expire` | every sessions token is dead from now on |
| GET, POST `webhooks` | endpoints: `{"url": "...", "signing_key": "whsec_...", "types"?: [...]}` |
| DELETE `webhooks/{id}`, POST `webhooks/{id}/enable` | one endpoint |
| POST `healthchecks` | a healthcheck item: `{"environment_id": "..."}` |
| POST `work/{id}/lapse` | the item's lease ends now |
| POST `work/{id}/age` | time passes for the item alone, or since its creation: `{"seconds": 60, "created"?: false}` |
| POST `streams/close` | every event stream ends: `{"session_id"?: "..."}` |
| GET, PUT `script` | the scripted brain's YAML |
| GET, DELETE `requests` | counts by route and the last requests |
| `faults`, `latency` | see `infra/local/faults.py` |
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.local.claude.errors import ClaudeApiError, invalid, not_found
from infra.local.claude.http import RequestLog, json_body
from infra.local.claude.ids import new_id
from infra.local.claude.knobs import Knobs
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.scripted import ScriptedBrain
from infra.local.claude.scripts import load_script, problems
from infra.local.faults import ADMIN_PREFIX, fault_routes

_LONGEST_AGE = 31_536_000
"""Seconds: a year."""


class AdminGate:
    """Middleware: no admin route without the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(ADMIN_PREFIX):
            given = dict(scope["headers"]).get(b"x-admin-token", b"")
            if not hmac.compare_digest(given, self._token):
                await JSONResponse({"error": "X-Admin-Token is missing or wrong"}, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def admin_routes(platform: ClaudePlatform, log: RequestLog) -> list[Route]:
    async def state(request: Request) -> Response:
        return JSONResponse(platform.dump(request.query_params.get("session")))

    async def settings(request: Request) -> Response:
        if request.method == "PATCH":
            change_knobs(platform.knobs, dict(await json_body(request)))
        return JSONResponse(platform.knobs.model_dump())

    async def mint(request: Request) -> Response:
        body = await json_body(request)
        value = body.get("value")
        if request.path_params["kind"] == "api":
            return JSONResponse({"value": platform.keyring.add_api_key(value)}, 201)
        if request.path_params["kind"] != "environment":
            raise not_found(f"kind of key {request.path_params['kind']!r}")
        environment = platform.environments.get(str(body.get("environment_id")))
        return JSONResponse({"value": platform.keyring.add_environment_key(environment.id, value)}, 201)

    async def revoke(request: Request) -> Response:
        body = await json_body(request)
        return JSONResponse({"revoked": platform.keyring.revoke(str(body.get("value")))})

    async def expire_tokens(request: Request) -> Response:
        return JSONResponse({"expired": platform.keyring.expire_all_tokens()})

    async def webhooks(request: Request) -> Response:
        if request.method == "POST":
            body = await json_body(request)
            try:
                endpoint = platform.webhooks.add_endpoint(
                    str(body.get("url")), str(body.get("signing_key")), body.get("types")
                )
            except ValueError as error:
                raise invalid(str(error)) from None
            return JSONResponse(endpoint.as_json(), 201)
        return JSONResponse({"data": [endpoint.as_json() for endpoint in platform.webhooks.endpoints]})

    async def webhook(request: Request) -> Response:
        if not platform.webhooks.remove_endpoint(request.path_params["endpoint_id"]):
            raise not_found("webhook endpoint")
        return JSONResponse({"removed": True})

    async def enable(request: Request) -> Response:
        if not platform.webhooks.enable(request.path_params["endpoint_id"]):
            raise not_found("webhook endpoint")
        return JSONResponse({"enabled": True})

    async def healthcheck(request: Request) -> Response:
        environment = platform.environments.get(str((await json_body(request)).get("environment_id")))
        item = platform.queue.enqueue(environment.id, "healthcheck", new_id("hc"))
        return JSONResponse(item.as_json(), 201)

    async def lapse(request: Request) -> Response:
        item = platform.queue.find(request.path_params["work_id"])
        platform.queue.lapse(item)
        return JSONResponse(item.as_json())

    async def age(request: Request) -> Response:
        asked = await json_body(request)
        seconds, created = asked.get("seconds"), asked.get("created", True)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= _LONGEST_AGE:
            raise invalid(f"seconds: expected a number from 0 to {_LONGEST_AGE}")
        if not isinstance(created, bool):
            raise invalid("created: expected true or false")
        item = platform.queue.find(request.path_params["work_id"])
        platform.queue.age(item, float(seconds), created=created)
        return JSONResponse(item.as_json())

    async def close_streams(request: Request) -> Response:
        session_id = (await json_body(request)).get("session_id")
        if session_id is None:
            return JSONResponse({"closed": platform.hang_up()})
        return JSONResponse({"closed": platform.sessions.get(str(session_id)).log.hang_up()})

    async def script(request: Request) -> Response:
        brain = platform.turns.brain
        if not isinstance(brain, ScriptedBrain):
            raise invalid("the brain in use takes no script")
        if request.method == "PUT":
            try:
                brain.script = load_script((await request.body()).decode())
            except ValueError as error:
                raise invalid(problems(error)) from None
        return JSONResponse(brain.script.model_dump())

    async def requests(request: Request) -> Response:
        answer = {"counts": dict(log.counts.most_common()), "recent": list(log.recent)}
        if request.method == "DELETE":
            log.clear()
        return JSONResponse(answer)

    def route(path: str, handler: Callable[[Request], Awaitable[Response]], *methods: str) -> Route:
        return Route(ADMIN_PREFIX + path, handler, methods=list(methods))

    return [
        route("state", state, "GET"),
        route("settings", settings, "GET", "PATCH"),
        route("keys/{kind:str}", mint, "POST"),
        route("keys", revoke, "DELETE"),
        route("tokens/expire", expire_tokens, "POST"),
        route("webhooks", webhooks, "GET", "POST"),
        route("webhooks/{endpoint_id}", webhook, "DELETE"),
        route("webhooks/{endpoint_id}/enable", enable, "POST"),
        route("healthchecks", healthcheck, "POST"),
        route("work/{work_id}/lapse", lapse, "POST"),
        route("work/{work_id}/age", age, "POST"),
        route("streams/close", close_streams, "POST"),
        route("script", script, "GET", "PUT"),
        route("requests", requests, "GET", "DELETE"),
        *fault_routes(platform.faults),
    ]


def change_knobs(knobs: Knobs, changes: dict[str, Any]) -> None:
    """All or nothing; raises 400 with every problem."""
    try:
        checked = Knobs.model_validate({**knobs.model_dump(), **changes})
    except ValidationError as error:
        raise ClaudeApiError(400, problems(error)) from None
    for name in changes:
        setattr(knobs, name, getattr(checked, name))
