"""Who may call poll_tick and fork_best_of_n: whoever shows the operator's token, and fork_best_of_n also an agent that
shows the capability of its session (docs/security.md#capability-tokens).

Without FUNCTIONS_TOKEN nobody may (503, never open). The comparison takes the same time for every wrong token.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import time
from collections.abc import Sequence
from typing import Final

from starlette.requests import Request

from functions.requests import HttpError
from shared import capability
from shared.capability import FORK, Capability
from shared.errors import SecretUnavailable, SettingsError
from shared.secret import strong
from shared.settings import Settings

_CHALLENGE: Final = {"www-authenticate": "Bearer"}


async def require_token(request: Request, settings: Settings) -> None:
    """Returns if the request shows `Authorization: Bearer <FUNCTIONS_TOKEN>`.

    Raises HttpError 401 for a missing or wrong token, 403 for an agent's, SettingsError or SecretUnavailable (answered
    with 503) where there is nothing to compare with.
    """
    if await caller_of(request, settings) is not None:
        raise _forbidden()


async def refuse_weak_secrets(settings: Settings) -> None:
    """Raises SettingsError where an agent could guess what its own token is signed with. A secret that cannot be read
    now is looked at when it is used."""
    with contextlib.suppress(SecretUnavailable):
        await capability.signing_keys(settings.capability_key, settings.functions_token)
    with contextlib.suppress(SecretUnavailable):
        if settings.functions_token is not None:
            strong("FUNCTIONS_TOKEN", await settings.functions_token.areveal())


async def caller_of(request: Request, settings: Settings, *functions: str) -> Capability | None:
    """Who calls: None for the operator, who may do everything, or the bearer of a capability for one of `functions`.

    Raises like `require_token`, and HttpError 403 for the capability of another function. That the capability's work
    item still lives is not known yet (functions/agent_auth.py).
    """
    if settings.functions_token is None and settings.capability_key is None:
        raise SettingsError("FUNCTIONS_TOKEN is not set, so nobody may call this: set it to a long random text")
    # Header bytes as they came: decoding them may fail, and a token is compared as bytes anyway.
    values = [value for name, value in request.scope["headers"] if name.lower() == b"authorization"]
    if len(values) != 1:
        raise _unauthorized("send the header Authorization: Bearer <token> once")
    scheme, _, rest = values[0].partition(b" ")
    shown = rest.strip(b" \t")
    if settings.functions_token is not None:
        token = await settings.functions_token.areveal()
        if settings.agent_fork:
            strong("FUNCTIONS_TOKEN", token)
        if scheme.lower() == b"bearer" and _equal(shown, token.encode(errors="surrogateescape")):
            return None
    if scheme.lower() != b"bearer" or not shown.startswith(capability.PREFIX):
        raise _unauthorized("the token is not the right one")
    try:
        keys = await _keys(settings)
        caller = capability.read(shown, keys, time.time())
    except capability.NotGenuine as error:
        raise _unauthorized(str(error)) from None
    if caller.function not in functions:
        raise _forbidden()
    if caller.function == FORK and not settings.agent_fork:
        raise HttpError(403, "forbidden", "agents may not call this here (AGENT_FORK is off)")
    return caller


async def _keys(settings: Settings) -> Sequence[bytes]:
    try:
        return await capability.signing_keys(settings.capability_key, settings.functions_token)
    except SettingsError:
        if settings.agent_fork:
            raise
        return ()  # nothing was ever signed with such a secret


def _unauthorized(message: str) -> HttpError:
    return HttpError(401, "unauthorized", message, headers=_CHALLENGE)


def _forbidden() -> HttpError:
    return HttpError(403, "forbidden", "this token is for another function")


def _equal(shown: bytes, token: bytes) -> bool:
    # Digests have one length, so not even the token's length can be measured.
    return hmac.compare_digest(hashlib.sha256(shown).digest(), hashlib.sha256(token).digest())
