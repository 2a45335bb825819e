"""Records that the service keeps for their owner and does nothing with: vaults, user profiles, files, deployments."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from infra.local.claude.clock import Clock, stamp, stamp_or_none
from infra.local.claude.errors import not_found
from infra.local.claude.ids import new_id


@dataclass
class Kept:
    """`fields` is the record's own part of the wire shape."""

    id: str
    sequence: int
    kind: str
    fields: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": self.kind,
            **self.fields,
            "created_at": stamp(self.created_at),
            "updated_at": stamp(self.updated_at),
            "archived_at": stamp_or_none(self.archived_at),
        }


class Shelf:
    """The records of one kind, in the order of their creation."""

    def __init__(self, clock: Clock, prefix: str, kind: str) -> None:
        self._clock = clock
        self._prefix = prefix
        self._kind = kind
        self._rows: dict[str, Kept] = {}
        self._sequence = itertools.count(1)

    def add(self, fields: Mapping[str, Any]) -> Kept:
        now = self._clock.now()
        row = Kept(new_id(self._prefix), next(self._sequence), self._kind, dict(fields), now, now)
        self._rows[row.id] = row
        return row

    def change(self, row: Kept, fields: Mapping[str, Any]) -> None:
        row.fields.update(fields)
        row.updated_at = self._clock.now()

    def archive(self, row: Kept) -> None:
        row.archived_at = row.archived_at or self._clock.now()

    def get(self, row_id: str) -> Kept:
        if row_id not in self._rows:
            raise not_found(f"{self._kind} {row_id}")
        return self._rows[row_id]

    def remove(self, row: Kept) -> None:
        self._rows.pop(row.id, None)

    def all(self, *, include_archived: bool = True) -> list[Kept]:
        return [row for row in self._rows.values() if include_archived or row.archived_at is None]
