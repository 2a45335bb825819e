"""What every handler needs of HTTP: a bounded body, a body as a model, and one shape for errors.

An error's body is `{"error": {"type": ..., "message": ..., "field"?: ...}}`. Nothing of the request's values is
quoted back: a body may hold what must not reach a log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from shared.errors import HandsError, SecretUnavailable, SettingsError

if TYPE_CHECKING:  # pydantic takes a tenth of a second to import, and a webhook has no need of it
    from pydantic import BaseModel, ValidationError

log = logging.getLogger(__name__)

BODY_LIMIT: Final = 1024 * 1024  # bytes
BODY_SECONDS: Final = 30.0
UNPROVEN_LIMIT: Final = 64 * 1024  # bytes; a webhook's body has some hundred, and who signed it shows only at its end
UNPROVEN_SECONDS: Final = 10.0
MOST_UNPROVEN: Final = 128  # bodies at once; the sender of webhooks needs a place for milliseconds
MOST_BYTES: Final = 32 * 1024 * 1024  # of all bodies that are being read, a sixteenth of a small container

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

    def response(self) -> Response:
        error = {"type": self.kind, "message": self.message}
        if self.field is not None:
            error["field"] = self.field
        # The standard library's JSON is loaded anyway: a refusal at a cold start must not pay for another.
        return JSONResponse({"error": error}, self.status, self.headers)


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    import orjson  # not needed to refuse

    return Response(orjson.dumps(content), status, headers, "application/json")


def require_method(request: Request, *allowed: str) -> None:
    """Raises HttpError 405 with an `Allow` header for any other method."""
    if request.method not in allowed:
        names = ", ".join(allowed)
        raise HttpError(405, "method_not_allowed", f"this function answers {names} only", headers={"allow": names})


class _BodyReading:
    """One body on its way. `scope` ends its reading; `size` in bytes."""

    def __init__(self, scope: asyncio.Timeout) -> None:
        self.scope = scope
        self.size = 0
        self.evicted = False


class BodiesInFlight:
    """Reads the bodies of one process: at most MOST_BYTES of them at once, whoever sends them.

    `proven` says that the headers have shown who calls. Of unproven callers at most MOST_UNPROVEN bodies are read at
    once; one more, or bytes that do not fit, take the place of the one that is being read longest. So whoever sends
    slowly makes room for whoever sends at once, and no number of slow senders keeps a webhook out.
    """

    def __init__(self) -> None:
        self._unproven: OrderedDict[_BodyReading, None] = OrderedDict()
        self._bytes = 0

    async def read(self, request: Request, *, proven: bool) -> bytes:
        """The raw body.

        Raises HttpError: 413 for one that is larger than BODY_LIMIT (UNPROVEN_LIMIT), announced or actual; 408 for one
        that is not there within BODY_SECONDS (UNPROVEN_SECONDS); 400 for one cut short; 503 for one that made room.
        """
        limit, seconds = (BODY_LIMIT, BODY_SECONDS) if proven else (UNPROVEN_LIMIT, UNPROVEN_SECONDS)
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
            raise _too_large(limit)
        body = bytearray()
        reading: _BodyReading | None = None
        try:
            async with asyncio.timeout(seconds) as scope:
                reading = self._begun(scope, proven)
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        raise _too_large(limit)
                    self._grown(reading, len(part))
        except TimeoutError:
            if reading is not None and reading.evicted:
                raise _overloaded() from None
            raise HttpError(408, "timeout", f"the body did not arrive within {seconds:g} seconds") from None
        except ClientDisconnect:
            raise HttpError(400, "invalid_request", "the connection ended before the body did") from None
        finally:
            if reading is not None:
                self._released(reading)
        return bytes(body)

    def _begun(self, scope: asyncio.Timeout, proven: bool) -> _BodyReading:
        reading = _BodyReading(scope)
        if not proven:
            self._unproven[reading] = None
            if len(self._unproven) > MOST_UNPROVEN:
                self._evict()
        return reading

    def _grown(self, reading: _BodyReading, count: int) -> None:
        if reading.evicted:
            return
        reading.size += count
        self._bytes += count
        while self._bytes > MOST_BYTES:
            if not self._unproven:
                raise _overloaded()
            self._evict()

    def _evict(self) -> None:
        reading, _ = self._unproven.popitem(last=False)
        reading.evicted = True
        self._released(reading)
        reading.scope.reschedule(asyncio.get_running_loop().time())

    def _released(self, reading: _BodyReading) -> None:
        self._unproven.pop(reading, None)
        self._bytes -= reading.size
        reading.size = 0


def _overloaded() -> HttpError:
    return HttpError(503, "overloaded", "too many bodies are being read: send it again", headers={"retry-after": "1"})


def not_configured(error: SettingsError | SecretUnavailable) -> Response:
    """503 that says which setting is missing."""
    return configuration_error(error).response()


def configuration_error(error: SettingsError | SecretUnavailable) -> HttpError:
    """The same as an error to raise. Where a secret lives is for the log, not for the caller."""
    if isinstance(error, SecretUnavailable):
        log.error("secret.unavailable %s", error)
        return HttpError(503, "not_configured", f"the secret of {error.setting} cannot be read now")
    return HttpError(503, "not_configured", str(error))


def _too_large(limit: int) -> HttpError:
    return HttpError(413, "too_large", f"the body may have at most {limit} bytes")


def require_object(body: bytes) -> None:
    """Raises HttpError 400 for what is no JSON object, as far as its first character tells: such a body is worth no
    parser and no model."""
    if not body.lstrip(b" \t\r\n").startswith(b"{"):
        raise HttpError(400, "invalid_request", "the body is not a JSON object")


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
