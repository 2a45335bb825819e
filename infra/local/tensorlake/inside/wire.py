"""How the platform and the supervisor talk.

Standard input is one end of a Unix socket pair, so nobody else can reach it. Over it the platform passes
one fresh connected socket for each request. On that socket: a frame (4 bytes big-endian length, JSON) with the
request, raw body bytes until the platform closes its writing side; back comes a frame with the answer (or
`{"error": ..., "code": ..., "status": ...}`), then raw bytes (`read`) or more frames (`run`, `follow`), then
the end of the stream. When the control socket closes, the platform is gone: everything here is ended.

Each start of a sandbox waits for the imports of this package. So `socket`, which makes enumerations of hundreds of
constants, and `typing` are left out, and `subprocess` comes with the first program: that is a third of them.
"""

# ruff: noqa: PTH123

from __future__ import annotations

import _socket
import json
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Json = dict[str, Any]

CHUNK = 256 * 1024
_DESCRIPTOR = 4  # bytes of one that is passed


class DaemonRefusal(Exception):
    """An answer that is not a success: HTTP status, code and a text for the caller."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.answer: Json = {"status": status, "code": code, "error": text}


class Connection:
    """One request's socket."""

    def __init__(self, descriptor: int) -> None:
        """Owns the descriptor."""
        self.sock = _socket.socket(fileno=descriptor)
        self._file = open(os.dup(descriptor), "rb")  # noqa: SIM115

    def close(self) -> None:
        self._file.close()
        self.sock.close()

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
            return self.sock.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


def received(control: _socket.socket) -> int | None:
    """The next request's connection; None where the platform is gone."""
    _, controls, _, _ = control.recvmsg(1, _socket.CMSG_LEN(_DESCRIPTOR))
    for level, kind, data in controls:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            return int.from_bytes(data[:_DESCRIPTOR], sys.byteorder)
    return None
