"""Claims passed from one process to the lock's holder, over a Unix socket in the state directory.

One claim a connection: the bringer sends the sealed claim as one line, the holder answers with one word (`ClaimReply`)
and the proof that it could read the claim (sealing.py). Without a session key nothing is passed on.
Both ends are bounded in time and size. The socket has a short relative name, since a socket's path must fit into
108 bytes: callers change to the state directory first.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import socket
import struct
import sys
import threading
import time
from base64 import b64decode, b64encode
from typing import Final

from image.session.claim import Claim, Ended
from image.session.worker import sealing
from image.session.worker.claim_registry import ClaimRegistry, ClaimReply
from image.session.worker.credentials import token_of
from image.session.worker.secret_hiding import LONGEST_CLAIM
from image.session.worker.state_directory import StateDirectory

SOCKET_NAME: Final = "claims.sock"
PATIENCE: Final = 2.0  # seconds for one exchange, each end on its own clock
_LONGEST_REPLY: Final = 128
_LONGEST_MESSAGE: Final = 2 * LONGEST_CLAIM  # in base64, with its seal

log = logging.getLogger(__name__)


def pass_on(claim: Claim) -> ClaimReply | None:
    """Brings a claim to the holder; None where nobody answers (not yet listening, gone, or too slow).

    No answer is not a no: the holder may have taken the claim. Bringing it once more does no harm. An answer without
    proof is none: somebody else may listen at the socket.
    """
    key = claim.session_key
    if not key:
        return None
    nonce = sealing.fresh_nonce()
    message = b64encode(sealing.seal(key, nonce, claim.to_json().encode())) + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(SOCKET_NAME)
            if not _same_user(connection):
                return None
            connection.sendall(message)
            word, _, proof = _read_line(connection, _LONGEST_REPLY).decode("ascii").partition(" ")
            if not hmac.compare_digest(proof, sealing.proof(key, nonce, word)):
                log.warning("claim.answered_by_somebody_else")
                return None
            return ClaimReply(word)
    except (OSError, ValueError):
        return None


class ClaimSocket:
    """Takes claims at the socket while the lock is held. Made and closed under the lock, so whatever lies at the
    socket's name belongs to nobody alive."""

    def __init__(self, state: StateDirectory, registry: ClaimRegistry, key: str | None) -> None:
        """The working directory is the state directory. `key` is the session's; without one no claim is taken."""
        self._state = state
        self._key = key
        self._registry = registry
        self._state.set_aside(SOCKET_NAME)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(SOCKET_NAME)
        os.chmod(SOCKET_NAME, 0o600)
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
                except (OSError, ValueError, Ended) as error:  # ValueError: not sealed, or no claim
                    log.warning("claim.unreadable error=%s", type(error).__name__)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        if not _same_user(connection):
            log.warning("claim.of_another_user")
            return
        if not self._key:
            return
        nonce, text = sealing.unseal(self._key, b64decode(_read_line(connection, _LONGEST_MESSAGE)))
        claim = Claim.from_json(text.decode("utf-8"))
        token_of(claim.secret)  # a secret without a credential would take the place of one that has it
        reply = self._registry.offer(claim)
        log.info("claim.offered work=%s reply=%s", claim.work_id, reply)
        connection.sendall(f"{reply} {sealing.proof(self._key, nonce, reply)}\n".encode())


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
