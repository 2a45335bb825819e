"""Rows of the queue and of sessions: from the SDK's models, and from plain JSON where no SDK is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from shared.ports import Doubtful, ItemState, ListedItem, SessionRecord, SessionStatus

if TYPE_CHECKING:
    from anthropic.types.beta import BetaManagedAgentsSession
    from anthropic.types.beta.environments import BetaSelfHostedWork


class JsonRow(dict[str, Any]):
    """A JSON object, read by attributes as the SDK's models are: None where a field is missing."""

    def __getattr__(self, name: str) -> Any:
        value = self.get(name)
        return JsonRow(value) if isinstance(value, dict) else value


def listed_item(item: BetaSelfHostedWork | JsonRow) -> ListedItem | None:
    try:
        state = ItemState(item.state) if item.state in set(ItemState) else ItemState.UNKNOWN
        created_at = _moment(item.created_at)
        if created_at is None or not item.id or not item.data.id:
            return None
        return ListedItem(
            item.id,
            item.data.type,
            item.data.id,
            state,
            created_at,
            _moment(item.acknowledged_at),
            _moment(item.latest_heartbeat_at),
            _moment(item.stopped_at),
            _moment(item.stop_requested_at),
        )
    except (AttributeError, TypeError, ValueError):
        return None


def reach_back(rows: Sequence[ListedItem], moment: datetime) -> bool:
    times = [row.created_at for row in rows]
    return bool(times) and times[-1] < moment and all(later >= earlier for later, earlier in pairwise(times))


def session_record(session: BetaManagedAgentsSession | JsonRow) -> SessionRecord | Doubtful:
    try:
        status = SessionStatus(session.status) if session.status in set(SessionStatus) else SessionStatus.UNKNOWN
        if not session.id:
            return Doubtful("the answer was not a session")
        return SessionRecord(
            session.id,
            status,
            session.archived_at is not None,
            _moment(session.updated_at),
            {str(key): str(value) for key, value in (session.metadata or {}).items()},
        )
    except (AttributeError, TypeError, ValueError):
        return Doubtful("the answer was not a session")


def _moment(value: object) -> datetime | None:
    """The SDK types some times as texts and some as datetimes."""
    if value is None or value == "":
        return None
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment
