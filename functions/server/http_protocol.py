"""HTTP for servers that anybody can reach: what a caller may hold before anything is known of it is bounded.

    uvicorn functions.asgi:app --http functions.server.http_protocol:BoundedHttpProtocol --ws none --backlog 128

uvicorn bounds the time between two requests and nothing else, so this is its httptools protocol with what it lacks:

- a header must be complete within HEADER_SECONDS, and has at most HEADER_BYTES and HEADERS lines;
- a body that goes on after its answer (its caller was refused before it was read) is thrown away, for at most
  LINGER_SECONDS and LINGER_BYTES; closing at once would take the answer away from the caller;
- at most PIPELINED requests wait behind another on one connection;
- so many connections are open at once as functions/server/descriptors.py says. One more takes the place of the one
  that has waited longest for its caller: a sender of webhooks needs milliseconds to complete a header, so it is not
  the one. Connections whose request is being served are left alone.

How many bodies are read at once is bounded where they are read (functions/requests.py). A runtime with a front end of
its own (Cloud Run, Lambda, a gateway) does all of this there, and functions-framework has no such protocol: it is for
such runtimes. tests/functions/server/test_http_protocol.py
"""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from functions.server.descriptors import most_connections, raise_descriptor_limit

HEADER_SECONDS: Final = 10.0
HEADER_BYTES: Final = 32_768  # front ends add some kilobytes of their own
HEADERS: Final = 128
LINGER_SECONDS: Final = 5.0
LINGER_BYTES: Final = 2 * 1024 * 1024  # twice the largest body that any function takes
PIPELINED: Final = 4
RECEIVED_AT_ONCE: Final = 32_768  # bytes; asyncio would take 256 KiB, from hundreds of connections in one round

_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"


class _Waiting:
    """The connections of one server that wait for their callers, the one that has waited longest first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._connections: OrderedDict[BoundedHttpProtocol, None] = OrderedDict()

    def add(self, connection: BoundedHttpProtocol) -> None:
        self._connections[connection] = None

    def discard(self, connection: BoundedHttpProtocol) -> None:
        self._connections.pop(connection, None)

    def evict(self) -> bool:
        """Closes the one that has waited longest; False where none waits."""
        if not self._connections:
            return False
        connection, _ = self._connections.popitem(last=False)
        connection.transport.abort()
        return True


_servers: weakref.WeakKeyDictionary[Any, _Waiting] = weakref.WeakKeyDictionary()


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self.server_state not in _servers:
            _servers[self.server_state] = _Waiting(most_connections(raise_descriptor_limit()))
        self._waiting = _servers[self.server_state]
        self._timer: asyncio.TimerHandle | None = None
        self._in_header = True
        self._header_bytes = 0
        self._lingering = 0
        if hasattr(transport, "max_size"):  # asyncio's own: what is received at once, before any of our bounds
            transport.max_size = RECEIVED_AT_ONCE
        super().connection_made(transport)
        if len(self.connections) > self._waiting.most and not self._waiting.evict():
            transport.write(_FULL)
            transport.close()
            return
        self._waiting.add(self)
        self._arm(HEADER_SECONDS, _TOO_SLOW)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.discard(self)
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_header:
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_BYTES:
                self._end(_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_header = True
        self._header_bytes = 0
        if self._timer is None:
            self._arm(HEADER_SECONDS, _TOO_SLOW)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEADERS or len(name) + len(value) > HEADER_BYTES:
            raise ValueError("too many headers")  # the parser makes it a 400, and the connection ends
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_header = False
        if len(self.pipeline) >= PIPELINED or sum(len(n) + len(v) for n, v in self.headers) > HEADER_BYTES:
            raise ValueError("too much at once")
        self._disarm()
        self._waiting.discard(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle.response_complete:
            self._lingering += len(body)
            if self._lingering > LINGER_BYTES:
                self.transport.abort()
                return
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:  # another request came behind it
            return
        self._waiting.add(self)
        self.cycle.body.clear()  # nobody reads it any more, and uvicorn keeps it until the next request
        if self.cycle.more_body:
            self._lingering = 0
            self._arm(LINGER_SECONDS, b"")

    def _arm(self, seconds: float, last_words: bytes) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._end, last_words)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, last_words: bytes) -> None:
        self._disarm()
        self._waiting.discard(self)
        if self.transport.is_closing():
            return
        if last_words:
            self.transport.write(last_words)
        self.transport.close()
