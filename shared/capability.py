"""Capability tokens: what an agent shows to fork_best_of_n, good for its own session and for nothing else
(docs/architecture.md#i6).

A token says what it is good for, in the open, and proves that we said so: `hc1.<claims>.<mac>`, both parts URL-safe
base64 without padding, the mac an HMAC-SHA256 over all that stands before it. The key is derived from the operator's
FUNCTIONS_TOKEN (HKDF, RFC 5869), so that every copy of the functions has it and nobody learns that token from a
capability. A token stands for its bearer alone: whoever accepts one looks up the work item that it names, too
(functions/agent_auth.py). Standard library only, for a cold start that has to refuse a stranger.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any, Final

from shared.errors import HandsError

PREFIX: Final = b"hc1."
FORK: Final = "fork_best_of_n"
LONGEST_TOKEN: Final = 2048  # bytes

_SALT: Final = b"serverless hands"
_INFO: Final = b"capability tokens 1"


class NotGenuine(HandsError):
    """A token that we did not issue, or issued for a time that is over. The text quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Capability:
    """What a token is good for: calls of one function, for one session, as long as one work item is served.

    `branches` and `seconds` bound each race. `expires_at` is in seconds since 1970.
    """

    function: str
    environment_id: str
    session_id: str
    work_id: str
    branches: int
    seconds: float
    expires_at: int


def signing_key(functions_token: str) -> bytes:
    """32 bytes, derived from the operator's token: HKDF-SHA256, extract and one block of expand."""
    extracted = hmac.digest(_SALT, functions_token.encode(errors="surrogateescape"), hashlib.sha256)
    return hmac.digest(extracted, _INFO + b"\x01", hashlib.sha256)


def issue(capability: Capability, key: bytes) -> str:
    claims = {
        "f": capability.function,
        "e": capability.environment_id,
        "s": capability.session_id,
        "w": capability.work_id,
        "n": capability.branches,
        "t": capability.seconds,
        "x": capability.expires_at,
    }
    signed = PREFIX + _base64(json.dumps(claims, separators=(",", ":")).encode())
    return (signed + b"." + _mac(signed, key)).decode("ascii")


def read(token: bytes, key: bytes, now: float) -> Capability:
    """The capability that a genuine token carries. `now` is in seconds since 1970. Raises NotGenuine.

    Nothing of a token is interpreted before its mac has been found right, by a comparison that takes the same time
    for every wrong one.
    """
    signed, dot, mac = token.rpartition(b".")
    if len(token) > LONGEST_TOKEN or not dot or not signed.startswith(PREFIX):
        raise NotGenuine("the token is not the right one")
    if not hmac.compare_digest(mac, _mac(signed, key)):
        raise NotGenuine("the token is not the right one")
    text = signed.removeprefix(PREFIX)
    claims: Any = json.loads(base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4)))
    if claims["x"] <= now:
        raise NotGenuine("the token has expired")
    return Capability(
        function=claims["f"],
        environment_id=claims["e"],
        session_id=claims["s"],
        work_id=claims["w"],
        branches=claims["n"],
        seconds=claims["t"],
        expires_at=claims["x"],
    )


def _mac(signed: bytes, key: bytes) -> bytes:
    return _base64(hmac.digest(key, signed, hashlib.sha256))


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
