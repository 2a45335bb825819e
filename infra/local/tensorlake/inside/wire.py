"""How the platform and the supervisor talk.

Standard input is one end of a Unix socket pair, so nobody else can reach it. Over it the platform passes
one fresh connected socket for each request. On that socket: a frame (4 bytes big-endian length, JSON) with the
request, raw body bytes until the platform closes its writing side; back comes a frame with the answer (or
`{"error": ..., "code": ..., "status": ...}`), then raw bytes (`read`) or more frames (`run`, `follow`), then
the end of the stream. When the control socket closes, the platform is gone: everything here is ended.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
CHUNK = 256 * 1024


class DaemonRefusal(Exception):
    """An answer that is not a success: HTTP status, code and a text for the caller."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.answer: Json = {"status": status, "code": code, "error": text}


class Connection:
    """One request's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")

    def request(self) -> Json:
        header = self._file.read(4)
        if len(header) < 4:
            raise EOFError
        request: Json = json.loads(self._file.read(struct.unpack(">I", header)[0]))
        return request

    def body(self) -> Iterator[bytes]:
        while chunk := self._file.read1(CHUNK):
            yield chunk

    def frame(self, answer: Json) -> None:
        data = json.dumps(answer).encode()
        self.sock.sendall(struct.pack(">I", len(data)) + data)

    def gone(self) -> bool:
        """Whether the platform has closed the connection (only for requests without a body)."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
