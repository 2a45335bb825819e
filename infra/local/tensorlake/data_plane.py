"""Routes of the daemon in each sandbox: processes, files, health (docs/wire/tensorlake.md#7-processes,
docs/wire/tensorlake.md#8-files, docs/wire/tensorlake.md#9-health-and-tunnels)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from infra.local.tensorlake import files
from infra.local.tensorlake.box import Box
from infra.local.tensorlake.errors import TensorlakeApiError, bad_request, not_found, not_supported
from infra.local.tensorlake.lifecycle import Lifecycle
from infra.local.tensorlake.link import Exchange, SupervisorGone
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.processes import STREAMS, start_request
from infra.local.tensorlake.records import DAEMON_PORT, Sandbox
from infra.local.tensorlake.terminals import Terminals

VERSION = "offline-1"
Handler = Callable[[Request, Sandbox, Box], Awaitable[Response]]


def sandbox_key(request: Request) -> str:
    """Id or name from `X-Tensorlake-Sandbox-Id`, else the first Host label
    (docs/wire/tensorlake.md#22-data-plane-base)."""
    given = request.headers.get("x-tensorlake-sandbox-id")
    if given:
        return given
    label = request.headers.get("host", "").split(":")[0].split(".")[0]
    return label.removeprefix(f"{DAEMON_PORT}-")


@dataclass
class DataPlane:
    platform: TensorlakePlatform
    lifecycle: Lifecycle
    terminals: Terminals

    def routes(self) -> list[Route]:
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/api/v1/health", self.health),
            ("GET", "/api/v1/info", self.info),
            ("POST", "/api/v1/processes/run", self.run),
            ("GET", "/api/v1/processes", self.processes),
            ("POST", "/api/v1/processes", self.start),
            ("GET", "/api/v1/processes/{process}", self.get),
            ("DELETE", "/api/v1/processes/{process}", self.kill),
            ("POST", "/api/v1/processes/{process}/restart", self.restart),
            ("POST", "/api/v1/processes/{process}/signal", self.signal),
            ("POST", "/api/v1/processes/{process}/stdin", self.stdin),
            ("POST", "/api/v1/processes/{process}/stdin/close", self.stdin_close),
            ("GET", "/api/v1/processes/{process}/{stream}", self.output),
            ("GET", "/api/v1/processes/{process}/{stream}/follow", self.follow),
            ("GET", "/api/v1/files", self.read),
            ("PUT", "/api/v1/files", self.write),
            ("DELETE", "/api/v1/files", self.delete),
            ("GET", "/api/v1/files/list", self.entries),
            ("POST", "/api/v1/pty", self.terminals.create),
            ("DELETE", "/api/v1/pty/{session}", self.terminals.delete),
        ]
        routes = [Route(path, self._served(handler), methods=[method]) for method, path, handler in table]
        refused = [
            Route(path, _refuse(what), methods=["GET", "POST", "DELETE"])
            for path, what in (("/api/v1/tunnels{rest:path}", "tunnels"),)
        ]
        return routes + refused

    def _served(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Find the sandbox, wake it, and count the request as its activity until the answer is out."""

        async def endpoint(request: Request) -> Response:
            key = sandbox_key(request)
            sandbox = self.platform.find_anywhere(key)
            if sandbox is None or not sandbox.live:
                raise not_found(f"sandbox '{key}'")
            over = self._open(sandbox, handler)
            try:
                await self.lifecycle.awake(sandbox)
                if sandbox.box is None:
                    raise not_found(f"sandbox '{key}'")
                response = await handler(request, sandbox, sandbox.box)
            except SupervisorGone:
                over()
                raise not_found(f"sandbox '{key}' (it ended during the call)") from None
            except BaseException:
                over()
                raise
            return _Tracked(response, over)

        return endpoint

    def _open(self, sandbox: Sandbox, handler: Handler) -> Once:
        """Count a request that begins, unless a knob says that those of its kind are no activity."""
        settings = self.platform.settings
        uncounted = (handler == self.health and not settings.touches_are_activity) or (
            handler == self.follow and not settings.follows_are_activity
        )
        if uncounted:
            return Once(lambda: None)
        sandbox.open_requests += 1
        sandbox.touch()
        return Once(lambda: _close(sandbox))

    # --- processes ------------------------------------------------------------------------------------

    async def health(self, _: Request, __: Sandbox, box: Box) -> Response:
        await box.link.call({"op": "hello"})
        return JSONResponse({"healthy": True})

    async def info(self, _: Request, __: Sandbox, box: Box) -> Response:
        said = await box.link.call({"op": "hello"})
        counts = {key: said[key] for key in ("uptime_secs", "running_processes", "total_processes")}
        return JSONResponse({"version": VERSION, **counts})

    async def processes(self, _: Request, __: Sandbox, box: Box) -> Response:
        return JSONResponse(await box.link.call({"op": "list"}))

    async def start(self, request: Request, sandbox: Sandbox, box: Box) -> Response:
        settings = self.platform.settings
        wanted = start_request(sandbox, await _json(request), settings)
        wanted["shares_name"] = not settings.process_names_unique
        await self._start_latency()
        try:
            return JSONResponse(await box.link.call(wanted), 201)
        except TensorlakeApiError as error:
            if error.code != "COMMAND_NOT_FOUND":
                raise
            if settings.missing_program_status is not None:
                raise TensorlakeApiError(settings.missing_program_status, error.code, str(error)) from None
        return JSONResponse(await box.link.call({**wanted, "command": "/bin/sh", "args": ["-c", "exit 127"]}), 201)

    async def run(self, request: Request, sandbox: Sandbox, box: Box) -> Response:
        wanted = {**start_request(sandbox, await _json(request), self.platform.settings), "op": "run"}
        await self._start_latency()
        exchange = await box.link.open(wanted)
        return _events(exchange, await _first(exchange), event=None)

    async def _start_latency(self) -> None:
        await asyncio.sleep(self.platform.settings.process_start_seconds)

    async def get(self, request: Request, _: Sandbox, box: Box) -> Response:
        return JSONResponse(await box.link.call({"op": "get", **request.path_params}))

    async def kill(self, request: Request, _: Sandbox, box: Box) -> Response:
        await box.link.call({"op": "kill", **request.path_params})
        return Response(status_code=204)

    async def restart(self, request: Request, _: Sandbox, box: Box) -> Response:
        return JSONResponse(await box.link.call({"op": "restart", **request.path_params}))

    async def signal(self, request: Request, _: Sandbox, box: Box) -> Response:
        number = (await _json(request)).get("signal")
        if not isinstance(number, int):
            raise bad_request("signal must be a number")
        return JSONResponse(await box.link.call({"op": "signal", "signal": number, **request.path_params}))

    async def stdin(self, request: Request, _: Sandbox, box: Box) -> Response:
        body = _capped(request, self.platform.settings.max_stdin_bytes)
        await box.link.call({"op": "stdin", **request.path_params}, body)
        return Response(status_code=204)

    async def stdin_close(self, request: Request, _: Sandbox, box: Box) -> Response:
        await box.link.call({"op": "stdin_close", **request.path_params})
        return Response(status_code=204)

    async def output(self, request: Request, _: Sandbox, box: Box) -> Response:
        return JSONResponse(await box.link.call({"op": "output", **_streams(request)}))

    async def follow(self, request: Request, sandbox: Sandbox, box: Box) -> Response:
        exchange = await box.link.open({"op": "follow", **_streams(request)})
        await _first(exchange)

        def said() -> None:
            if self.platform.settings.follows_are_activity:
                sandbox.touch()

        return _events(exchange, None, event="output", at_once=not self.platform.settings.follow_waits, said=said)

    # --- files ----------------------------------------------------------------------------------------

    async def read(self, request: Request, _: Sandbox, box: Box) -> Response:
        path = files.readable(box, files.resolve(box, self._path(request, box)))
        exchange = await box.link.open({"op": "read", "path": path})
        size = (await _first(exchange))["size"]

        async def body() -> AsyncIterator[bytes]:
            async with exchange:
                left = size
                async for chunk in exchange.raw():
                    # A file that grows while it is read must not overrun the length announced.
                    yield chunk[:left]
                    left -= len(chunk[:left])

        headers = {"content-length": str(size)}
        return StreamingResponse(body(), media_type="application/octet-stream", headers=headers)

    async def write(self, request: Request, _: Sandbox, box: Box) -> Response:
        await files.write(box, self._path(request, box), _capped(request, self.platform.settings.max_file_bytes))
        return Response(status_code=204)

    async def delete(self, request: Request, _: Sandbox, box: Box) -> Response:
        await files.delete(box, self._path(request, box))
        return Response(status_code=204)

    async def entries(self, request: Request, _: Sandbox, box: Box) -> Response:
        path = self._path(request, box)
        real = files.readable(box, files.resolve(box, path))
        answer = await box.link.call({"op": "entries", "path": real})
        return JSONResponse({"path": path, "entries": answer["entries"]})

    def _path(self, request: Request, box: Box) -> str:
        path = request.query_params.get("path")
        if path and not path.startswith("/") and self.platform.settings.relative_paths:
            path = f"{box.base.runtime.workdir}/{path}"
        return files.checked(path)


class Once:
    """Calls a function the first time only."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action: Callable[[], None] | None = action

    def __call__(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


class _Tracked(Response):
    """Another response; when it is out, or its client gone, `over` is called."""

    def __init__(self, inner: Response, over: Once) -> None:
        self.status_code = inner.status_code
        self.background = None
        self.raw_headers = inner.raw_headers
        self._inner = inner
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._inner(scope, receive, send)
        finally:
            self._over()


def _close(sandbox: Sandbox) -> None:
    sandbox.open_requests -= 1
    sandbox.touch()


async def _first(exchange: Exchange) -> dict[str, Any]:
    """The first frame; an exchange that begins with a refusal is closed."""
    try:
        return await exchange.frame()
    except BaseException:
        await exchange.close()
        raise


def _events(
    exchange: Exchange,
    first: dict[str, Any] | None,
    event: str | None,
    *,
    at_once: bool = True,
    said: Callable[[], None] = lambda: None,
) -> StreamingResponse:
    """Server-sent events from a supervisor's frames; comments keep a quiet stream alive
    (docs/wire/tensorlake.md#31-timeouts). Not `at_once`: all of them at the end. `said` is called at each frame that is
    no comment."""
    prefix = f"event: {event}\n" if event else ""

    async def stream() -> AsyncIterator[str]:
        async with exchange:
            if first is not None:
                yield f"data: {json.dumps(first)}\n\n"
            held: list[str] = []
            async for frame in exchange.frames():
                if "keep_alive" in frame:
                    yield ": ping\n\n"
                    continue
                said()
                if "eof" in frame:
                    yield "".join([*held, "event: eof\ndata: {}\n\n"])
                elif at_once:
                    yield f"{prefix}data: {json.dumps(frame)}\n\n"
                else:
                    held.append(f"{prefix}data: {json.dumps(frame)}\n\n")

    return StreamingResponse(stream(), media_type="text/event-stream")


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        raise bad_request("the body is not JSON") from None
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    return body


def _streams(request: Request) -> dict[str, Any]:
    stream = request.path_params["stream"]
    if stream not in STREAMS:
        raise not_found(f"'{request.url.path}'")
    return {"process": request.path_params["process"], "streams": STREAMS[stream]}


async def _capped(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body, or a 413 as soon as it is known to be over the limit."""
    refusal = TensorlakeApiError(413, "PAYLOAD_TOO_LARGE", f"the body is larger than {limit} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise refusal
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise refusal
        yield chunk


def _refuse(what: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_: Request) -> Response:
        raise not_supported(what)

    return endpoint
