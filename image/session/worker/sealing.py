"""What one worker of a session says to another, closed to everybody else of the same user.

The socket on which claims are passed on lies in a directory of the agent's user, so an agent can listen there in a
worker's place. Both workers have the session's key and the agent has not: the claim travels encrypted and sealed, and
the answer carries a proof that it comes from whoever could read it. HMAC-SHA256 as a key stream, then a seal over what
was encrypted: the standard library has no cipher, and a few kilobytes need no faster one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Final

_NONCE: Final = 16  # bytes
_SEAL: Final = 32


def fresh_nonce() -> bytes:
    return os.urandom(_NONCE)


def seal(key: str, nonce: bytes, data: bytes) -> bytes:
    """`nonce` is used once with a key."""
    hidden = _encrypted(key, nonce, data)
    return nonce + hidden + _tag(key, b"seal", nonce + hidden)


def unseal(key: str, message: bytes) -> tuple[bytes, bytes]:
    """The nonce and the data. Raises ValueError for what nobody with the key has sealed."""
    nonce, hidden, tag = message[:_NONCE], message[_NONCE:-_SEAL], message[-_SEAL:]
    if len(message) < _NONCE + _SEAL or not hmac.compare_digest(tag, _tag(key, b"seal", nonce + hidden)):
        raise ValueError("not sealed with this session's key")
    return nonce, _encrypted(key, nonce, hidden)


def proof(key: str, nonce: bytes, word: str) -> str:
    """Shows that the sender of `word` had the key, in answer to the message with this nonce."""
    return _tag(key, b"answer", nonce + word.encode()).hex()


def _encrypted(key: str, nonce: bytes, data: bytes) -> bytes:
    stream_key = _tag(key, b"stream", nonce)
    blocks = (
        hmac.digest(stream_key, number.to_bytes(8, "big"), hashlib.sha256) for number in range(len(data) // 32 + 1)
    )
    stream = b"".join(blocks)[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(data), "big")


def _tag(key: str, purpose: bytes, data: bytes) -> bytes:
    return hmac.digest(key.encode(), purpose + b"\n" + data, hashlib.sha256)
