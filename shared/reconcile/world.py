"""What one tick has seen of the world, and the questions that may be asked of it.

What was not seen is unknown, never gone (docs/architecture.md#i5). Whether a session has no work item can be proven in
three ways, and none of them needs the whole history of the queue: every item was listed; or the list came newest first
and shows the session's own newest item, which has ended (a session has one live item at most:
docs/wire/anthropic.md#33-state-machine); or it reaches back further than any item lives.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from shared import names
from shared.ports import ItemState, ListedItem, Listing, SandboxRecord, SandboxStatus

LIVE: Final = frozenset({ItemState.QUEUED, ItemState.STARTING, ItemState.ACTIVE, ItemState.STOPPING, ItemState.UNKNOWN})
OVER: Final = frozenset({SandboxStatus.TERMINATED})
LONGEST_LIFE: Final = timedelta(days=3)  # no live item is older: lifetimes and poison ages are hours


@dataclass(frozen=True, slots=True)
class Items:
    """The work items of an environment by the sandbox name of their session; `others` are of no session.

    complete: every item was listed. newest_first: the service lists them so. reaches: creation of the oldest one seen.
    """

    live: Mapping[str, ListedItem]
    latest: Mapping[str, ListedItem]
    complete: bool
    newest_first: bool
    count: int
    newest: datetime | None = None
    reaches: datetime | None = None
    others: Sequence[ListedItem] = ()

    @classmethod
    def of(cls, listing: Listing[ListedItem], prefix: str, environment_id: str) -> Items:
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
        times = [item.created_at for item in listing.rows]
        readable = not listing.unreadable
        return cls(
            live,
            latest,
            complete=listing.complete and readable,
            newest_first=readable and all(later >= earlier for later, earlier in itertools.pairwise(times)),
            count=len(listing.rows),
            newest=max(times, default=None),
            reaches=min(times, default=None),
            others=others,
        )

    def prove_absence(self, name: str, now: datetime) -> bool:
        """Whether the session of this sandbox name certainly has no live item."""
        if name in self.live:
            return False
        if self.complete:
            return True
        if not self.newest_first or self.reaches is None:
            return False
        return name in self.latest or self.reaches < now - LONGEST_LIFE


@dataclass(frozen=True, slots=True)
class OurSandbox:
    """A sandbox of one environment, its name parsed."""

    record: SandboxRecord
    name: str
    kind: names.SandboxName

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def status(self) -> SandboxStatus:
        return self.record.status

    @property
    def session_id(self) -> str | None:
        """None where its name does not tell."""
        return self.kind.session_id if isinstance(self.kind, names.SessionSandbox) else None


@dataclass(frozen=True, slots=True)
class World:
    """One environment's part of both services. `items` is None where the listing failed; `listed` is false where that
    of the sandboxes did, and then only those are here that were looked up one by one. `project`: all rows by id;
    `kinds`: what the names of this environment's say, those that have ended included."""

    now: datetime
    sandboxes: Sequence[OurSandbox] = ()
    items: Items | None = None
    project: Mapping[str, SandboxRecord] = field(default_factory=dict)
    kinds: Mapping[str, names.SandboxName] = field(default_factory=dict)
    listed: bool = False

    @classmethod
    def of(
        cls,
        now: datetime,
        prefix: str,
        environment_id: str,
        rows: Iterable[SandboxRecord] = (),
        items: Items | None = None,
        *,
        listed: bool = True,
    ) -> World:
        project = {record.id: record for record in rows}
        kinds = {
            record.id: kind
            for record in project.values()
            if names.belongs_to(kind := names.parse(prefix, record.name), environment_id)
        }
        ours = [
            OurSandbox(record, record.name or "", kinds[record.id])
            for record in project.values()
            if record.id in kinds and record.status not in OVER
        ]
        return cls(now, ours, items, project, kinds, listed)

    @property
    def awake(self) -> int:
        """How many of our sandboxes run."""
        return sum(sandbox.status is SandboxStatus.RUNNING for sandbox in self.sandboxes)

    def live_item(self, name: str) -> ListedItem | None:
        return self.items.live.get(name) if self.items is not None else None

    def surely_without_item(self, name: str) -> bool:
        return self.items is not None and self.items.prove_absence(name, self.now)

    def perhaps_at_work(self, sandbox: OurSandbox) -> bool:
        """A session's sandbox that is awake, of which the items that were read do not tell whether it has one."""
        if self.items is None or self.items.complete or sandbox.status is not SandboxStatus.RUNNING:
            return False
        if not isinstance(sandbox.kind, names.SessionSandbox) or self.live_item(sandbox.name) is not None:
            return False
        return not self.surely_without_item(sandbox.name)

    def session_of(self, sandbox: OurSandbox) -> str | None:
        """The session of a sandbox by its name, or by an item where the name holds only a hash."""
        kind = sandbox.kind
        if not isinstance(kind, names.SessionSandbox):
            return None
        if kind.session_id is not None:
            return kind.session_id
        item = self.items.latest.get(sandbox.name) if self.items is not None else None
        return item.session_id if item is not None else None

    def last_sign(self, name: str, sandbox: OurSandbox | None) -> datetime | None:
        """The latest moment at which this session is known to have had work; None where nothing is known."""
        moments = [sandbox.record.created_at if sandbox is not None else None]
        item = self.items.latest.get(name) if self.items is not None else None
        if item is not None:
            moments += [item.created_at, item.latest_heartbeat_at, item.stopped_at]
        known = [moment for moment in moments if moment is not None]
        return max(known) if known else None
