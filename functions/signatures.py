"""Webhook signatures (Standard Webhooks; docs/wire/anthropic.md#92-signature), checked before anything
heavy is imported."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from shared.errors import SettingsError
from shared.secret import Secret


async def is_signed(body: bytes, headers: Mapping[str, str], keys: Sequence[Secret]) -> bool:
    """Whether a holder of one of the keys signed exactly this body within the last five minutes.

    There may be several keys, so that one can be rotated. Raises SettingsError for a key that is none, and
    SecretUnavailable for one that cannot be read; never anything for what a stranger sends.
    """
    from standardwebhooks.webhooks import Webhook

    # The library stumbles over a signature without a comma, even beside a valid one.
    signatures = [part for part in headers.get("webhook-signature", "").split(" ") if part.startswith("v1,")]
    received = {
        "webhook-id": headers.get("webhook-id", ""),
        "webhook-timestamp": headers.get("webhook-timestamp", ""),
        "webhook-signature": " ".join(signatures),
    }
    # One place may hold several keys, too, while one is rotated.
    for secret in keys:
        for key in (await secret.areveal()).replace(",", " ").split():
            webhook = Webhook(_key_bytes(key))
            try:
                webhook.verify(body, received, json_parse=False)
            # Besides its own error it lets ValueErrors out (docs/wire/runtimes.md#0-findings).
            except Exception:  # noqa: S112
                continue
            return True
    return False


def _key_bytes(key: str) -> bytes:
    """The library would skip what is not base64 and sign with the rest, so a mistyped key is found here."""
    prefix, _, encoded = key.partition("_")
    try:
        decoded = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        decoded = b""
    if prefix != "whsec" or not decoded:
        raise SettingsError("ANTHROPIC_WEBHOOK_SIGNING_KEY must be whsec_ and base64, as the Console shows it")
    return decoded
