"""What a webhook of Anthropic's says (docs/wire/anthropic.md#91-delivery). Imported once its signature is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from functions.requests import HttpError
from shared import names

_STARTED: Final = "session.status_run_started"
_OVER: Final = frozenset({"session.status_terminated", "session.archived", "session.deleted"})
_LONGEST_KIND: Final = 100  # characters of it that an answer repeats


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A session has work."""


@dataclass(frozen=True, slots=True)
class SessionOver:
    """A session was terminated, archived or deleted."""

    session_id: str


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """Nothing to do. `kind`: its `data.type`, cut."""

    kind: str


def read_event(body: bytes) -> RunStarted | SessionOver | OtherEvent:
    """Raises HttpError 400 for what is no event."""
    try:
        event = orjson.loads(body)
    except ValueError:
        raise HttpError(400, "invalid_request", "the body is not JSON") from None
    data = event.get("data") if isinstance(event, dict) else None
    kind = data.get("type") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(kind, str):
        raise HttpError(400, "invalid_request", "data.type: a text is needed", field="data.type")
    session_id = data.get("id")
    if kind == _STARTED:
        return RunStarted()
    if kind in _OVER and isinstance(session_id, str) and names.is_session_id(session_id):
        return SessionOver(session_id)
    return OtherEvent(kind[:_LONGEST_KIND])
