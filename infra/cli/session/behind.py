"""What is behind a session's stream: its work item and its sandbox, where the keys for a look are there.

A session's events do not say whether anybody serves it, whether an operator stopped its work, or that its sandbox was
lost and replaced. The queue and the sandboxes do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from infra.cli.environ import Loaded
from shared import names
from shared.errors import SecretUnavailable, SettingsError
from shared.ports import Absent, FindOutcome, ItemState, ListedItem, Listing, SandboxHost, SandboxRecord, WorkQueue
from shared.settings import Settings

_PAGES: Final = 1
_LOOK_SECONDS: Final = 3.0
_STOPPED: Final = (
    "its work was stopped from outside: the running command ends, and its result may be lost. A next message starts "
    "new work; make repair frees a session that waits for a lost result"
)
_ENDED: Final = ("terminated", "failed", "timeout")


@dataclass(frozen=True, slots=True)
class Look:
    """`item`: the session's newest work item, None where it has none. `known`: False where the queue was not seen.

    news: what has changed since the last look and a person should know, one line each.
    """

    item: ListedItem | None = None
    known: bool = False
    news: tuple[str, ...] = ()

    @property
    def nobody_serves(self) -> bool:
        """Is it sure that no worker holds the item's lease, and that none is about to?"""
        return self.known and (self.item is None or self.item.state in (ItemState.QUEUED, ItemState.STOPPED))

    @property
    def worker_starts(self) -> bool:
        return self.item is not None and self.item.state is ItemState.STARTING


@dataclass
class Behind:
    """Looks at one session's items and sandbox."""

    session_id: str
    sandbox_name: str
    queue: WorkQueue
    host: SandboxHost
    _sandbox: str | None = None
    _lost: bool = False
    _stopped: set[str] = field(default_factory=set)

    async def look(self) -> Look:
        """Two calls, side by side, of _LOOK_SECONDS together: whoever watches waits for them, and a slow service
        must not hold up the other one's events. Never raises for what a service does."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS), asyncio.TaskGroup() as group:
                items = group.create_task(self.queue.list_items(_PAGES))
                sandbox = group.create_task(self.host.find(self.sandbox_name))
        except TimeoutError:
            return Look()
        listing, lost = items.result(), self._sandbox_news(sandbox.result())
        if not isinstance(listing, Listing):
            return Look(news=tuple(lost))
        own = [item for item in listing.rows if names.canonical_session_id(item.session_id) == self.session_id]
        news = self._stops(own) + lost
        newest = max(own, key=lambda item: item.created_at, default=None)
        return Look(newest, newest is not None or listing.complete, tuple(news))

    async def begin(self) -> None:
        """Remember how things are: only what changes from now on is news."""
        await self.look()

    def _stops(self, items: Sequence[ListedItem]) -> list[str]:
        stopped = {item.id for item in items if item.state in (ItemState.STOPPING, ItemState.STOPPED)}
        new, self._stopped = stopped - self._stopped, self._stopped | stopped
        return [_STOPPED] if new else []

    def _sandbox_news(self, found: FindOutcome) -> list[str]:
        match found:
            case SandboxRecord() if found.status.value not in _ENDED:
                before, self._sandbox = self._sandbox, found.id
                lost, self._lost = self._lost, False
                if lost or (before is not None and before != found.id):
                    return ["the session has a new sandbox: the files in the old one are gone"]
            case SandboxRecord() | Absent():
                if self._sandbox is not None and not self._lost:
                    self._lost = True
                    return ["the session's sandbox was lost, with the files in it; a new one takes its place"]
        return []


@contextlib.asynccontextmanager
async def behind(loaded: Loaded, session_id: str, environment_id: str) -> AsyncIterator[Behind | None]:
    """None where the settings are not enough for a look, which is no fault: the stream needs one key alone."""
    try:
        settings = Settings.from_environ(loaded.environ)
    except (SettingsError, SecretUnavailable):
        yield None
        return
    environment = settings.environments.get(environment_id)
    if environment is None:
        yield None
        return
    from shared.service import Service

    service = Service(settings)
    try:
        name = names.sandbox_name(settings.prefix, environment_id, session_id)
        yield Behind(names.canonical_session_id(session_id), name, service.queue(environment), service.host)
    finally:
        await service.aclose()
