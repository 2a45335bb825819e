"""The credential inside a work item's secret."""

from __future__ import annotations

import base64
import json

from image.session.claim import Ended, Exit


def sessions_token(secret: str) -> str | None:
    """URL-safe base64, padded or not, of a JSON object with the token in it (docs/wire/anthropic.md#31-work-item). None
    where there is none that fits into a header."""
    try:
        payload = json.loads(base64.urlsafe_b64decode(secret + "=" * (-len(secret) % 4)))
    except (ValueError, TypeError):
        return None
    token = payload.get("sessions_token") if isinstance(payload, dict) else None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        return None
    return token or None


def token_of(secret: str) -> str:
    """Raises Ended(BAD_CLAIM) where the secret yields no token."""
    token = sessions_token(secret)
    if token is None:
        raise Ended(Exit.BAD_CLAIM, "the claim's secret carries no sessions token")
    return token
