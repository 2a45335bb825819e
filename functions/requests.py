"""What every handler needs of HTTP: a bounded body and one shape for errors.

An error's body is `{"error": {"type": ..., "message": ..., "field"?: ...}}`. Nothing of the request's values is
quoted back: a body may hold what must not reach a log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from shared.errors import HandsError, SecretUnavailable, SettingsError

log = logging.getLogger(__name__)

BODY_LIMIT: Final = 1024 * 1024  # bytes, design section 9
BODY_SECONDS: Final = 30.0


class HttpError(HandsError):
    """A request that gets no other answer than this one. `field` names the part of the body that is wrong."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.field = field
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        error = {"type": self.kind, "message": self.message}
        if self.field is not None:
            error["field"] = self.field
        return JSONResponse({"error": error}, status_code=self.status, headers=self.headers)


def require_method(request: Request, *allowed: str) -> None:
    """Raises HttpError 405 with an `Allow` header for any other method."""
    if request.method not in allowed:
        names = ", ".join(allowed)
        raise HttpError(405, "method_not_allowed", f"this function answers {names} only", headers={"allow": names})


async def read_body(request: Request, limit: int = BODY_LIMIT, seconds: float = BODY_SECONDS) -> bytes:
    """The raw body, at most `limit` bytes, arrived within `seconds`.

    Raises HttpError: 413 for a larger body (announced or actual), 408 for a slow one, 400 for one cut short.
    """
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise HttpError(408, "timeout", f"the body did not arrive within {seconds:g} seconds") from None
    except ClientDisconnect:
        raise HttpError(400, "invalid_request", "the connection ended before the body did") from None
    return bytes(body)


def not_configured(error: SettingsError | SecretUnavailable) -> JSONResponse:
    """503 that says which setting is missing."""
    return configuration_error(error).response()


def configuration_error(error: SettingsError | SecretUnavailable) -> HttpError:
    """The same as an error to raise. Where a secret lives is for the log, not for a stranger."""
    if isinstance(error, SecretUnavailable):
        log.error("secret.unavailable %s", error)
        return HttpError(503, "not_configured", f"the secret of {error.setting} cannot be read now")
    return HttpError(503, "not_configured", str(error))


def _too_large(limit: int) -> HttpError:
    return HttpError(413, "too_large", f"the body may have at most {limit} bytes")
