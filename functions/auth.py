"""Who may call poll_tick and fork_best_of_n: whoever shows the operator's token (design: security).

Without FUNCTIONS_TOKEN nobody may (503, never open). The comparison takes the same time for every wrong token.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from starlette.requests import Request

from functions.http import HttpError
from shared.errors import SettingsError
from shared.settings import Settings

_CHALLENGE: Final = {"www-authenticate": "Bearer"}


def require_token(request: Request, settings: Settings) -> None:
    """Returns if the request shows `Authorization: Bearer <FUNCTIONS_TOKEN>`.

    Raises HttpError 401 for a missing or wrong token, SettingsError or SecretUnavailable (answered with 503) where
    there is nothing to compare with.
    """
    if settings.functions_token is None:
        raise SettingsError("FUNCTIONS_TOKEN is not set, so nobody may call this: set it to a long random text")
    token = settings.functions_token.reveal()
    # Header bytes as they came: decoding them may fail, and a token is compared as bytes anyway.
    values = [value for name, value in request.scope["headers"] if name.lower() == b"authorization"]
    if len(values) != 1:
        raise HttpError(401, "unauthorized", "send the header Authorization: Bearer <token> once", headers=_CHALLENGE)
    scheme, _, shown = values[0].partition(b" ")
    if scheme.lower() != b"bearer" or not _equal(shown.strip(b" \t"), token.encode(errors="surrogateescape")):
        raise HttpError(401, "unauthorized", "the token is not the right one", headers=_CHALLENGE)


def _equal(shown: bytes, token: bytes) -> bool:
    # Digests have one length, so not even the token's length can be measured.
    return hmac.compare_digest(hashlib.sha256(shown).digest(), hashlib.sha256(token).digest())
