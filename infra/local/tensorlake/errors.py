"""Answers that are not successes, in the service's envelope `{"error", "code"}`
(docs/wire/tensorlake.md#33-exceptions).

The four codes that make the SDK retry for 30 s (docs/wire/tensorlake.md#32-retry-matrix) are never used here: only a
fault rule sends them.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse


class TensorlakeApiError(Exception):
    """One refusal: HTTP status, top-level code, text, and further top-level fields."""

    def __init__(self, status: int, code: str, text: str, **fields: Any) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.fields = fields

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status)

    def body(self) -> dict[str, Any]:
        return {"error": str(self), "code": self.code, **self.fields}


def bad_request(text: str) -> TensorlakeApiError:
    return TensorlakeApiError(400, "BAD_REQUEST", text)


def not_found(what: str) -> TensorlakeApiError:
    return TensorlakeApiError(404, "NOT_FOUND", f"{what} was not found")


def conflict(text: str) -> TensorlakeApiError:
    return TensorlakeApiError(409, "CONFLICT", text)


def not_supported(what: str, advice: str = "") -> TensorlakeApiError:
    """What this platform cannot do, it refuses: it never pretends."""
    text = f"{what}: not supported offline"
    return TensorlakeApiError(501, "NOT_SUPPORTED_OFFLINE", f"{text}; {advice}" if advice else text)
