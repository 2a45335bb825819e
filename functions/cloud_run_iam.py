"""AUTH=platform: callers whom Cloud Run's front end has identified (IAM), in place of the operator's token.

What shows an identity is a Google ID token in a header, and what reaches us is that token without its signature: the
front end checks it, takes the signature off and writes SIGNATURE_REMOVED_BY_GOOGLE in its place. So there is nothing
left to verify here, and anybody could write such a header by hand. It is worth something only where the front end
lets nobody pass whom IAM does not let invoke this service, and neither a header nor an environment variable shows that:
K_SERVICE is set under plain Knative and on a public Cloud Run service, too.

So it is tried. The service's own address is asked without any identity; only if that is turned away with 401 or 403
(which no function of ours ever answers to `GET /`) is a header believed, for `TRUSTED_SECONDS`. A service that is
public, by mistake or by design, answers 405 itself, and an address that cannot be asked proves nothing: then nobody
gets in by identity. After that the caller must be one of AUTH_CALLERS. tests/functions/test_cloud_run_iam.py
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from functions.auth import require_token
from functions.requests import HttpError
from shared.settings import Settings

log = logging.getLogger(__name__)

TRUSTED_SECONDS: Final = 300.0
"""How long a service that turned an anonymous request away counts as closed: the delay with which opening it is
seen."""
_RETRY_SECONDS: Final = 10.0
_ASK_SECONDS: Final = 5.0
_TURNED_AWAY: Final = (401, 403)
_UNSIGNED: Final = b"SIGNATURE_REMOVED_BY_GOOGLE"


async def require_operator(request: Request, settings: Settings, ingress_probe: IngressProbe) -> None:
    """Returns for the operator: whoever the platform vouches for, where AUTH says so, or shows FUNCTIONS_TOKEN.

    Raises like functions.auth.require_token; HttpError 503 where an identity is shown that proves nothing.
    """
    if await is_vouched_for(request, settings, ingress_probe):
        return
    if settings.auth == "platform" and settings.functions_token is None:
        raise HttpError(401, "unauthorized", "no identity that may call this", headers={"www-authenticate": "Bearer"})
    await require_token(request, settings)


async def is_vouched_for(request: Request, settings: Settings, ingress_probe: IngressProbe) -> bool:
    """Whether the platform says that this is one of AUTH_CALLERS. Raises HttpError 503 where its word is no proof."""
    if settings.auth != "platform" or _caller(request) not in settings.auth_callers:
        return False
    if not await ingress_probe.is_closed():
        raise HttpError(
            503,
            "not_configured",
            "AUTH=platform: it is not shown that this service turns away callers without an identity",
        )
    return True


def _caller(request: Request) -> str | None:
    """The e-mail address in the token that the front end has checked; None where there is no such token.

    With X-Serverless-Authorization that one alone is checked, and Authorization comes through as it was sent.
    """
    for header in (b"x-serverless-authorization", b"authorization"):
        values = [value for name, value in request.scope["headers"] if name.lower() == header]
        if values:
            return _email(values[0]) if len(values) == 1 else None
    return None


def _email(header: bytes) -> str | None:
    scheme, _, token = header.partition(b" ")
    parts = token.strip(b" \t").split(b".")
    if scheme.lower() != b"bearer" or len(parts) != 3 or parts[2] != _UNSIGNED:
        return None
    import orjson

    try:
        claims = orjson.loads(base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    except ValueError:
        return None
    if not isinstance(claims, dict) or claims.get("email_verified") is not True:
        return None
    email = claims.get("email")
    return email if isinstance(email, str) else None


class IngressProbe:
    """Whether this service's own address turns away whoever shows no identity; asked at most every so often."""

    def __init__(
        self,
        url: str,
        ask: Callable[[str], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._ask = ask or status_without_identity
        self._clock = clock
        self._looked_at: tuple[float, bool] | None = None
        self._look = asyncio.Lock()

    async def is_closed(self) -> bool:
        async with self._look:
            now = self._clock()
            if self._looked_at is not None:
                at, closed = self._looked_at
                if now - at < (TRUSTED_SECONDS if closed else _RETRY_SECONDS):
                    return closed
            closed = await self._turns_away()
            self._looked_at = (now, closed)
            return closed

    async def _turns_away(self) -> bool:
        try:
            status = await asyncio.to_thread(self._ask, self._url)
        except OSError as error:
            log.error("front_door.not_reached error=%s", type(error).__name__)
            return False
        if status not in _TURNED_AWAY:
            log.error("front_door.open status=%d", status)
        return status in _TURNED_AWAY


def status_without_identity(url: str) -> int:
    """What `GET /` is answered there. Blocking, seconds. Follows no redirect, uses no proxy. Raises OSError."""
    import http.client  # not needed to refuse an unauthenticated caller

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=_ASK_SECONDS)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    except http.client.HTTPException as error:
        raise ConnectionError(type(error).__name__) from None
    finally:
        connection.close()
