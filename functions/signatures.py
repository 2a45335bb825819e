"""Webhook signatures (Standard Webhooks; docs/wire/anthropic.md#92-signature), checked before anything heavy loads.

Two steps: `require_headers` refuses what lacks them, or is stale, before its body is read; `is_signed` compares. What
was signed once may be sent again by whoever recorded it, for as long as its time is not stale: `SeenWebhooks` knows.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from functions.requests import HttpError
from shared.errors import SettingsError
from shared.secret import Secret

log = logging.getLogger(__name__)

STALE_SECONDS: Final = 300
MOST_SEEN: Final = 10_000
_SAID_EVERY: Final = 60.0


def require_headers(headers: Mapping[str, str], now: float, stale: StaleWebhooks) -> None:
    """Returns for headers that a signed delivery of these minutes may have. `now` in seconds since 1970.

    Raises HttpError 401 and reads no body for it. A stale time is told to `stale`: it may be this machine's clock.
    """
    stamp = headers.get("webhook-timestamp", "")
    if not headers.get("webhook-id") or not _signatures(headers) or not _is_time(stamp):
        raise wrong_signature()
    age = now - int(stamp)
    if abs(age) > STALE_SECONDS:
        stale.refused(age)
        raise wrong_signature()


def wrong_signature() -> HttpError:
    return HttpError(401, "unauthorized", "the signature is missing, stale or wrong")


class StaleWebhooks:
    """Says in the log that deliveries were refused for their time: where this machine's clock is off, all of them are,
    and nobody else would say so. One line a minute: anybody can send such headers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at: float | None = None
        self._count = 0

    def refused(self, age: float) -> None:
        """`age` in seconds, negative for a time that is yet to come."""
        self._count += 1
        now = self._clock()
        if self._said_at is not None and now - self._said_at < _SAID_EVERY:
            return
        log.warning(
            "webhook.stale seconds_%s=%d refused=%d hint=compare this machine's clock with the sender's",
            "old" if age > 0 else "ahead",
            min(abs(age), 10**9),
            self._count,
        )
        self._said_at = now
        self._count = 0


class SeenWebhooks:
    """The ids of accepted deliveries, while the same could come again. Bounded: the oldest are forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = MOST_SEEN) -> None:
        self._clock = clock
        self._most = most
        self._seen: OrderedDict[bytes, float] = OrderedDict()  # digest of the id: when it may be forgotten

    def is_new(self, webhook_id: str) -> bool:
        """Whether this id is seen for the first time. Only for ids whose signature is right."""
        now = self._clock()
        while self._seen and next(iter(self._seen.values())) <= now:
            self._seen.popitem(last=False)
        key = _digest(webhook_id)
        if key in self._seen:
            return False
        self._seen[key] = now + 2 * STALE_SECONDS  # its time may be ahead by as much as it may be old
        if len(self._seen) > self._most:
            self._seen.popitem(last=False)
        return True

    def forget(self, webhook_id: str) -> None:
        """It could not be acted on, so the sender's next try counts."""
        self._seen.pop(_digest(webhook_id), None)


async def is_signed(body: bytes, headers: Mapping[str, str], keys: Sequence[Secret]) -> bool:
    """Whether a holder of one of the keys signed exactly this body within the last five minutes.

    There may be several keys, so that one can be rotated. Raises SettingsError for a key that is none, and
    SecretUnavailable for one that cannot be read; never anything for what an unauthenticated caller sends.
    """
    from standardwebhooks.webhooks import Webhook

    received = {
        "webhook-id": headers.get("webhook-id", ""),
        "webhook-timestamp": headers.get("webhook-timestamp", ""),
        "webhook-signature": " ".join(_signatures(headers)),
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


def _signatures(headers: Mapping[str, str]) -> Sequence[str]:
    # The library stumbles over a signature without a comma, even beside a valid one.
    return [part for part in headers.get("webhook-signature", "").split(" ") if part.startswith("v1,")]


def _is_time(stamp: str) -> bool:
    return stamp.isascii() and stamp.isdigit() and len(stamp) <= 15


def _digest(webhook_id: str) -> bytes:
    return hashlib.blake2b(webhook_id.encode(errors="surrogatepass"), digest_size=16).digest()


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
