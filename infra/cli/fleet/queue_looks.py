"""ports.WorkLooks by plain HTTP: a pass that changes nothing is over before an SDK would be loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from infra.cli.fleet.lists import Lists, NotThere, lists
from infra.cli.session.follow import FeedBroken, FeedRefused
from shared.adapters.open_calls import EventsPage, open_calls_of
from shared.adapters.queue_rows import JsonRow, listed_item, reach_back, session_record
from shared.environment_settings import Environment
from shared.ports import Absent, Doubtful, ListedItem, Listing, OpenCalls, Refused, SessionRecord
from shared.settings import Settings


class QueueLooks:
    """One environment's work. What a service refuses or fails at is an outcome, and its text is for people."""

    def __init__(self, service: Lists, environment_id: str) -> None:
        self._service = service
        self._environment_id = environment_id

    async def list_items(self, pages: int, back_to: datetime | None = None) -> Listing[ListedItem] | Refused | Doubtful:
        def enough(rows: Sequence[ListedItem]) -> bool:
            return back_to is not None and reach_back(rows, back_to)

        try:
            return await self._service.rows(self._environment_id, pages, lambda raw: listed_item(JsonRow(raw)), enough)
        except (FeedBroken, FeedRefused) as error:
            return Doubtful(str(error))

    async def session(self, session_id: str) -> SessionRecord | Absent | Refused | Doubtful:
        try:
            return session_record(JsonRow(await self._service.raw_session(session_id)))
        except NotThere:
            return Absent()
        except (FeedBroken, FeedRefused) as error:
            return Doubtful(str(error))

    async def open_calls(self, session_id: str) -> OpenCalls | Absent | Refused | Doubtful:
        async def read(limit: int, types: Sequence[Any], begin: str | None) -> EventsPage:
            return await self._service.events_back(session_id, limit, types, begin)

        try:
            return await open_calls_of(read)
        except NotThere:
            return Absent()
        except (FeedBroken, FeedRefused, ValueError) as error:
            return Doubtful(str(error))


@asynccontextmanager
async def queue_looks(settings: Settings, environment: Environment) -> AsyncIterator[QueueLooks]:
    async with lists(settings.anthropic_url, await environment.key.areveal()) as service:
        yield QueueLooks(service, environment.id)
