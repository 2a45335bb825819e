"""The looks that a repair takes last, just before it acts.

Nothing is ended, suspended or released on what was seen more than five seconds ago, or on a look-up that failed
(docs/architecture.md#i5). A last look asks about the one session and item that it is for. Of the queue it reads only
what is newer than the tick's own list, since an item that was not there can have come only at the top.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from shared.claims.worker_process import WORKER_NAMES
from shared.deadline import Clock
from shared.errors import SecretUnavailable
from shared.ports import (
    Absent,
    Doubtful,
    ProcessState,
    Refused,
    SandboxHost,
    SandboxRecord,
    SessionRecord,
    SessionStatus,
    WorkQueue,
)
from shared.reconcile.repairs import Failed, Skipped
from shared.reconcile.world import Items, OurSandbox, World
from shared.settings import Settings
from shared.wake_lock import is_genuine, locks_among

_FRESH: Final = 4.5  # seconds; with the call itself a look is never older than five
_LOCKS_CHECKED: Final = 100
_SHARED: Final = 1.5  # seconds that one look at the top of the queue serves several repairs


def workers_among(processes: Sequence[ProcessState]) -> Sequence[ProcessState]:
    return [process for process in processes if process.name.startswith(WORKER_NAMES)]


@dataclass(slots=True)
class LastLooks:
    """For the repairs of one `World`, in one pass over one environment."""

    settings: Settings
    environment_id: str
    queue: WorkQueue
    host: SandboxHost
    now: Callable[[], datetime]
    world: World
    clock: Clock
    _seen: tuple[float, datetime | None, Items] | None = None

    async def changed(
        self, sandbox: OurSandbox, *, status: bool = False, pool: bool = False
    ) -> Failed | Skipped | None:
        """The look before an end: why it is not ended now. None where it still has the name, and the status or the pool
        where that counts."""
        found = await self.host.find(sandbox.id)
        if isinstance(found, Doubtful):
            return Failed("it could not be looked at again")
        same = (
            isinstance(found, SandboxRecord)
            and (found.name or "") == sandbox.name
            and (not status or found.status is sandbox.status)
            and (not pool or found.pool_id == sandbox.record.pool_id)
        )
        return None if same else Skipped("it is not what it was")

    async def workers(self, sandbox_id: str) -> Sequence[ProcessState] | None:
        """Those that run; None where the sandbox does not say."""
        named = await self.processes(sandbox_id)
        return None if named is None else [process for process in workers_among(named) if process.running]

    async def processes(self, sandbox_id: str, seconds: float | None = None) -> Sequence[ProcessState] | None:
        """Those with a name that the sandbox remembers; None where it does not say, within `seconds` where given."""
        try:
            async with asyncio.timeout(seconds):
                listed = await self.host.process_names(sandbox_id)
        except TimeoutError:
            return None
        if isinstance(listed, Absent):
            return ()
        return None if isinstance(listed, Doubtful) else listed

    async def locked(self, sandbox_id: str, processes: Sequence[ProcessState]) -> bool:
        """Whether a person's command is in it. Of names that only look so a few are checked."""
        names = locks_among(processes)[:_LOCKS_CHECKED]
        if not names:
            return False
        try:
            key = await self.settings.environments[self.environment_id].key.areveal()
        except SecretUnavailable:
            return False
        return any(is_genuine(name, key, sandbox_id, self.now().timestamp()) for name in names)

    def unwanted(self, session: SessionRecord | Absent) -> bool:
        """Whether the session is over, or has not been used for as long as a sandbox is kept."""
        match session:
            case Absent() | SessionRecord(status=SessionStatus.TERMINATED) | SessionRecord(archived=True):
                return True
            case SessionRecord(updated_at=used):
                return used is not None and (self.now() - used).total_seconds() > self.settings.reconcile.retention

    def without_item(self, recent: Items, name: str) -> bool:
        """Whether a session without an item in the tick's list has none now either."""
        return recent.prove_absence(name, self.now()) or (
            name not in recent.live and self.world.surely_without_item(name)
        )

    async def recent(self, back_to: datetime | None = None, *, shared: bool = True) -> Items | None:
        """The queue from its top down to `back_to`, or to what the tick's own list has shown. None where it cannot be
        had, or does not tell what is new."""
        known = self.world.items
        if back_to is None:
            back_to = known.newest if known is not None and known.newest_first else None
        began = self.clock()
        if shared and self._seen is not None:
            at, reached, seen = self._seen
            if began - at <= _SHARED and (reached is None or (back_to is not None and reached <= back_to)):
                return seen
        listing = await self.queue.list_items(self.settings.reconcile.pages, back_to)
        if isinstance(listing, Refused | Doubtful) or listing.unreadable:
            return None
        items = Items.of(listing, self.settings.prefix, self.environment_id)
        if not items.complete and not items.newest_first:
            return None
        self._seen = (began, back_to, items)
        return items

    def too_late(self, began: float) -> bool:
        """Whether the looks since then have grown too old to act on."""
        return self.clock() - began > _FRESH
