"""One session with all that belongs to it: its record, its work items, its sandbox, and the two services' clients."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from infra.cli.environ import Loaded
from infra.cli.fleet.lists import Item, Lists, SessionListing, lists
from infra.cli.session.command import check_session_id
from infra.cli.session.follow import FeedBroken, FeedRefused
from shared import names
from shared.errors import HandsError, SettingsError
from shared.ports import ENDED, Absent, Doubtful, Refused, SandboxHost, SandboxRecord, SandboxStatus
from shared.service import Service
from shared.settings import Settings

_PAGES = 10
AWAKE = (SandboxStatus.RUNNING,)


class NotCarriedOut(HandsError):
    """The command could not do it. The text says why and what to do next."""


@dataclass(frozen=True, slots=True)
class Target:
    """`people` has the API key, `queue` the environment's. `sandbox` is None where the session has none."""

    settings: Settings
    service: Service
    session: SessionListing
    people: Lists
    queue: Lists
    host: SandboxHost
    sandbox_name: str

    async def items(self) -> Sequence[Item]:
        """The session's work items that the queue still lists, newest first."""
        # No item is older than its session; the seconds are for what the service's clocks may differ by.
        since = self.session.created_at - 10.0
        listing = await self.queue.items(self.session.environment_id, _PAGES, since)
        own = names.canonical_session_id(self.session.id)
        found = [
            item
            for item in listing.rows
            if names.is_session_id(item.session_id) and names.canonical_session_id(item.session_id) == own
        ]
        return sorted(found, key=lambda item: item.created_at, reverse=True)

    async def sandbox(self) -> SandboxRecord | None:
        """None where it has none, or has one that has ended. Raises NotCarriedOut where it cannot be known."""
        match await self.host.find(self.sandbox_name):
            case SandboxRecord() as record:
                return None if record.status in ENDED else record
            case Absent():
                return None
            case Doubtful(reason):
                raise NotCarriedOut(f"the sandbox could not be looked up ({reason}); try again")

    async def need_sandbox(self) -> SandboxRecord:
        """Raises NotCarriedOut."""
        record = await self.sandbox()
        if record is None:
            raise NotCarriedOut(
                f"{self.session.id} has no sandbox now: it gets one with its next message (make session)"
            )
        return record

    async def awake_sandbox(self) -> SandboxRecord:
        """Its running sandbox; a sleeper is woken, and whoever asked is told. Raises NotCarriedOut."""
        box = await self.need_sandbox()
        if box.status not in AWAKE:
            until = "a tick finds nobody in it, or its idle time-out is over"
            print(f"(waking {box.id}; it costs until {until})", file=sys.stderr)
            done(await self.host.resume(box.id), f"waking {box.id}")
        return box


@asynccontextmanager
async def target(loaded: Loaded, session_id: str) -> AsyncIterator[Target]:
    """Raises SettingsError, FeedRefused, FeedBroken."""
    session_id = session_id.strip()
    check_session_id(session_id)
    settings = Settings.from_environ(loaded.environ)
    key = loaded.need("ANTHROPIC_API_KEY", "sessions are looked up with it; create one in the Console")
    async with lists(settings.anthropic_url, key) as people:
        session = await people.session(session_id)
        environment = settings.environments.get(session.environment_id)
        if environment is None:
            raise SettingsError(
                f"{session_id} belongs to {session.environment_id}, which is not served here "
                f"({', '.join(settings.environments)})"
            )
        service = Service(settings)
        try:
            async with lists(settings.anthropic_url, environment.key.reveal()) as queue:
                name = names.sandbox_name(settings.prefix, environment.id, session_id)
                yield Target(settings, service, session, people, queue, service.host, name)
        finally:
            await service.aclose()


def done(outcome: Absent | Refused | Doubtful | None, what: str) -> None:
    """Raises NotCarriedOut for anything but a clear yes."""
    match outcome:
        case None:
            return
        case Absent():
            raise NotCarriedOut(f"{what}: it is not there any more")
        case Refused(status, reason):
            raise NotCarriedOut(f"{what}: the service refused it ({status}: {reason})")
        case Doubtful(reason):
            raise NotCarriedOut(f"{what}: it may have happened or not ({reason}). Look: hands ps")


__all__ = ["AWAKE", "FeedBroken", "FeedRefused", "NotCarriedOut", "Target", "done", "target"]
