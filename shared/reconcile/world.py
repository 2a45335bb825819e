"""What one tick has seen of the world, and the questions that may be asked of it.

What was not seen is unknown, never gone (docs/architecture.md#i5). So every question about absence has three answers,
and `None` stands for "not known": a listing failed, or was too long for its page budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from shared import names
from shared.ports import ItemState, ListedItem, Listing, SandboxRecord, SandboxStatus

LIVE: Final = frozenset({ItemState.QUEUED, ItemState.STARTING, ItemState.ACTIVE, ItemState.STOPPING, ItemState.UNKNOWN})
OVER: Final = frozenset({SandboxStatus.TERMINATED})
_HORIZON: Final = timedelta(days=3)  # no live item is older: lifetimes and poison ages are hours


@dataclass(frozen=True, slots=True)
class Items:
    """The work items of an environment by the sandbox name of their session; `others` are of no session."""

    live: Mapping[str, ListedItem]
    latest: Mapping[str, ListedItem]
    all_live_seen: bool
    count: int
    others: Sequence[ListedItem] = ()

    @classmethod
    def of(cls, listing: Listing[ListedItem], prefix: str, environment_id: str, now: datetime) -> Items:
        live: dict[str, ListedItem] = {}
        latest: dict[str, ListedItem] = {}
        others: list[ListedItem] = []
        for item in listing.rows:
            if item.kind != "session":
                others.append(item)
                continue
            try:
                name = names.sandbox_name(prefix, environment_id, item.session_id)
            except names.BadName:
                continue
            if item.state in LIVE:
                live[name] = item
            if name not in latest or item.created_at >= latest[name].created_at:
                latest[name] = item
        return cls(live, latest, _all_live_seen(listing, now), len(listing.rows), others)


def _all_live_seen(listing: Listing[ListedItem], now: datetime) -> bool:
    """A listing that was cut off still shows every live item if it came newest first and reached far enough back."""
    if listing.unreadable:
        return False
    if listing.complete:
        return True
    times = [item.created_at for item in listing.rows]
    newest_first = all(earlier >= later for earlier, later in itertools.pairwise(times))
    return bool(times) and newest_first and times[-1] < now - _HORIZON


@dataclass(frozen=True, slots=True)
class World:
    """One environment's part of both services. `items` is None where the listing failed; `listed` is false where that
    of the sandboxes did, and then only those are here that were looked up one by one."""

    now: datetime
    sandboxes: Sequence[SandboxRecord] = ()
    items: Items | None = None
    project_sandboxes: Mapping[str, SandboxRecord] = field(default_factory=dict)
    listed: bool = False

    def live_item(self, name: str) -> ListedItem | None:
        return self.items.live.get(name) if self.items is not None else None

    def surely_without_item(self, name: str) -> bool:
        """True only where every live item was seen and none is this session's."""
        return self.items is not None and self.items.all_live_seen and name not in self.items.live

    def last_sign(self, name: str, sandbox: SandboxRecord | None) -> datetime | None:
        """The latest moment at which this session is known to have had work; None where nothing is known."""
        moments = [sandbox.created_at if sandbox is not None else None]
        item = self.items.latest.get(name) if self.items is not None else None
        if item is not None:
            moments += [item.created_at, item.latest_heartbeat_at, item.stopped_at]
        known = [moment for moment in moments if moment is not None]
        return max(known) if known else None
