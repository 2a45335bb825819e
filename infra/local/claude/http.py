"""What every route shares: request ids, credentials, bodies, query parameters, errors, and the request counter."""

from __future__ import annotations

import json
import re
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.local.claude.clock import stamp
from infra.local.claude.credentials import Principal, RouteGroup, authorize
from infra.local.claude.errors import ClaudeApiError, KeyRefused, envelope, invalid, not_found
from infra.local.claude.ids import new_id
from infra.local.claude.knobs import Knobs
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.records import decode_cursor
from infra.local.faults import ADMIN_PREFIX

MANAGED_AGENTS_BETA = "managed-agents-2026-04-01"
MEMORY_BETA = "agent-memory-2026-07-22"
LIMIT = "anthropic-ratelimit-requests-limit"
REMAINING = "anthropic-ratelimit-requests-remaining"
REQUESTS_A_MINUTE = 1200
MAX_BODY = 32 * 1024 * 1024
_IDS = re.compile(r"/(env|agent|sesn|session|work|sthr|sevt|skillver|skill|memstore|mem)_[^/]+")
_WORK = re.compile(r"/v1/environments/[^/]+/work(/|$)")
_LOG_LENGTH = 20000


def _kind_of_id(match: re.Match[str]) -> str:
    return f"/{{{match[1]}}}"


class RequestLog:
    """Counts requests by route, and remembers the last ones with their times: for measuring what a path costs."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.recent: deque[dict[str, Any]] = deque(maxlen=_LOG_LENGTH)

    def add(self, method: str, path: str, status: int | None, seconds: float) -> None:
        """`status` None: the connection was dropped before an answer."""
        route = f"{method} {_IDS.sub(_kind_of_id, path)}"
        self.counts[route] += 1
        at = stamp(datetime.now(UTC))
        entry = {"at": at, "route": route, "path": path, "status": status, "seconds": round(seconds, 6)}
        self.recent.append(entry)

    def clear(self) -> None:
        self.counts.clear()
        self.recent.clear()


class RequestFrame:
    """Outermost middleware: gives each request its id and its answer a date, and counts it with what left the
    house."""

    def __init__(self, app: ASGIApp, log: RequestLog, knobs: Knobs) -> None:
        self._app = app
        self._log = log
        self._knobs = knobs
        self._remaining = REQUESTS_A_MINUTE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(ADMIN_PREFIX):
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        start = time.monotonic()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"request-id", request_id.encode())]
                if self._knobs.date_offset is not None:
                    date = formatdate(time.time() + self._knobs.date_offset, usegmt=True)
                    headers.append((b"date", date.encode()))
                if self._counts(scope["method"], scope["path"]):
                    self._remaining = (self._remaining - 1) % REQUESTS_A_MINUTE  # told, never enforced
                    headers.append((LIMIT.encode(), str(REQUESTS_A_MINUTE).encode()))
                    headers.append((REMAINING.encode(), str(self._remaining).encode()))
                message = {**message, "headers": headers}
                self._log.add(scope["method"], scope["path"], status, time.monotonic() - start)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if status is None:
                self._log.add(scope["method"], scope["path"], None, time.monotonic() - start)

    def _counts(self, method: str, path: str) -> bool:
        if _WORK.match(path) is None:
            return self._knobs.limits_told
        wanted = (call.partition(" ") for call in self._knobs.counted_calls)
        return any(verb == method and path.endswith(end) for verb, _, end in wanted)


def error_response(request: Request, error: Exception) -> Response:
    """The envelope for any error a route raises."""
    request_id: str | None = getattr(request.state, "request_id", None)
    match error:
        case KeyRefused():
            status: int = getattr(request.app.state.knobs, error.knob)
            return JSONResponse(envelope(status, error.message, request_id), status)
        case ClaudeApiError():
            shown = None if error.hide_request_id else request_id
            return JSONResponse(envelope(error.status, error.message, shown, error.details), error.status)
        case HTTPException(status_code=404):
            return JSONResponse(envelope(404, "no such endpoint", request_id), 404)
        case HTTPException():
            body = envelope(error.status_code, str(error.detail), request_id)
            return JSONResponse(body, error.status_code, headers=dict(error.headers or {}))
        case _:
            return JSONResponse(envelope(500, "internal error of the offline service", request_id), 500)


def caller(request: Request, platform: ClaudePlatform, *, betas: Sequence[str] = (MANAGED_AGENTS_BETA,)) -> Principal:
    """Who is calling; raises 401, and 404 if the route wants one of `betas` and none is there
    (docs/wire/anthropic.md#12-credentials)."""
    principal = platform.keyring.classify(request.headers)
    if request.headers.get("anthropic-version", "9") < platform.knobs.oldest_version:
        raise invalid(f"anthropic-version: expected {platform.knobs.oldest_version} or later")
    given = request.headers.get("anthropic-beta", "")
    if betas and platform.knobs.require_beta_header and not any(beta in given for beta in betas):
        raise not_found(f"{request.url.path} (is the header anthropic-beta: {betas[0]} missing?)")
    return principal


def administer(request: Request, platform: ClaudePlatform) -> None:
    authorize(caller(request, platform), RouteGroup.ADMINISTRATION)


async def raw_body(request: Request) -> bytes:
    """The body as it came; raises 413 over 32 MiB."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise ClaudeApiError(413, f"the body is larger than {MAX_BODY} bytes")
    return bytes(raw)


async def json_body(request: Request) -> Mapping[str, Any]:
    """The body as an object; an empty body is `{}`."""
    raw = await raw_body(request)
    if not raw:
        return {}
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise invalid("the body: expected an object")
    return body


def int_param(request: Request, name: str, *, low: int, high: int, default: int | None = None) -> int | None:
    raw = request.query_params.get(name)
    if raw is None:
        return default
    try:
        value = int(raw)
    except ValueError:
        raise invalid(f"{name}: expected a number") from None
    if not low <= value <= high:
        raise invalid(f"{name}: expected {low} to {high}")
    return value


def limit_param(request: Request, *, default: int, high: int) -> int:
    return int_param(request, "limit", low=1, high=high, default=default) or default


def page_param(request: Request) -> int | None:
    return decode_cursor(request.query_params.get("page"))


def flag_param(request: Request, name: str) -> bool:
    return request.query_params.get(name, "false").lower() in ("true", "1")


def list_param(request: Request, name: str) -> list[str]:
    """`name[]=a&name[]=b`, and `name=a` as well."""
    return request.query_params.getlist(f"{name}[]") + request.query_params.getlist(name)


def order_param(request: Request, default: str) -> bool:
    """True for newest first."""
    order = request.query_params.get("order", default)
    if order not in ("asc", "desc"):
        raise invalid("order: expected asc or desc")
    return order == "desc"


def time_bounds(request: Request, name: str) -> list[tuple[str, datetime]]:
    """`name[gte]=...` and its siblings."""
    bounds = []
    for comparison in ("gt", "gte", "lt", "lte"):
        raw = request.query_params.get(f"{name}[{comparison}]")
        if raw is None:
            continue
        try:
            moment = datetime.fromisoformat(raw)
        except ValueError:
            raise invalid(f"{name}[{comparison}]: expected an RFC 3339 time") from None
        bounds.append((comparison, moment if moment.tzinfo else moment.replace(tzinfo=UTC)))
    return bounds
