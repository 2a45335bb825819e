"""What every handler needs of HTTP: a bounded body, a body as a model, and one shape for errors.

An error's body is `{"error": {"type": ..., "message": ..., "field"?: ...}}`. Nothing of the request's values is
quoted back: a body may hold what must not reach a log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from shared.errors import HandsError, SecretUnavailable, SettingsError

if TYPE_CHECKING:  # pydantic takes a tenth of a second to import, and a webhook has no need of it
    from pydantic import BaseModel, ValidationError

log = logging.getLogger(__name__)

BODY_LIMIT: Final = 1024 * 1024  # bytes, docs/security.md#webhook
BODY_SECONDS: Final = 30.0

_MODEL = TypeVar("_MODEL", bound="BaseModel")
_LONGEST_MESSAGE: Final = 300
_LONGEST_FIELD: Final = 200


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


def read_model(model: type[_MODEL], body: bytes) -> _MODEL:
    """The body as this model. Raises HttpError 400 that names the first field that is wrong."""
    from pydantic import ValidationError

    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> HttpError:
    # Neither the inputs nor the contexts: the text of a value stays out of answers and logs.
    details = error.errors(include_url=False, include_context=True, include_input=False)
    first = details[0]
    if first["type"] == "json_invalid":
        return HttpError(400, "invalid_request", "the body is not JSON")
    field = dotted(first["loc"])
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    text = _text(first["type"], first["msg"], first.get("ctx", {}))
    message = f"{field}: {text}{more}" if field else f"{text}{more}"
    return HttpError(400, "invalid_request", message, field=field or None)


def _text(kind: str, message: str, context: dict[str, Any]) -> str:
    if kind == "union_tag_invalid":  # the one message of pydantic's that quotes what was sent
        message = f"{context['discriminator'].strip(chr(39))} must be one of {context['expected_tags']}"
    return message.removeprefix("Value error, ")[:_LONGEST_MESSAGE]


def dotted(location: Sequence[int | str]) -> str:
    """A pydantic location as a person would write it: `branches.0.name`."""
    return ".".join(str(part) for part in location if part != "[key]")[:_LONGEST_FIELD]
