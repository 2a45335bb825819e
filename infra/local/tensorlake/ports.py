"""User ports of sandboxes, reached through the platform (docs/wire/tensorlake.md#510-ports).

Two forms: `http://<port>-<id or name>.localhost:<platform port>/...`, which is what the SDK's `url_for_port`
gives, and `http://127.0.0.1:<platform port>/_ports/<id or name>/<port>/...`, which needs no name resolution.

Sandboxes share the machine's network here, so a port inside is a port of the machine: only one sandbox at a
time can listen on it. A request is passed on only if the listener is a process of the sandbox that was asked.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from infra.local.tensorlake.errors import TensorlakeApiError, not_found
from infra.local.tensorlake.lifecycle import Lifecycle
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.records import DAEMON_PORT, Sandbox

_HOST = re.compile(r"(\d{1,5})-([a-z0-9-]+)")
_PATH = re.compile(r"/_ports/([^/]+)/(\d{1,5})(/.*)?")
_HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade",
}  # fmt: skip
LISTEN_SECONDS = 2.0
"""A program that has just been started, or woken, gets so long to listen."""


def port_of_host(request: Request) -> tuple[str, int] | None:
    """(id or name, port) from a Host such as `8080-name.localhost:9000`; None for the daemon's port."""
    label = request.headers.get("host", "").split(":")[0].split(".")[0]
    found = _HOST.fullmatch(label)
    if found is None or int(found.group(1)) == DAEMON_PORT:
        return None
    return found.group(2), int(found.group(1))


class Ports:
    def __init__(self, platform: TensorlakePlatform, lifecycle: Lifecycle) -> None:
        self._platform = platform
        self._lifecycle = lifecycle
        # Connections are not kept: one of before a sleep is closed by the program as it wakes.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx2.AsyncClient(trust_env=False, follow_redirects=False, timeout=None, limits=limits)

    async def listing(self, request: Request) -> JSONResponse:
        rows = [
            self._row(sandbox, port)
            for sandbox in self._platform.sandboxes.values()
            if sandbox.live
            for port in sandbox.exposed_ports
        ]
        return JSONResponse({"ports": rows, "note": __doc__})

    def _row(self, sandbox: Sandbox, port: int) -> dict[str, Any]:
        key = sandbox.name or sandbox.id
        machine_port = self._platform.url.rpartition(":")[2]
        return {
            "sandbox_id": sandbox.id,
            "name": sandbox.name,
            "port": port,
            "url": f"{self._platform.url}/_ports/{key}/{port}",
            "host_url": f"http://{port}-{key}.localhost:{machine_port}",
            "needs_api_key": not sandbox.allow_unauthenticated_access,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        target = port_of_host(request)
        path: str = scope["path"]
        if target is None:
            found = _PATH.fullmatch(path)
            if found is None:
                raise not_found(f"'{path}' (expected /_ports/<sandbox>/<port>/...)")
            target = (found.group(1), int(found.group(2)))
            path = found.group(3) or "/"
        key, port = target
        sandbox = self._platform.find_anywhere(key)
        if sandbox is None or not sandbox.live:
            raise not_found(f"sandbox '{key}'")
        self._admit(request, sandbox, port)
        sandbox.open_requests += 1
        sandbox.touch()
        try:
            await self._lifecycle.awake(sandbox, by_port=True)
            await self._listening(sandbox, port)
            response = await self._forward(request, port, path)
            await response(scope, receive, send)
        finally:
            sandbox.open_requests -= 1
            sandbox.touch()

    def _admit(self, request: Request, sandbox: Sandbox, port: int) -> None:
        if port not in sandbox.exposed_ports:
            raise TensorlakeApiError(403, "PORT_NOT_EXPOSED", f"port {port} is not in this sandbox's exposed_ports")
        if sandbox.allow_unauthenticated_access:
            return
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not key or (self._platform.api_key is not None and key != self._platform.api_key):
            raise TensorlakeApiError(401, "UNAUTHORIZED", "this port needs the API key (Authorization: Bearer ...)")

    async def _listening(self, sandbox: Sandbox, port: int) -> None:
        """Return when the sandbox itself listens there; 502 if nobody or somebody else does."""
        if sandbox.box is None:
            raise not_found(f"sandbox '{sandbox.id}'")
        deadline = asyncio.get_running_loop().time() + LISTEN_SECONDS
        while True:
            owner = (await sandbox.box.link.call({"op": "listening", "port": port}))["owner"]
            if owner in ("here", "unknown"):
                return
            if owner == "elsewhere" or asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(0.05)
        somebody = "another program on this machine (offline sandboxes share one network)"
        text = f"port {port} is held by {somebody}" if owner == "elsewhere" else f"nothing listens on port {port}"
        raise TensorlakeApiError(502, "PORT_UNREACHABLE", text)

    async def _forward(self, request: Request, port: int, path: str) -> StreamingResponse:
        limit = self._platform.settings.max_port_body_bytes
        announced = request.headers.get("content-length")
        if announced is not None and announced.isdigit() and int(announced) > limit:
            raise TensorlakeApiError(413, "PAYLOAD_TOO_LARGE", f"the body is larger than {limit} bytes")
        query = request.scope["query_string"].decode("latin-1")
        headers = [(name, value) for name, value in request.headers.raw if _passes(name)]
        has_body = announced is not None or "transfer-encoding" in request.headers
        outgoing = self._client.build_request(
            request.method,
            f"http://127.0.0.1:{port}{path}{'?' + query if query else ''}",
            headers=headers,
            content=_capped(request, limit) if has_body else None,
        )
        try:
            answer = await self._client.send(outgoing, stream=True)
        except httpx2.TransportError as error:
            raise TensorlakeApiError(502, "PORT_UNREACHABLE", f"port {port}: {type(error).__name__}") from None

        async def body() -> AsyncIterator[bytes]:
            try:
                async for chunk in answer.aiter_raw():
                    yield chunk
            finally:
                await answer.aclose()

        response = StreamingResponse(body(), answer.status_code)
        response.raw_headers = [(name, value) for name, value in answer.headers.raw if _passes(name)]
        return response


def _passes(header: bytes) -> bool:
    return header.decode("latin-1").lower() not in _HOP_BY_HOP


async def _capped(request: Request, limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TensorlakeApiError(413, "PAYLOAD_TOO_LARGE", f"the body is larger than {limit} bytes")
        yield chunk
