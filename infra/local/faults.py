"""Faults on purpose: rules, set while a service runs, that spoil some of its answers.

Both offline services put `FaultMiddleware` outermost, so a rule sees a request before anything else does. A
rule matches by method, path, query and host, and does one thing:

| action        | effect of the request | answer                                                        |
|---------------|-----------------------|---------------------------------------------------------------|
| `status`      | none                  | `status` with `headers` and `body`                            |
| `drop_before` | none                  | the connection is closed without a byte                       |
| `drop_after`  | happens               | the connection is closed at the answer's first byte           |
| `garbage`     | none                  | 200 that claims to be JSON and is not                         |
| `truncate`    | happens               | closed after `keep_bytes` of the body (default: half)         |
| `stall`       | happens               | the headers come, the body never does                         |
| `hang`        | happens               | none comes, and the connection stays open                     |
| `delay`       | happens, later        | `seconds` are added before                                    |
| `delay_after` | happens               | `seconds` are added between the effect and the answer         |

Every delay rule that matches adds up; of the others the first match wins. Admin routes are never touched.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ADMIN_PREFIX = "/_admin/"
CONNECTION_EXTENSION = "local.connection"
"""ASGI scope extension under which `infra.local.process` offers the request's `BreakableConnection`."""

Action = Literal["status", "drop_before", "drop_after", "garbage", "truncate", "stall", "hang", "delay", "delay_after"]
_DELAYS = ("delay", "delay_after")


class BreakableConnection(Protocol):
    """What a fault needs of the TCP connection below a request."""

    def drop(self) -> None:
        """Close at once; what is not yet on the wire is lost."""

    def close(self) -> None:
        """Close after what was written has gone out."""


def _compilable(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compilable)]


class RequestPattern(BaseModel):
    """Which requests are meant. Patterns are regular expressions that may match anywhere: anchor them."""

    model_config = ConfigDict(extra="forbid")

    method: str = "*"
    path: Pattern = ""
    query: Pattern | None = None
    host: Pattern | None = None

    def matches(self, request: RequestFacts) -> bool:
        return (
            self.method in ("*", request.method)
            and re.search(self.path, request.path) is not None
            and (self.query is None or re.search(self.query, request.query) is not None)
            and (self.host is None or re.search(self.host, request.host) is not None)
        )


class FaultRule(RequestPattern):
    """One rule, as the admin API takes it.

    Of the requests that match, the first `skip` pass untouched; of the rest each is hit with `probability`,
    until `times` were hit (None: no end).
    """

    action: Action
    times: int | None = Field(default=None, ge=1)
    probability: float = Field(default=1.0, ge=0.0, le=1.0)
    skip: int = Field(default=0, ge=0)
    status: int | None = Field(default=None, ge=200, le=599)
    headers: dict[str, str] = {}
    body: Any = None
    seconds: float = Field(default=0.0, ge=0.0)
    keep_bytes: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> FaultRule:
        if self.action == "status" and self.status is None:
            raise ValueError("action `status` needs `status`")
        if self.action in _DELAYS and self.seconds <= 0:
            raise ValueError(f"action `{self.action}` needs `seconds` above 0")
        return self


class LatencyRule(RequestPattern):
    """Seconds added to the round trip of every request that matches: half before the effect, half after."""

    seconds: float = Field(ge=0.0)


@dataclass(frozen=True)
class RequestFacts:
    method: str
    path: str
    query: str = ""
    host: str = ""

    @classmethod
    def of(cls, scope: Scope) -> RequestFacts:
        hosts = (value.decode("latin-1") for name, value in scope["headers"] if name == b"host")
        query = scope["query_string"].decode("latin-1")
        return cls(scope["method"], scope["path"], query, next(hosts, ""))


@dataclass
class ArmedRule:
    """A rule in force, with what it has seen so far."""

    id: str
    rule: FaultRule
    matched: int = 0
    fired: int = 0

    def hits(self, request: RequestFacts, chance: random.Random) -> bool:
        if not self.rule.matches(request) or (self.rule.times is not None and self.fired >= self.rule.times):
            return False
        self.matched += 1
        if self.matched <= self.rule.skip:
            return False
        if self.rule.probability < 1.0 and chance.random() >= self.rule.probability:
            return False
        self.fired += 1
        return True

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "matched": self.matched, "fired": self.fired, **self.rule.model_dump()}


@dataclass(frozen=True)
class FaultPlan:
    """What happens to one request: seconds before and after its effect, and at most one spoiling rule."""

    before: float = 0.0
    after: float = 0.0
    spoil: FaultRule | None = None


@dataclass
class FaultRegistry:
    """The rules in force. Chance is seeded, so that a run can be repeated."""

    seed: int = 0
    latency: list[LatencyRule] = field(default_factory=list)
    armed: list[ArmedRule] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._ids = itertools.count(1)

    def add(self, rule: FaultRule) -> ArmedRule:
        armed = ArmedRule(f"fault_{next(self._ids)}", rule)
        self.armed.append(armed)
        return armed

    def remove(self, rule_id: str) -> bool:
        left = [armed for armed in self.armed if armed.id != rule_id]
        found = len(left) < len(self.armed)
        self.armed = left
        return found

    def clear(self) -> None:
        self.armed = []

    def set_latency(self, rules: float | Iterable[LatencyRule]) -> None:
        """One number of seconds for every route, or rules of which the first match counts."""
        self.latency = [LatencyRule(seconds=rules)] if isinstance(rules, int | float) else list(rules)

    def plan(self, request: RequestFacts) -> FaultPlan:
        """Decide about one request; counts as its one look at the rules."""
        if request.path.startswith(ADMIN_PREFIX):
            return FaultPlan()
        half = next((rule.seconds / 2 for rule in self.latency if rule.matches(request)), 0.0)
        before, after = half, half
        for armed in self.armed:
            if not armed.hits(request, self._chance):
                continue
            match armed.rule.action:
                case "delay":
                    before += armed.rule.seconds
                case "delay_after":
                    after += armed.rule.seconds
                case _:
                    return FaultPlan(before, after, armed.rule)
        return FaultPlan(before, after)


ErrorBody = Callable[[int], Any]


def plain_error(status: int) -> dict[str, Any]:
    return {"error": f"injected fault: status {status}", "code": "INJECTED_FAULT"}


class FaultMiddleware:
    """ASGI middleware that carries out the registry's plans.

    `error_body(status)` makes the JSON body of a `status` rule that brings none, in the service's envelope.
    Dropping needs the connection, so the app must be served by `infra.local.process`.
    """

    def __init__(self, app: ASGIApp, registry: FaultRegistry, error_body: ErrorBody = plain_error) -> None:
        self._app = app
        self._registry = registry
        self._error_body = error_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        plan = self._registry.plan(RequestFacts.of(scope))
        if plan.before:
            await asyncio.sleep(plan.before)
        match plan.spoil:
            case None:
                await self._app(scope, receive, _late(send, plan.after) if plan.after else send)
            case FaultRule(action="status") as rule:
                await self._status_response(rule)(scope, receive, send)
            case FaultRule(action="garbage"):
                garbage = Response(b"<html>}{ not JSON", media_type="application/json")
                await garbage(scope, receive, send)
            case FaultRule(action="drop_before"):
                _connection(scope).drop()
                await _gone(receive)
            case FaultRule(action="drop_after"):
                spoiler = _Spoiler(_connection(scope), send, keep=None)
                await self._app(scope, receive, _late(spoiler.lose, plan.after))
                await _gone(receive)
            case FaultRule(action="stall" | "hang" as kept):
                await self._app(scope, receive, _first(send) if kept == "stall" else _nothing)
                await _gone(receive)
            case rule:
                spoiler = _Spoiler(_connection(scope), send, keep=rule.keep_bytes)
                await self._app(scope, receive, _late(spoiler.cut, plan.after))
                await _gone(receive)

    def _status_response(self, rule: FaultRule) -> Response:
        status = rule.status or 500
        headers = dict(rule.headers)
        if isinstance(rule.body, str):
            return Response(rule.body, status, headers)
        body = self._error_body(status) if rule.body is None else rule.body
        return Response(json.dumps(body), status, {"content-type": "application/json", **headers})


class _Spoiler:
    """Stands in for `send` where the answer is to be lost, wholly or in part."""

    def __init__(self, connection: BreakableConnection, send: Send, keep: int | None) -> None:
        self._connection = connection
        self._send = send
        self._left = keep
        self._over = False

    async def lose(self, message: Message) -> None:
        """Close at the first message: whatever the app did before it answered has happened."""
        if not self._over:
            self._over = True
            self._connection.drop()

    async def cut(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        body: bytes = message.get("body", b"")
        if self._left is None:
            self._left = len(body) // 2
        if len(body) < self._left:
            self._left -= len(body)
            await self._send({**message, "more_body": True})
            if message.get("more_body", False):
                return
            body = b""
        self._over = True
        await self._send({"type": "http.response.body", "body": body[: self._left], "more_body": True})
        self._connection.close()


def _first(send: Send) -> Send:
    """Only what begins an answer goes out."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)

    return send_head


async def _nothing(message: Message) -> None:
    """Nothing goes out."""


def _late(send: Send, seconds: float) -> Send:
    waited = False

    async def send_late(message: Message) -> None:
        nonlocal waited
        if not waited:
            waited = True
            await asyncio.sleep(seconds)
        await send(message)

    return send_late


def _connection(scope: Scope) -> BreakableConnection:
    extension = scope.get("extensions", {}).get(CONNECTION_EXTENSION)
    if extension is None:
        raise RuntimeError("dropping a connection needs the app to be served by infra.local.process.serve")
    connection: BreakableConnection = extension["connection"]
    return connection


async def _gone(receive: Receive) -> None:
    """Wait until the server has noticed the closed connection; else it would report a missing answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


def fault_routes(registry: FaultRegistry) -> list[Route]:
    """Admin routes, the same on both services (mount them behind the admin token).

    GET/POST/DELETE `/_admin/faults` (POST: one rule or a list; DELETE: all), DELETE `/_admin/faults/{id}`,
    GET/PUT `/_admin/latency` (`{"seconds": 0.05}` or `{"rules": [{"path": "...", "seconds": 0.3}]}`).
    """

    async def faults(request: Request) -> Response:
        if request.method == "DELETE":
            registry.clear()
        elif request.method == "POST":
            try:
                payload = await request.json()
                wanted = payload if isinstance(payload, list) else [payload]
                rules = [FaultRule.model_validate(item) for item in wanted]
            except (ValueError, AttributeError) as error:
                return _invalid(error)
            added = [registry.add(rule).as_json() for rule in rules]
            return JSONResponse({"data": added}, 201)
        return JSONResponse({"data": [armed.as_json() for armed in registry.armed], "seed": registry.seed})

    async def fault(request: Request) -> Response:
        found = registry.remove(request.path_params["rule_id"])
        return JSONResponse({"removed": found}, 200 if found else 404)

    async def latency(request: Request) -> Response:
        if request.method == "PUT":
            try:
                payload = await request.json()
                wanted = payload.get("rules", [{"seconds": payload.get("seconds", 0.0)}])
                registry.set_latency([LatencyRule.model_validate(item) for item in wanted])
            except (ValueError, AttributeError) as error:
                return _invalid(error)
        return JSONResponse({"rules": [rule.model_dump() for rule in registry.latency]})

    return [
        Route("/_admin/faults", faults, methods=["GET", "POST", "DELETE"]),
        Route("/_admin/faults/{rule_id}", fault, methods=["DELETE"]),
        Route("/_admin/latency", latency, methods=["GET", "PUT"]),
    ]


def _invalid(error: ValueError | AttributeError) -> Response:
    if not isinstance(error, ValidationError):
        return JSONResponse({"error": f"the body: {error}"}, 400)
    problems = [f"{'.'.join(map(str, item['loc'])) or 'rule'}: {item['msg']}" for item in error.errors()]
    return JSONResponse({"error": "; ".join(problems)}, 400)
