"""Claims passed from one process to the lock's holder, over a Unix socket in the state directory.

One claim a connection: the bringer sends the claim as one line of JSON, the holder answers with one word (`Reply`).
Both ends are bounded in time and size. The socket has a short relative name, since a socket's path must fit into
108 bytes: callers change to the state directory first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Final

from image.session.claim import Claim, ClaimError, Ended
from image.session.worker.claim_registry import ClaimRegistry, Reply
from image.session.worker.credentials import token_of
from image.session.worker.secret_hiding import LONGEST_CLAIM
from image.session.worker.state_directory import StateDirectory

SOCKET_NAME: Final = "claims.sock"
PATIENCE: Final = 2.0  # seconds for one exchange, each end on its own clock
_LONGEST_REPLY: Final = 64

log = logging.getLogger(__name__)


def pass_on(claim: Claim) -> Reply | None:
    """Brings a claim to the holder; None where nobody answers (not yet listening, gone, or too slow).

    No answer is not a no: the holder may have taken the claim. Bringing it once more does no harm.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(SOCKET_NAME)
            if not _same_user(connection):
                return None
            connection.sendall(claim.to_json().encode() + b"\n")
            return Reply(_read_line(connection, _LONGEST_REPLY).decode("ascii"))
    except (OSError, ValueError):
        return None


class ClaimSocket:
    """Takes claims at the socket while the lock is held. Made and closed under the lock, so whatever lies at the
    socket's name belongs to nobody alive."""

    def __init__(self, state: StateDirectory, registry: ClaimRegistry) -> None:
        """The working directory is the state directory."""
        self._state = state
        self._registry = registry
        self._state.set_aside(SOCKET_NAME)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(SOCKET_NAME)
        Path(SOCKET_NAME).chmod(0o600)
        self._socket.listen(16)
        self._thread = threading.Thread(target=self._serve, name="claims", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Refuses first, then goes: a bringer that meets no socket tries the lock, which is about to be free."""
        self._registry.close()
        with contextlib.suppress(Ended):
            self._state.set_aside(SOCKET_NAME)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    self._answer(connection)
                except (OSError, ClaimError, UnicodeDecodeError, Ended) as error:
                    log.warning("claim.unreadable error=%s", type(error).__name__)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        if not _same_user(connection):
            log.warning("claim.of_another_user")
            return
        claim = Claim.from_json(_read_line(connection, LONGEST_CLAIM).decode("utf-8"))
        token_of(claim.secret)  # a secret without a credential would take the place of one that has it
        reply = self._registry.offer(claim)
        log.info("claim.offered work=%s reply=%s", claim.work_id, reply)
        connection.sendall(reply.encode() + b"\n")


def _read_line(connection: socket.socket, longest: int) -> bytes:
    """Raises OSError where the line is too long, cut off, or late as a whole (a drip is no answer)."""
    deadline = time.monotonic() + PATIENCE
    line = bytearray()
    while not line.endswith(b"\n"):
        remaining = deadline - time.monotonic()
        if remaining <= 0 or len(line) > longest:
            raise OSError("no line in time or size")
        connection.settimeout(remaining)
        piece = connection.recv(4096)
        if not piece:
            raise OSError("the other end hung up")
        line += piece
    return bytes(line[:-1])


def _same_user(connection: socket.socket) -> bool:
    """The kernel's word on who is at the other end. Elsewhere than on Linux the state directory's mode, which lets
    in its owner alone, has to do."""
    if sys.platform != "linux":
        return True
    form = struct.Struct("3i")
    _, uid, _ = form.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size))
    return bool(uid == os.getuid())
