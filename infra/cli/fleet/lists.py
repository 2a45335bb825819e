"""Sessions, work items and events by plain HTTP: the commands that look at everything answer before an SDK is loaded.

A read is tried twice, an effect once: after a lost answer FeedBroken says that it may have happened. Each method is
bounded by pages and time, and says what it did not see. Rows that cannot be read are counted and left out, never
guessed. Wire: docs/wire/anthropic.md, sections 3 and 8.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx2

from infra.cli.refusals import refusal
from infra.cli.session.follow import FeedBroken, FeedRefused, unix_time
from shared.ports import ItemState, Listing, SessionStatus
from shared.unanswered import certificate_advice, unanswered

PAGE: Final = 100
_HEADERS: Final = {"anthropic-version": "2023-06-01", "anthropic-beta": "managed-agents-2026-04-01"}
_CALL_SECONDS: Final = 10.0
_TRIES: Final = 2
_OK: Final = 200
_NOT_FOUND: Final = 404
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500

_Row = TypeVar("_Row")
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SessionListing:
    """Times are Unix seconds. Tokens and cost are None where the service does not tell."""

    id: str
    environment_id: str
    status: SessionStatus
    title: str
    created_at: float
    updated_at: float | None
    archived: bool
    tokens_in: int | None = None
    tokens_out: int | None = None
    active_seconds: float | None = None
    cost: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A work item with the times of its life, in Unix seconds."""

    id: str
    session_id: str
    state: ItemState
    created_at: float
    acknowledged_at: float | None
    started_at: float | None
    latest_heartbeat_at: float | None
    stopped_at: float | None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """`oldest_queued_at` in Unix seconds; None where nothing waits, or the service does not tell."""

    depth: int
    pending: int
    oldest_queued_at: float | None
    workers_polling: int | None


class NotThere(FeedRefused):
    """The service knows nothing of that id."""


class Lists:
    """One service and one credential. Methods raise FeedBroken and FeedRefused, whose texts are for people.
    `requests_left`: of the organisation's in this minute, and how many there are, as an answer told it last."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self.calls = 0
        self.requests_left: tuple[int, int] | None = None

    async def sessions(self, pages: int, *, archived: bool = False) -> Listing[SessionListing]:
        """Newest first."""
        more = {"include_archived": "true"} if archived else {}
        return await self._pages("/v1/sessions", {"limit": str(PAGE), **more}, pages, read_session)

    async def items(self, environment_id: str, pages: int, back_to: float | None = None) -> Listing[Item]:
        """`back_to`: Unix seconds; those before are not wanted, where the list turns out to have the newest first."""

        def enough(rows: Sequence[Item]) -> bool:
            times = [row.created_at for row in rows]
            return back_to is not None and times[-1:] < [back_to] and times == sorted(times, reverse=True)

        return await self.rows(environment_id, pages, read_item, enough)

    async def rows(
        self,
        environment_id: str,
        pages: int,
        read: Callable[[Json], _Row | None],
        enough: Callable[[Sequence[_Row]], bool],
    ) -> Listing[_Row]:
        """Work items as `read` has them, until there are enough."""
        path = f"/v1/environments/{environment_id}/work"
        return await self._pages(path, {"limit": str(PAGE)}, pages, read, enough)

    async def session(self, session_id: str) -> SessionListing:
        row = read_session(await self.raw_session(session_id))
        if row is None:
            raise FeedBroken("the service's answer is no session")
        return row

    async def raw_session(self, session_id: str) -> Json:
        return await self._get(f"/v1/sessions/{session_id}", {})

    async def stats(self, environment_id: str) -> QueueStats:
        body = await self._get(f"/v1/environments/{environment_id}/work/stats", {})
        workers = body.get("workers_polling")
        return QueueStats(
            _whole(body.get("depth")) or 0,
            _whole(body.get("pending")) or 0,
            unix_time(body.get("oldest_queued_at")),
            _whole(workers),
        )

    async def last_events(self, session_id: str, count: int, *, tries: int = _TRIES) -> Sequence[Json]:
        """The last events, oldest first."""
        rows, _ = await self.events_back(session_id, count, tries=tries)
        return rows[::-1]

    async def events_back(
        self, session_id: str, count: int, types: Sequence[str] = (), begin: str | None = None, *, tries: int = _TRIES
    ) -> tuple[Sequence[Json], str | None]:
        """A page of events, newest first, and where the next one begins."""
        query: dict[str, Any] = {"limit": str(count), "order": "desc"}
        query |= {"types[]": list(types)} if types else {}
        query |= {"page": begin} if begin is not None else {}
        body = await self._get(f"/v1/sessions/{session_id}/events", query, tries)
        rows, following = body.get("data"), body.get("next_page")
        return (
            [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else [],
            following if isinstance(following, str) and following else None,
        )

    async def stop(self, environment_id: str, item_id: str) -> None:
        """Ask the item's worker to wind down."""
        await self._once("POST", f"/v1/environments/{environment_id}/work/{item_id}/stop", {}, body={})

    async def interrupt(self, session_id: str) -> None:
        """End the session's turn."""
        body = {"events": [{"type": "user.interrupt"}]}
        await self._once("POST", f"/v1/sessions/{session_id}/events", {}, body=body)

    async def confirm(self, session_id: str, call_id: str, *, allow: bool, reason: str = "") -> None:
        """Answer a call that waits for a person."""
        event = {"type": "user.tool_confirmation", "tool_use_id": call_id, "result": "allow" if allow else "deny"}
        if reason and not allow:
            event["deny_message"] = reason
        await self._once("POST", f"/v1/sessions/{session_id}/events", {}, body={"events": [event]})

    async def archive(self, session_id: str) -> None:
        await self._once("POST", f"/v1/sessions/{session_id}/archive", {}, body={})

    async def delete(self, session_id: str) -> None:
        await self._once("DELETE", f"/v1/sessions/{session_id}", {})

    async def _pages(
        self,
        path: str,
        query: Mapping[str, str],
        pages: int,
        read: Callable[[Json], _Row | None],
        enough: Callable[[Sequence[_Row]], bool] = lambda _: False,
    ) -> Listing[_Row]:
        rows: list[_Row] = []
        unreadable = 0
        page: dict[str, str] = {}
        for _ in range(pages):
            body = await self._get(path, {**query, **page})
            data = body.get("data")
            for raw in data if isinstance(data, list) else ():
                row = read(raw) if isinstance(raw, dict) else None
                if row is None:
                    unreadable += 1
                else:
                    rows.append(row)
            following = body.get("next_page")
            if not isinstance(following, str) or not following:
                return Listing(rows, complete=True, unreadable=unreadable)
            if enough(rows):
                break
            page = {"page": following}
        return Listing(rows, complete=False, unreadable=unreadable)

    async def _get(self, path: str, query: Mapping[str, Any], tries: int = _TRIES) -> Json:
        """A read may be tried again: it changes nothing."""
        for last in range(tries):
            try:
                return await self._once("GET", path, query)
            except FeedBroken:
                if last == tries - 1:
                    raise
                await asyncio.sleep(0.2)
        raise AssertionError("unreachable")

    async def _once(self, method: str, path: str, query: Mapping[str, Any], body: Json | None = None) -> Json:
        self.calls += 1
        try:
            answer = await self._client.request(method, path, params=dict(query), json=body)
            said = answer.json()
        except ValueError:
            raise FeedBroken(f"the Claude API answered {answer.status_code}, and not in JSON") from None
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            advice = certificate_advice(error)
            if advice is not None:
                raise FeedRefused(advice) from None
            raise FeedBroken(unanswered(error, str(self._client.base_url))) from None
        self.requests_left = _requests_left(answer.headers) or self.requests_left
        if answer.status_code == _OK and isinstance(said, dict):
            return said
        if answer.status_code in (_OK, _TOO_MANY) or answer.status_code >= _SERVER_ERROR:
            raise FeedBroken(f"the Claude API answered {answer.status_code}")
        refused = NotThere if answer.status_code == _NOT_FOUND else FeedRefused
        raise refused(refusal(answer.status_code, said))


@asynccontextmanager
async def lists(base_url: str, key: str) -> AsyncIterator[Lists]:
    """`key`: the API key for sessions, an environment key for its queue."""
    headers = {**_HEADERS, "authorization": f"Bearer {key}"}
    timeout = httpx2.Timeout(_CALL_SECONDS)
    async with httpx2.AsyncClient(base_url=base_url, headers=headers, timeout=timeout) as client:
        yield Lists(client)


def _requests_left(headers: Mapping[str, str]) -> tuple[int, int] | None:
    left, limit = (headers.get(f"anthropic-ratelimit-requests-{name}", "") for name in ("remaining", "limit"))
    if not (left.isascii() and left.isdigit() and limit.isascii() and limit.isdigit()):
        return None
    return int(left[:12]), int(limit[:12])


def read_session(raw: Json) -> SessionListing | None:
    identity, environment, created = raw.get("id"), raw.get("environment_id"), unix_time(raw.get("created_at"))
    if not isinstance(identity, str) or not isinstance(environment, str) or created is None:
        return None
    usage = raw.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    cost = usage.get("list_cost")
    return SessionListing(
        id=identity,
        environment_id=environment,
        status=_one_of(SessionStatus, raw.get("status"), SessionStatus.UNKNOWN),
        title=str(raw.get("title") or ""),
        created_at=created,
        updated_at=unix_time(raw.get("updated_at")),
        archived=raw.get("archived_at") is not None,
        tokens_in=_whole(usage.get("input_tokens")),
        tokens_out=_whole(usage.get("output_tokens")),
        active_seconds=_number(usage.get("active_seconds")),
        cost=f"{cost.get('amount')} {cost.get('currency')}" if isinstance(cost, dict) and cost.get("amount") else None,
    )


def read_item(raw: Json) -> Item | None:
    data, created = raw.get("data"), unix_time(raw.get("created_at"))
    session = data.get("id") if isinstance(data, dict) and data.get("type") == "session" else None
    if not isinstance(raw.get("id"), str) or not isinstance(session, str) or created is None:
        return None
    return Item(
        id=str(raw["id"]),
        session_id=session,
        state=_one_of(ItemState, raw.get("state"), ItemState.UNKNOWN),
        created_at=created,
        acknowledged_at=unix_time(raw.get("acknowledged_at")),
        started_at=unix_time(raw.get("started_at")),
        latest_heartbeat_at=unix_time(raw.get("latest_heartbeat_at")),
        stopped_at=unix_time(raw.get("stopped_at")),
    )


_Known = TypeVar("_Known", SessionStatus, ItemState)


def _one_of(kind: type[_Known], value: object, unknown: _Known) -> _Known:
    try:
        return kind(str(value))
    except ValueError:
        return unknown


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
