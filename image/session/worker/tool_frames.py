"""Messages between worker, tool supervisor and tool host: four bytes of length, then JSON. Standard library only."""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from typing import Any, Final

LONGEST_FRAME: Final = 16 << 20  # bytes
_HEADER: Final = struct.Struct(">I")
_READ: Final = 1 << 16


class FrameError(Exception):
    """The other end broke off, or sent what is no message."""


def pack(message: Any) -> bytes:
    data = json.dumps(message, separators=(",", ":"), default=str).encode("utf-8", "replace")
    if len(data) > LONGEST_FRAME:
        raise FrameError(f"a message of {len(data)} bytes; {LONGEST_FRAME} at most")
    return _HEADER.pack(len(data)) + data


class FrameReader:
    """Puts messages together from whatever pieces they come in."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> None:
        self._held += data

    def next(self) -> Any:
        """The next whole message, None while there is none. Raises FrameError."""
        if len(self._held) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack_from(self._held)
        if size > LONGEST_FRAME:
            raise FrameError(f"a message of {size} bytes; {LONGEST_FRAME} at most")
        end = _HEADER.size + size
        if len(self._held) < end:
            return None
        body = bytes(self._held[_HEADER.size : end])
        del self._held[:end]
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            raise FrameError("a message that is not JSON") from None
        if not isinstance(message, dict):
            raise FrameError("a message that is no object")
        return message


def receive(connection: socket.socket, reader: FrameReader, seconds: float | None = None) -> dict[str, Any] | None:
    """The next message; None where the other end has closed. Raises TimeoutError and FrameError."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        message: dict[str, Any] | None = reader.next()
        if message is not None:
            return message
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([connection], [], [], left)[0]:
            raise TimeoutError
        try:
            data = connection.recv(_READ)
        except ConnectionError:
            data = b""
        if not data:
            return None
        reader.feed(data)
