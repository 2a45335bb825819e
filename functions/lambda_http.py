"""HTTP as Lambda tells it (payload format 2.0: function URLs and HTTP APIs), to a handler and back.

The handlers take a Starlette request, so this is a small ASGI server with one request at a time. Lambda never tells
that a caller hung up; `receive` therefore blocks once the body was read, until the answer is there: whoever watches for
a hang-up (fork_best_of_n) must not see one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Awaitable[Response]]

_TEXTS: Final = ("text/", "application/json", "application/x-ndjson")


class BadHttpEvent(ValueError):
    """It looks like HTTP and is not payload format 2.0. The text says what to change."""


def is_http(event: Mapping[str, Any]) -> bool:
    """Whether an unauthenticated caller may be behind this event: then only the handler's own rules let it in.

    Anything that has a trace of HTTP counts, of whatever gateway: taking such an event for one of the schedule's would
    let it past every token.
    """
    return any(name in event for name in ("requestContext", "httpMethod", "rawPath", "headers"))


async def respond(handler: Handler, event: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """The handler's answer as a payload 2.0 response. `state` is what a server's lifespan would give to requests.

    Raises BadHttpEvent, and whatever the handler raises.
    """
    body = _body(event)
    answered = asyncio.Event()
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await answered.wait()
        return {"type": "http.disconnect"}

    status = 500
    headers: list[tuple[bytes, bytes]] = []
    parts: list[bytes] = []

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            parts.append(bytes(message.get("body", b"")))

    scope = _scope(event, state)
    try:
        response = await handler(Request(scope, receive))
        await response(scope, receive, send)
    finally:
        answered.set()
    return _answer(status, headers, b"".join(parts))


def method_and_path(event: Mapping[str, Any]) -> tuple[str, str]:
    """Of an event that may be none of this format's; empty texts then."""
    context = event.get("requestContext")
    http = context.get("http") if isinstance(context, Mapping) else None
    return str(http.get("method", "")) if isinstance(http, Mapping) else "", str(event.get("rawPath", ""))


def request_event(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """A POST of this body, as an event: for a direct invocation that stands for a request."""
    return {
        "version": "2.0",
        "rawPath": "/",
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "content-length": str(len(body)), **headers},
        "requestContext": {"http": {"method": "POST", "path": "/"}},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def _scope(event: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    context = event.get("requestContext")
    http = context.get("http") if isinstance(context, Mapping) else None
    if event.get("version") != "2.0" or not isinstance(http, Mapping) or not isinstance(http.get("method"), str):
        raise BadHttpEvent("only payload format 2.0 is understood: a function URL, or an HTTP API with that format")
    headers = [(name.lower().encode(), value.encode()) for name, value in _texts(event.get("headers")).items()]
    cookies = event.get("cookies")
    if isinstance(cookies, list) and cookies:
        headers.append((b"cookie", "; ".join(str(cookie) for cookie in cookies).encode()))
    path = str(event.get("rawPath", "/"))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": http["method"],
        "scheme": "https",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": str(event.get("rawQueryString", "")).encode(),
        "root_path": "",
        "headers": headers,
        "client": (str(http.get("sourceIp", "")), 0),
        "server": (_texts(event.get("headers")).get("host", "localhost"), 443),
        "state": dict(state),
    }


def _texts(mapping: object) -> Mapping[str, str]:
    if not isinstance(mapping, Mapping):
        return {}
    return {str(name): str(value) for name, value in mapping.items()}


def _body(event: Mapping[str, Any]) -> bytes:
    body = event.get("body") or ""
    if not isinstance(body, str):
        raise BadHttpEvent("the body must be a text")
    if not event.get("isBase64Encoded"):
        return body.encode(errors="surrogatepass")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadHttpEvent("the body is marked as base64 and is none") from None


def _answer(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> dict[str, Any]:
    joined: dict[str, str] = {}
    cookies: list[str] = []
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name == "set-cookie":
            cookies.append(value)
        else:
            joined[name] = f"{joined[name]}, {value}" if name in joined else value
    answer: dict[str, Any] = {"statusCode": status, "headers": joined, "isBase64Encoded": False}
    if cookies:
        answer["cookies"] = cookies
    if joined.get("content-type", "text/").startswith(_TEXTS):
        try:
            return answer | {"body": body.decode()}
        except UnicodeDecodeError:
            pass
    return answer | {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}
