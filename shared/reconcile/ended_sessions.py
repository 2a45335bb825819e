"""Clean up after sessions that webhooks say are over: collected, looked at together, and cheaply ruled out.

One endpoint gets the events of every environment of a workspace, so most of these sessions are somebody else's, and
anybody in the workspace can cause as many as he likes. So the question that rules a session out comes first: is there a
sandbox of its name? Sessions are asked for by name, or found in the list of all sandboxes where that has fewer pages.
After each batch comes a pause that grows with what it has cost. Only for those that have a sandbox does a pass of the
reconciler follow. What is lost here costs nothing: each tick finds sessions that are over, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from shared import names
from shared.deadline import Deadline
from shared.ports import Absent, Doubtful, Listing, SandboxHost, SandboxRecord, SandboxStatus
from shared.reports import ReconcileReport
from shared.settings import Settings

log = logging.getLogger(__name__)

BATCH_SECONDS: Final = 5.0
"""From the start of one batch to the next, where somebody waits already."""

_SECONDS_A_CALL: Final = 0.5
"""So long after each call of a batch, so that strangers cause no more than two calls a second."""

_ASKED_BY_NAME: Final = 5
_AT_ONCE: Final = 8
_PAGE: Final = 100  # rows
_MOST_WAITING: Final = 10_000

Pass = Callable[[str, str, Deadline], Awaitable[ReconcileReport]]
"""Environment id, session id and deadline to the report of a pass over that session alone."""


class EndedSessions:
    """One process's. Close it before the event loop ends."""

    def __init__(self, settings: Settings, host: Callable[[], SandboxHost], one_pass: Pass) -> None:
        self._settings = settings
        self._host = host
        self._pass = one_pass
        self._waiting: dict[str, asyncio.Future[Sequence[ReconcileReport]]] = {}
        self._batches: asyncio.Task[None] | None = None
        self._pages = 1  # of the list of sandboxes, when it was last read
        self._next_at = 0.0  # when the next batch may begin, by the loop's clock
        self._rests = False
        self._cost = 0  # calls by which the sessions of a batch were looked for

    def add(self, session_id: str) -> asyncio.Future[Sequence[ReconcileReport]]:
        """Resolves to the reports of the passes that were made: none where no environment has a sandbox of it. Await it
        shielded."""
        session_id = names.canonical_session_id(session_id)
        future = self._waiting.get(session_id)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            if len(self._waiting) >= _MOST_WAITING:
                log.warning("ended_sessions.dropped session=%s", session_id)
                future.set_result(())
                return future
            self._waiting[session_id] = future
        if self._batches is None or self._batches.done():
            self._batches = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            self._rests = True
            await asyncio.sleep(self._next_at - loop.time())
            self._rests = False
            batch, self._waiting = self._waiting, {}
            began, self._cost = loop.time(), 0
            try:
                await self._look_after(batch)
            except Exception:  # the edge: a bug in one batch must not stop the next
                log.exception("ended_sessions.bug")
            finally:
                for future in batch.values():
                    if not future.done():
                        future.set_result(())
            least = BATCH_SECONDS if self._waiting else 0.0
            self._next_at = began + max(least, self._cost * _SECONDS_A_CALL)

    async def _look_after(self, batch: dict[str, asyncio.Future[Sequence[ReconcileReport]]]) -> None:
        deadline = Deadline.after(self._settings.reconcile.deadline)
        found = await self._with_sandbox(batch)
        for session_id, environments in found.items():
            reports = [await self._pass(environment, session_id, deadline) for environment in environments]
            if not batch[session_id].done():
                batch[session_id].set_result(reports)

    async def _with_sandbox(self, sessions: Iterable[str]) -> dict[str, list[str]]:
        """The sessions that have a sandbox, each with its environments."""
        wanted = {
            names.sandbox_name(self._settings.prefix, environment, session): (session, environment)
            for session in sessions
            for environment in self._settings.environments
        }
        existing = await self._existing(list(wanted))
        found: dict[str, list[str]] = {}
        for name in existing:
            session, environment = wanted[name]
            found.setdefault(session, []).append(environment)
        return found

    async def _existing(self, wanted: Sequence[str]) -> Sequence[str]:
        host = self._host()
        if len(wanted) <= max(_ASKED_BY_NAME, self._pages):
            self._cost = len(wanted)
            places = asyncio.Semaphore(_AT_ONCE)

            async def asked(name: str) -> bool:
                async with places:
                    return _lives(await host.find(name))

            lives = await asyncio.gather(*map(asked, wanted))
            return [name for name, there in zip(wanted, lives, strict=True) if there]
        self._cost = self._pages
        listing = await host.list_sandboxes()
        if not isinstance(listing, Listing):
            log.warning("ended_sessions.put_off count=%d reason=%s", len(wanted), listing.reason)
            return []
        self._cost = self._pages = max(1, -(-len(listing.rows) // _PAGE))
        listed = {record.name for record in listing.rows if _lives(record)}
        return [name for name in wanted if name in listed]

    async def aclose(self, grace: float) -> None:
        """Lets a running batch end for `grace` seconds; the rest is the next tick's."""
        for future in self._waiting.values():
            if not future.done():
                future.set_result(())
        self._waiting = {}
        if self._batches is not None and not self._batches.done():
            await asyncio.wait([self._batches], timeout=0.0 if self._rests else grace)
            self._batches.cancel()
            await asyncio.gather(self._batches, return_exceptions=True)


def _lives(record: SandboxRecord | Absent | Doubtful) -> bool:
    return isinstance(record, SandboxRecord) and record.status is not SandboxStatus.TERMINATED
