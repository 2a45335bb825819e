"""What is behind a session's stream: its work item and its sandbox, where the keys for a look are there.

A session's events do not say whether anybody serves it, whether an operator stopped its work, or that its sandbox was
lost and replaced. The queue and the sandboxes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from image.session.worker.tool_manifest import MANIFEST, TOOLS_DIRECTORY
from infra.cli.environ import Loaded
from shared import names
from shared.errors import SecretUnavailable, SettingsError
from shared.ports import (
    ENDED,
    Absent,
    Doubtful,
    FindOutcome,
    ItemState,
    ListedItem,
    Listing,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxStatus,
    WorkQueue,
)
from shared.settings import Settings

_PAGES: Final = 1
_LOOK_SECONDS: Final = 3.0
_LONGEST_MANIFEST: Final = 1 << 20  # bytes
_STOPPED: Final = (
    "its work was stopped from outside: the running command ends, and its result may be lost. A next message starts "
    "new work; make repair frees a session that waits for a lost result"
)


@dataclass(frozen=True, slots=True)
class WorkLook:
    """`item`: the session's newest work item, None where it has none. `known`: False where the queue was not seen.

    news: what has changed since the last look and a person should know, one line each.
    own_tools: the custom tools that the sandbox's image has; None where that was not asked or could not be seen.
    """

    item: ListedItem | None = None
    known: bool = False
    news: tuple[str, ...] = ()
    own_tools: frozenset[str] | None = None

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
    _manifest: tuple[str, frozenset[str]] | None = None

    async def look(self, *, own_tools: bool = False) -> WorkLook:
        """Two calls, side by side, of _LOOK_SECONDS together: whoever watches waits for them, and a slow service
        must not hold up the other one's events. Never raises for what a service does. With `own_tools` a third one."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS), asyncio.TaskGroup() as group:
                items = group.create_task(self.queue.list_items(_PAGES))
                sandbox = group.create_task(self.host.find(self.sandbox_name))
        except TimeoutError:
            return WorkLook()
        listing, lost = items.result(), self._sandbox_news(sandbox.result())
        if not isinstance(listing, Listing):
            return WorkLook(news=tuple(lost))
        own = [item for item in listing.rows if names.canonical_session_id(item.session_id) == self.session_id]
        news = self._stops(own) + lost
        newest = max(own, key=lambda item: item.created_at, default=None)
        served = await self._own_tools(sandbox.result()) if own_tools and newest is not None else None
        return WorkLook(newest, newest is not None or listing.complete, tuple(news), served)

    async def begin(self) -> None:
        """Remember how things are: only what changes from now on is news."""
        await self.look()

    async def _own_tools(self, found: FindOutcome) -> frozenset[str] | None:
        """What `make build` wrote into the image, read in a sandbox that runs: reading wakes one that sleeps. It is
        shown to a person and decides nothing."""
        if not isinstance(found, SandboxRecord) or found.status is not SandboxStatus.RUNNING:
            return None
        if self._manifest is None or self._manifest[0] != found.id:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    read = await self.host.read_file(found.id, str(TOOLS_DIRECTORY / MANIFEST), _LONGEST_MANIFEST)
            except TimeoutError:
                return None
            if isinstance(read, Refused | Doubtful):
                return None
            self._manifest = (found.id, frozenset() if isinstance(read, Absent) else _names(read))
        return self._manifest[1]

    def _stops(self, items: Sequence[ListedItem]) -> list[str]:
        stopped = {item.id for item in items if item.state in (ItemState.STOPPING, ItemState.STOPPED)}
        new, self._stopped = stopped - self._stopped, self._stopped | stopped
        return [_STOPPED] if new else []

    def _sandbox_news(self, found: FindOutcome) -> list[str]:
        match found:
            case SandboxRecord() if found.status not in ENDED:
                before, self._sandbox = self._sandbox, found.id
                lost, self._lost = self._lost, False
                if lost or (before is not None and before != found.id):
                    return ["the session has a new sandbox: the files in the old one are gone"]
            case SandboxRecord() | Absent():
                if self._sandbox is not None and not self._lost:
                    self._lost = True
                    return ["the session's sandbox was lost, with the files in it; a new one takes its place"]
        return []


def _names(manifest: bytes) -> frozenset[str]:
    try:
        return frozenset(str(entry["name"]) for entry in json.loads(manifest))
    except (ValueError, TypeError, KeyError, RecursionError):
        return frozenset()


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
