"""What the service answers when it refuses: one exception type, one envelope
(docs/wire/anthropic.md#13-error-envelope)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.local.claude.knobs import Knobs

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    412: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class ClaudeApiError(Exception):
    """A refusal with its HTTP status. `hide_request_id` reproduces answers whose `request_id` is null."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_code: str | None = None,
        details: Mapping[str, Any] | None = None,
        hide_request_id: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.details = {**({"error_code": error_code} if error_code else {}), **(details or {})}
        self.hide_request_id = hide_request_id


class KeyRefused(ClaudeApiError):
    """A credential that is valid, and not for this. `knob` of infra/local/claude/knobs.py has the status."""

    def __init__(self, knob: str, message: str) -> None:
        super().__init__(Knobs.model_fields[knob].default, message)
        self.knob = knob


def envelope(
    status: int, message: str, request_id: str | None, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    error: dict[str, Any] = {"type": _TYPES.get(status, "api_error"), "message": message}
    if details:
        error["details"] = dict(details)
    return {"type": "error", "error": error, "request_id": request_id}


def invalid(message: str, *, error_code: str | None = None) -> ClaudeApiError:
    return ClaudeApiError(400, message, error_code=error_code)


def not_offline(what: str) -> ClaudeApiError:
    """For what the live service can do and this one cannot: said, never faked."""
    return ClaudeApiError(400, f"{what}: not supported offline yet", error_code="not_supported_offline")


def not_found(what: str) -> ClaudeApiError:
    return ClaudeApiError(404, f"{what} was not found")


def unauthenticated(message: str, *, hide_request_id: bool = False) -> ClaudeApiError:
    return ClaudeApiError(401, message, hide_request_id=hide_request_id)


def forbidden(message: str) -> ClaudeApiError:
    return ClaudeApiError(403, message)
