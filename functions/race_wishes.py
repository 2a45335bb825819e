"""What the headers of a call for a race ask for (docs/races.md#races-that-nobody-waits-for)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import orjson
from starlette.requests import Request

from functions.requests import HttpError

LONGEST_KEY: Final = 255
LONGEST_WAIT: Final = 25.0  # seconds: below what a gateway gives (29)


@dataclass(frozen=True, slots=True)
class HeaderWishes:
    """What a call's headers ask for. `wait`: so many seconds before the answer is that the race still runs."""

    key: str | None = None
    respond_async: bool = False
    wait: float = 0.0


def wishes_of(request: Request) -> HeaderWishes:
    """Raises HttpError 400 for a key that is none."""
    respond_async, wait = False, 0.0
    for value in request.headers.getlist("prefer"):
        for preference in value.split(","):
            name, _, argument = (part.strip() for part in preference.partition(";")[0].partition("="))
            if name.lower() == "respond-async":
                respond_async = True
            elif name.lower() == "wait" and argument.isascii() and argument.isdigit():
                wait = min(float(argument[:6]), LONGEST_WAIT)
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return HeaderWishes(None, respond_async, wait)
    key = keys[0].strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if len(keys) > 1 or not 1 <= len(key) <= LONGEST_KEY or not (key.isascii() and key.isprintable()):
        text = f"Idempotency-Key: one of 1 to {LONGEST_KEY} printable ASCII characters"
        raise HttpError(400, "invalid_request", text)
    return HeaderWishes(key, respond_async, wait)


def digest_of(body: bytes) -> str:
    """The same for two bodies that say the same, in whatever order and spacing."""
    return hashlib.sha256(orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)).hexdigest()
