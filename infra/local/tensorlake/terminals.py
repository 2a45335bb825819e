"""Pseudo-terminals over WebSockets (docs/wire/tensorlake.md#9-health-and-tunnels).

Binary frames begin with an opcode: 0 data, 1 resize (columns and rows, two bytes each, big-endian), 2 ready (the client
is there), 3 exit (four bytes). The program starts when the first client is ready, and ends with its connection.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import struct
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from infra.local.tensorlake.box import Box
from infra.local.tensorlake.errors import TensorlakeApiError, bad_request, not_found
from infra.local.tensorlake.lifecycle import Lifecycle
from infra.local.tensorlake.link import Exchange, SupervisorGone
from infra.local.tensorlake.names import new_id
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.processes import start_request
from infra.local.tensorlake.records import Sandbox

DATA, RESIZE, READY, EXIT = range(4)
MOST: Final = 64
_SIZE_FRAME: Final = 5
_POLICY: Final = 1008
_GONE: Final = 1011


class PtyRequest(BaseModel):
    """What a terminal is asked to run."""

    model_config = ConfigDict(extra="ignore")

    command: str = Field(min_length=1)
    args: list[str] = []
    env: dict[str, str] = {}
    working_dir: str | None = None
    rows: int = Field(default=24, ge=1, le=10_000)
    cols: int = Field(default=80, ge=1, le=10_000)


@dataclass
class Terminal:
    sandbox: Sandbox
    token: str
    request: dict[str, Any]
    begun: bool = False


class Terminals:
    def __init__(self, platform: TensorlakePlatform, lifecycle: Lifecycle) -> None:
        self._platform = platform
        self._lifecycle = lifecycle
        self._all: dict[str, Terminal] = {}

    async def create(self, request: Request, sandbox: Sandbox, _: Box) -> Response:
        if sum(terminal.sandbox is sandbox for terminal in self._all.values()) >= MOST:
            raise TensorlakeApiError(429, "TOO_MANY_SESSIONS", f"a sandbox has at most {MOST} terminals")
        try:
            asked = PtyRequest.model_validate_json(await request.body())
        except ValidationError as error:
            raise bad_request("; ".join(f"{item['loc']}: {item['msg']}" for item in error.errors())) from None
        body = asked.model_dump(exclude={"rows", "cols"})
        wanted = {**start_request(sandbox, body), "op": "terminal", "size": [asked.cols, asked.rows]}
        identity, token = new_id(), secrets.token_urlsafe(24)
        self._all[identity] = Terminal(sandbox, token, wanted)
        return JSONResponse({"session_id": identity, "token": token}, 201)

    async def delete(self, request: Request, sandbox: Sandbox, _: Box) -> Response:
        identity = request.path_params["session"]
        terminal = self._all.get(identity)
        if terminal is None or terminal.sandbox is not sandbox:
            raise not_found(f"PTY session '{identity}'")
        del self._all[identity]
        return Response(status_code=204)

    async def websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        identity = scope["path"].removeprefix("/api/v1/pty/").removesuffix("/ws")
        terminal = self._all.get(identity)
        token = socket.query_params.get("token") or socket.headers.get("x-pty-token", "")
        if terminal is None or terminal.begun or not secrets.compare_digest(token, terminal.token):
            await socket.close(_POLICY, "no such PTY session, or its token is another")
            return
        terminal.begun = True
        sandbox = terminal.sandbox
        sandbox.open_requests += 1
        sandbox.touch()
        await socket.accept()
        try:
            await self._attach(socket, terminal)
        finally:
            self._all.pop(identity, None)
            sandbox.open_requests -= 1
            sandbox.touch()

    async def _attach(self, socket: WebSocket, terminal: Terminal) -> None:
        try:
            await self._lifecycle.awake(terminal.sandbox)
            if terminal.sandbox.box is None:
                raise SupervisorGone
            async with await terminal.sandbox.box.link.open(terminal.request) as exchange:
                await exchange.frame()  # it has begun
                input_ = asyncio.ensure_future(_pass_input(socket, exchange, terminal.sandbox))
                try:
                    await _pass_output(socket, exchange)
                finally:
                    input_.cancel()
                    await asyncio.gather(input_, return_exceptions=True)
        except (TensorlakeApiError, SupervisorGone, EOFError) as error:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await socket.close(_GONE, str(error)[:100] or "the sandbox ended")


async def _pass_output(socket: WebSocket, exchange: Exchange) -> None:
    """Until the program has ended, or the client has left."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        async for frame in exchange.frames():
            if "data" in frame:
                await socket.send_bytes(bytes([DATA]) + base64.b64decode(frame["data"]))
            else:
                code = int(frame["exit_code"])
                await socket.send_bytes(struct.pack(">Bi", EXIT, code))
                await socket.close(1000, f"exit:{code}")
                return


async def _pass_input(socket: WebSocket, exchange: Exchange, sandbox: Sandbox) -> None:
    try:
        while True:
            data = await socket.receive_bytes()
            sandbox.touch()
            if data[:1] == bytes([RESIZE]) and len(data) == _SIZE_FRAME:
                await _send(exchange, {"size": list(struct.unpack(">HH", data[1:]))})
            elif data[:1] == bytes([DATA]):
                await _send(exchange, {"data": base64.b64encode(data[1:]).decode()})
    except (WebSocketDisconnect, KeyError, OSError):
        exchange.end_of_body()  # the terminal hangs up


async def _send(exchange: Exchange, frame: dict[str, Any]) -> None:
    data = json.dumps(frame).encode()
    await exchange.send(struct.pack(">I", len(data)) + data)
