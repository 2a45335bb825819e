"""Capability tokens: what an agent shows to fork_best_of_n, good for its own session and for nothing else (I6).

A token says what it is good for, in the open, and proves that we said so: `hc2.<claims>.<signature>`, both parts
URL-safe base64 without padding, signed by itsdangerous with HMAC-SHA256. The key comes from CAPABILITY_KEY, or where
that is not set from the operator's FUNCTIONS_TOKEN (HKDF, RFC 5869), so that every copy of the functions has it and
nobody learns the secret from a capability. Whoever holds one can try guesses at the secret off line, as many as a
machine can make: so neither may be short (shared/secret.py, SHORTEST_SECRET). A token stands for its bearer alone:
whoever accepts one looks up the work item that it names, too (functions/agent_auth.py).

itsdangerous and orjson are imported for the first token: a cold start that has to refuse an unauthenticated caller
needs neither.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from shared.errors import HandsError, SettingsError
from shared.secret import strong

if TYPE_CHECKING:
    from itsdangerous import Signer

    from shared.secret import Secret

PREFIX: Final = b"hc2."
FORK: Final = "fork_best_of_n"
RUN_RACE: Final = "run_race"
"""What our own hand-over of a race is good for (functions/handed_races.py); no agent gets such a token."""
LONGEST_TOKEN: Final = 2048  # bytes

_SALT: Final = b"serverless hands"
_INFO: Final = b"capability tokens 1"


class NotGenuine(HandsError):
    """A token that we did not issue, or issued for a time that is over. The text quotes nothing of it."""


class Capability(NamedTuple):
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


async def signing_keys(own: Secret | None, functions_token: Secret | None) -> Sequence[bytes]:
    """The keys of CAPABILITY_KEY, else the one of FUNCTIONS_TOKEN. The first signs, all of them are accepted.

    Raises SettingsError where neither is set or one is too short, and SecretUnavailable.
    """
    if own is not None:
        texts = (await own.areveal()).replace(",", " ").split() or [""]
        return [signing_key(strong("CAPABILITY_KEY", text)) for text in texts]
    if functions_token is not None:
        return [signing_key(strong("FUNCTIONS_TOKEN", await functions_token.areveal()))]
    raise SettingsError("neither CAPABILITY_KEY nor FUNCTIONS_TOKEN is set, so agents get no tokens")


def signing_key(secret: str) -> bytes:
    """32 bytes: HKDF-SHA256, extract and one block of expand."""
    extracted = hmac.digest(_SALT, secret.encode(errors="surrogateescape"), hashlib.sha256)
    return hmac.digest(extracted, _INFO + b"\x01", hashlib.sha256)


def issue(capability: Capability, key: bytes) -> str:
    import orjson

    claims = {
        "f": capability.function,
        "e": capability.environment_id,
        "s": capability.session_id,
        "w": capability.work_id,
        "n": capability.branches,
        "t": capability.seconds,
        "x": capability.expires_at,
    }
    payload = base64.urlsafe_b64encode(orjson.dumps(claims)).rstrip(b"=")
    return _signer(key).sign(PREFIX + payload).decode("ascii")


def read(token: bytes, keys: Sequence[bytes], now: float) -> Capability:
    """The capability that a genuine token carries. `now` is in seconds since 1970. Raises NotGenuine.

    Nothing of a token is interpreted before its signature has been found right, by a comparison that takes the same
    time for every wrong one.
    """
    signed, dot, signature = token.rpartition(b".")
    if len(token) > LONGEST_TOKEN or not dot or not signed.startswith(PREFIX):
        raise NotGenuine("the token is not the right one")
    # The library would decode the signature and so take several spellings of one for it.
    if not any(hmac.compare_digest(signature, _signer(key).get_signature(signed)) for key in keys):
        raise NotGenuine("the token is not the right one")
    import orjson

    text = signed.removeprefix(PREFIX)
    claims: Any = orjson.loads(base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4)))
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


def _signer(key: bytes) -> Signer:
    from itsdangerous import Signer

    return Signer(key, sep=b".", key_derivation="none", digest_method=hashlib.sha256)  # the key is derived already
