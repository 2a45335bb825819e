"""ports.WorkQueue over the anthropic SDK: raw poll, ack and stop.

The SDK's poll helper is not used: it acks before a sandbox exists and sleeps through errors without end
(docs/wire/anthropic.md#t1, docs/wire/anthropic.md#t2). The SDK takes over a second to import, so that happens in a
thread, on the first call (docs/wire/runtimes.md#0-findings). It never retries here: the dispatcher knows what an error
means and how much time is left.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeVar

from shared.adapters.call_budget import CallBudget, Holds, Priority, retry_after
from shared.adapters.open_calls import lost_calls, read_open_calls
from shared.adapters.queue_rows import listed_item, reach_back, session_record
from shared.adapters.sdk_client import RetiredClients
from shared.adapters.service_clock import ServiceClock
from shared.ports import (
    Absent,
    AckOutcome,
    Doubtful,
    Empty,
    ListedItem,
    Listing,
    NoAnswer,
    OpenCalls,
    PollOutcome,
    Refused,
    SessionRecord,
    StaleEntry,
    Throttled,
    WorkItem,
)
from shared.secret import Secret
from shared.unanswered import unanswered

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
    from anthropic.types.beta.environments import BetaSelfHostedWork

CALL_SECONDS: Final = 10.0
_T = TypeVar("_T")


class AnthropicQueue:
    """The queue of one environment. `reclaim_seconds` is R and goes with every poll (docs/claim-protocol.md#times).
    `time_of_day` is told the date of each answer."""

    def __init__(
        self,
        *,
        base_url: str,
        environment_id: str,
        key: Secret,
        reclaim_seconds: float,
        reads: CallBudget | None = None,
        writes: CallBudget | None = None,
        holds: Holds | None = None,
        time_of_day: ServiceClock | None = None,
    ) -> None:
        self._base_url = base_url
        self._environment_id = environment_id
        self._key = key
        self._reclaim_ms = int(reclaim_seconds * 1000)
        self._worker_id = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._reads = reads or CallBudget(0)
        self._writes = writes or CallBudget(0)
        self._holds = holds or Holds()
        self._time_of_day = time_of_day or ServiceClock()
        self._client: tuple[str, AsyncAnthropic] | None = None
        self._retired = RetiredClients()

    async def poll(self) -> PollOutcome:
        async def call() -> PollOutcome:
            client = await self._connected()
            item = await client.beta.environments.work.poll(
                self._environment_id, reclaim_older_than_ms=self._reclaim_ms, anthropic_worker_id=self._worker_id
            )
            return Empty() if item is None else _work_item(item)

        outcome = await self._bounded(call, self._reads, Priority.CLAIM)
        return StaleEntry() if isinstance(outcome, Absent) else outcome

    async def ack(self, work_id: str) -> AckOutcome:
        async def call() -> None:
            client = await self._connected()
            await client.beta.environments.work.ack(work_id, environment_id=self._environment_id)

        return _settled_by_conflict(await self._bounded(call, self._writes, Priority.CLAIM))

    async def force_stop(self, work_id: str) -> AckOutcome:
        async def call() -> None:
            client = await self._connected()
            await client.beta.environments.work.stop(work_id, environment_id=self._environment_id, force=True)

        return _settled_by_conflict(await self._bounded(call, self._writes, Priority.REPAIR))

    async def list_items(self, pages: int, back_to: datetime | None = None) -> Listing[ListedItem] | Refused | Doubtful:
        async def call() -> Listing[ListedItem]:
            client = await self._connected()
            page = await client.beta.environments.work.list(self._environment_id, limit=100)
            rows: list[ListedItem] = []
            unreadable = 0
            for number in range(1, pages + 1):
                for item in page.data:
                    row = listed_item(item)
                    if row is None:
                        unreadable += 1
                    else:
                        rows.append(row)
                if not page.has_next_page():
                    return Listing(rows, complete=True, unreadable=unreadable)
                if back_to is not None and reach_back(rows, back_to):
                    break
                if number < pages:
                    await self._reads.admit(Priority.LOOKUP)
                    page = await page.get_next_page()
            return Listing(rows, complete=False, unreadable=unreadable)

        outcome = await self._bounded(call, self._reads, Priority.LOOKUP, seconds=pages * CALL_SECONDS)
        return Doubtful("HTTP 404") if isinstance(outcome, Absent) else outcome

    async def session(self, session_id: str) -> SessionRecord | Absent | Refused | Doubtful:
        async def call() -> SessionRecord | Doubtful:
            client = await self._connected()
            return session_record(await client.beta.sessions.retrieve(session_id))

        return await self._bounded(call, self._reads, Priority.LOOKUP)

    async def open_calls(self, session_id: str) -> OpenCalls | Absent | Refused | Doubtful:
        async def call() -> OpenCalls:
            return await read_open_calls(await self._connected(), session_id)

        return await self._bounded(call, self._reads, Priority.LOOKUP)

    async def give_up_calls(self, session_id: str, calls: OpenCalls) -> AckOutcome:
        async def call() -> None:
            client = await self._connected()
            await client.beta.sessions.events.send(session_id, events=lost_calls(calls))

        return await self._bounded(call, self._writes, Priority.REPAIR)

    async def interrupt(self, session_id: str) -> AckOutcome:
        async def call() -> None:
            client = await self._connected()
            await client.beta.sessions.events.send(session_id, events=[{"type": "user.interrupt"}])

        return await self._bounded(call, self._writes, Priority.REPAIR)

    async def aclose(self) -> None:
        await self._retired.aclose()
        if self._client is not None:
            client, self._client = self._client[1], None
            await client.close()

    async def _connected(self) -> AsyncAnthropic:
        """The client for the key of this moment: a rotated key gets a new one."""
        key = await self._key.areveal()
        if self._client is None or self._client[0] != key:
            client_class = await asyncio.to_thread(_client_class)
            if self._client is None or self._client[0] != key:
                client = client_class(
                    auth_token=key,
                    base_url=self._base_url,
                    timeout=CALL_SECONDS,
                    max_retries=0,
                    http_client=_http_client(self._time_of_day),
                )
                if self._client is not None:
                    self._retired.add(self._client[1].close)
                self._client = (key, client)
        return self._client[1]

    async def _bounded(
        self,
        call: Callable[[], Awaitable[_T]],
        budget: CallBudget,
        priority: Priority,
        seconds: float = CALL_SECONDS,
    ) -> _T | Absent | Refused | Doubtful:
        used = self._client
        outcome = await self._tried(call, budget, priority, seconds)
        used = used or self._client
        if not (isinstance(outcome, Refused) and outcome.status == 401 and used and await self._key.refused(used[0])):
            return outcome
        # The key was rotated, and a refused call changed nothing.
        return await self._tried(call, budget, priority, seconds)

    async def _tried(
        self, call: Callable[[], Awaitable[_T]], budget: CallBudget, priority: Priority, seconds: float
    ) -> _T | Absent | Refused | Doubtful:
        try:
            async with asyncio.timeout(seconds + 5.0):
                await self._connected()
                key = self._client[0] if self._client is not None else ""
                held = self._holds.left(key)
                if not held:
                    await budget.admit(priority)
                    held = self._holds.left(key)  # others may have been told meanwhile
                if held:
                    return Throttled(f"the service said to wait, for {held:.0f} s yet", held)
                answer = await call()
        except Exception as error:  # the edge: every exception of the SDK becomes an outcome
            outcome = _outcome(error, self._base_url)
            if isinstance(outcome, _ToldToWait):
                return Throttled(outcome.reason, self._holds.hold(key, outcome.seconds))
            return outcome
        self._holds.answered(key)
        return answer


def _client_class() -> type[AsyncAnthropic]:
    from anthropic import AsyncAnthropic

    return AsyncAnthropic


def _http_client(time_of_day: ServiceClock) -> DefaultAsyncHttpxClient:
    """The SDK's own, which shows each answer's date."""
    from anthropic import DefaultAsyncHttpxClient

    return DefaultAsyncHttpxClient(event_hooks={"response": [time_of_day.see]})


def _work_item(item: BetaSelfHostedWork) -> WorkItem | Doubtful:
    """The SDK checks nothing, so an answer that is not a work item arrives as one full of None
    (docs/wire/anthropic.md#14-sdk-transport)."""
    try:
        work_id, kind, session_id = item.id, item.data.type, item.data.id
        created_at = datetime.fromisoformat(item.created_at)
        if not all((work_id, kind, session_id)) or created_at.tzinfo is None:
            return Doubtful("the answer to a poll was not a work item")
    except (AttributeError, TypeError, ValueError):
        return Doubtful("the answer to a poll was not a work item")
    return WorkItem(work_id, item.environment_id, kind, session_id, created_at, item.secret or None)


def _settled_by_conflict(outcome: AckOutcome) -> AckOutcome:
    """A 409 says that it had happened before (docs/wire/anthropic.md#32-endpoints)."""
    return None if isinstance(outcome, Refused) and outcome.status == 409 else outcome


@dataclass(frozen=True, slots=True)
class _ToldToWait:
    """`seconds` is None where the service did not say for how long."""

    reason: str
    seconds: float | None


def _outcome(error: Exception, url: str) -> Absent | Refused | Doubtful | _ToldToWait:
    from anthropic import APIConnectionError, APIStatusError

    if isinstance(error, APIConnectionError | TimeoutError):
        return NoAnswer(unanswered(error, url))
    if isinstance(error, APIStatusError):
        status = error.status_code
        said = retry_after(error.response.headers)
        if status == 404:
            return Absent()
        if status == 429 or (status >= 500 and said is not None):
            return _ToldToWait(f"HTTP {status}", said)
        if 400 <= status < 500 and status != 408:
            return Refused(status, f"HTTP {status}")
        return Doubtful(f"HTTP {status}")
    return Doubtful(type(error).__name__)
