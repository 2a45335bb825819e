"""The platform's end of a supervisor's socket: one short connection for each request (wire: supervisor.py)."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterable, AsyncIterator
from types import TracebackType
from typing import Any, Self

from infra.local.tensorlake.errors import TensorlakeApiError

Json = dict[str, Any]
CHUNK = 256 * 1024


class SupervisorGone(Exception):
    """The supervisor ended before it had answered: its sandbox is dead."""


class Exchange:
    """One request and its answer. Closing it early never ends a process that the request started."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def frame(self) -> Json:
        """The next frame. Raises TensorlakeApiError for a refusal, EOFError at the end, SupervisorGone if cut."""
        header = await self._reader.read(4)
        if not header:
            raise EOFError
        try:
            if len(header) < 4:
                header += await self._reader.readexactly(4 - len(header))
            answer: Json = json.loads(await self._reader.readexactly(struct.unpack(">I", header)[0]))
        except asyncio.IncompleteReadError:
            raise SupervisorGone from None
        if "status" in answer and "code" in answer and "error" in answer:
            raise TensorlakeApiError(answer["status"], answer["code"], answer["error"])
        return answer

    async def frames(self) -> AsyncIterator[Json]:
        while True:
            try:
                yield await self.frame()
            except EOFError:
                return

    async def send(self, chunk: bytes) -> None:
        self._writer.write(chunk)
        await self._writer.drain()

    def end_of_body(self) -> None:
        self._writer.write_eof()

    async def raw(self) -> AsyncIterator[bytes]:
        while chunk := await self._reader.read(CHUNK):
            yield chunk

    async def close(self) -> None:
        self._writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class SupervisorLink:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._control.setblocking(False)

    async def open(self, request: Json) -> Exchange:
        """Pass a fresh socket to the supervisor and send the request over it; its body is up to the caller."""
        ours, theirs = socket.socketpair()
        try:
            while True:
                try:
                    socket.send_fds(self._control, [b"\0"], [theirs.fileno()])
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.005)
        except OSError:
            ours.close()
            raise SupervisorGone from None
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        data = json.dumps(request).encode()
        writer.write(struct.pack(">I", len(data)) + data)
        return Exchange(reader, writer)

    async def call(self, request: Json, body: AsyncIterable[bytes] | None = None) -> Json:
        """One request, one answer. Raises TensorlakeApiError or SupervisorGone."""
        async with await self.open(request) as exchange:
            try:
                if body is not None:
                    async for chunk in body:
                        await exchange.send(chunk)
                exchange.end_of_body()
            except OSError:
                pass  # Refused before the body was read: the answer says why.
            try:
                return await exchange.frame()
            except (EOFError, OSError):
                raise SupervisorGone from None

    def close(self) -> None:
        self._control.close()
