"""What drains and ticks report. Complete, small, free of secrets: it is an HTTP answer and a log line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from enum import StrEnum

from shared.reconcile.report import ReconcileReport


class ItemEnd(StrEnum):
    """What became of a claimed work item."""

    HANDED_OVER = "handed_over"  # a worker said ready, and the item is acked
    DISMISSED = "dismissed"  # not a session: acked and stopped
    FAILED = "failed"  # not acked: it is offered again after R
    UNFINISHED = "unfinished"  # time ran out; not acked
    GONE = "gone"  # the item is no more
    POISONED = "poisoned"  # given up after bounded attempts: stopped


@dataclass(frozen=True, slots=True)
class ItemReport:
    work_id: str
    session_id: str
    end: ItemEnd
    seconds: float
    sandbox: str | None = None
    reason: str = ""


class DrainEnd(StrEnum):
    """Why a drain claimed no further."""

    EMPTY = "empty"
    DEADLINE = "deadline"
    LIMIT = "limit"
    UNAVAILABLE = "unavailable"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class DrainReport:
    environment_id: str
    end: DrainEnd
    seconds: float
    polls: int
    items: Sequence[ItemReport] = ()
    reason: str = ""

    @property
    def counts(self) -> Mapping[str, int]:
        return Counter(item.end.value for item in self.items)


@dataclass(frozen=True, slots=True)
class TickReport:
    """One tick over all environments: first the drains, then the repairs."""

    drains: Sequence[DrainReport]
    reconciled: Sequence[ReconcileReport]
    seconds: float


def to_json(report: DrainReport | TickReport | Mapping[str, object]) -> bytes:
    """Compact JSON of a report, or of a mapping that holds some."""
    return json.dumps(report, default=_plain, separators=(",", ":")).encode()


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"a report holds a {type(value).__name__}")
