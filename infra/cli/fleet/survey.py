"""What runs, what waits and what is wrong, put together from the two services' lists alone.

`look` reads; `rows` is a pure function of what was read. What was not seen is unknown and said so, never "not there".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from infra.cli.environ import Loaded
from infra.cli.fleet.lists import Item, Json, Lists, SessionListing, lists
from infra.cli.session.follow import Call, FeedBroken, FeedRefused, TurnState
from infra.cli.session.render import summarise
from shared import names
from shared.claims.worker_process import WORKER_NAMES, died
from shared.ports import (
    ENDED,
    Absent,
    Doubtful,
    ItemState,
    Listing,
    ProcessState,
    SandboxHost,
    SandboxRecord,
    SandboxStatus,
    SessionStatus,
)
from shared.service import Service
from shared.settings import Settings

MOST_CALLS: Final = 30
"""Of one look, over all environments (tests/infra/cli/fleet/test_ps.py)."""
_SESSION_PAGES: Final = 12
_ITEM_PAGES: Final = 6
_SANDBOX_PAGE: Final = 100  # the SDK pages by itself (docs/wire/tensorlake.md#53-get-and-list)
_EVENTS: Final = 30
_AT_ONCE: Final = 6
_LOOK_SECONDS: Final = 1.0
_LEASE_SECONDS: Final = 300.0
_LIVE: Final = (ItemState.QUEUED, ItemState.STARTING, ItemState.ACTIVE, ItemState.STOPPING)
_NAMELESS: Final = "of a pool, no name"


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session as a person wants to see it. Seconds everywhere; None is unknown or not there.

    state: what it does, in words. sandbox: its id; sandbox_state: the service's word for it.
    seen: age of the last sign of life. deaths: workers of its sandbox that ended without an order; looked for where it
    works, as far as the calls reach. problem: what is wrong and what to do, empty where nothing is known to be.
    """

    session: str
    title: str
    environment: str
    state: str
    item: str
    item_state: str
    sandbox: str
    sandbox_state: str
    age: float
    seen: float | None
    problem: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: str | None = None
    deaths: int | None = None


@dataclass(frozen=True, slots=True)
class OtherSandbox:
    """A sandbox that is no listed session's. `kind`: what it is instead, in words (`_kind`). `name`: its id
    where it has none."""

    name: str
    id: str
    kind: str
    state: str
    age: float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look read. A part that could not be read is None, and `missing` says why."""

    settings: Settings
    now: float
    sessions: Listing[SessionListing] | None
    items: Mapping[str, Listing[Item]]
    sandboxes: Listing[SandboxRecord] | None
    calls: Mapping[str, tuple[Call, ...]] = field(default_factory=dict)
    deaths: Mapping[str, int] = field(default_factory=dict)  # by the sandbox's id
    missing: tuple[str, ...] = ()
    requests: int = 0
    requests_left: tuple[int, int] | None = None  # infra/cli/fleet/lists.py


async def look(loaded: Loaded, now: float, *, archived: bool = False) -> Seen:
    """At most MOST_CALLS calls. Raises SettingsError; FeedRefused where the sessions are refused."""
    settings = Settings.from_environ(loaded.environ)
    key = loaded.need("ANTHROPIC_API_KEY", "sessions are listed with it; create one in the Console")
    try:
        return await _look(settings, key, now, archived=archived)
    except ExceptionGroup as group:  # one of the reads failed, and the others were cancelled
        raise group.exceptions[0] from None


async def _look(settings: Settings, key: str, now: float, *, archived: bool) -> Seen:
    async with AsyncExitStack() as stack:
        people = await stack.enter_async_context(lists(settings.anthropic_url, key))
        queues = {
            environment.id: await stack.enter_async_context(lists(settings.anthropic_url, environment.key.reveal()))
            for environment in settings.environments.values()
        }
        service = Service(settings)
        stack.push_async_callback(service.aclose)
        pages = max(1, _ITEM_PAGES // len(queues))
        missing: list[str] = []
        async with asyncio.TaskGroup() as group:
            sessions = group.create_task(people.sessions(_SESSION_PAGES, archived=archived))
            items = {
                identity: group.create_task(_or_none(queue.items(identity, pages), f"the queue of {identity}", missing))
                for identity, queue in queues.items()
            }
            sandboxes = group.create_task(service.host.list_sandboxes())
        listing = sandboxes.result()
        if isinstance(listing, Doubtful):
            missing.append(f"the sandboxes were not seen: {listing.reason}")
        seen = Seen(
            settings,
            now,
            sessions.result(),
            {identity: found for identity, task in items.items() if (found := task.result()) is not None},
            None if isinstance(listing, Doubtful) else listing,
        )
        listed = 1 if isinstance(listing, Doubtful) else max(1, -(-len(listing.rows) // _SANDBOX_PAGE))
        made = sum(each.calls for each in (people, *queues.values())) + listed
        calls = await _calls_of(people, _at_work(seen), MOST_CALLS - made)
        made += len(calls)
        working = _working_boxes(seen)[: max(0, MOST_CALLS - made)]
        deaths = await _deaths_of(service.host, working)
        made += len(working)
    return replace(
        seen, calls=calls, deaths=deaths, missing=tuple(missing), requests=made, requests_left=people.requests_left
    )


async def _or_none(work: object, what: str, missing: list[str]) -> Listing[Item] | None:
    try:
        found: Listing[Item] = await work  # type: ignore[misc]
    except (FeedBroken, FeedRefused) as error:
        missing.append(f"{what} was not seen: {error}")
        return None
    return found


def _at_work(seen: Seen) -> list[str]:
    """The sessions whose events say what they wait for, the longest silent first."""
    live = {item.session_id for listing in seen.items.values() for item in listing.rows if item.state in _LIVE}
    canonical = {names.canonical_session_id(each) for each in live}
    rows = seen.sessions.rows if seen.sessions is not None else ()
    busy = [
        row
        for row in rows
        if row.status in (SessionStatus.RUNNING, SessionStatus.RESCHEDULING)
        or names.canonical_session_id(row.id) in canonical
    ]
    return [row.id for row in sorted(busy, key=lambda row: row.updated_at or row.created_at)]


async def _calls_of(people: Lists, sessions: Sequence[str], budget: int) -> Mapping[str, tuple[Call, ...]]:
    """The open calls of as many sessions as the budget allows; a session whose events fail is left out."""
    found: dict[str, tuple[Call, ...]] = {}
    gate = asyncio.Semaphore(_AT_ONCE)

    async def read(session: str) -> None:
        async with gate:
            with contextlib.suppress(FeedBroken, FeedRefused):
                found[session] = open_calls(await people.last_events(session, _EVENTS, tries=1))

    async with asyncio.TaskGroup() as group:
        for session in sessions[: max(0, budget)]:
            group.create_task(read(session))
    return found


def _served(seen: Seen) -> Iterator[SessionListing]:
    """The listed sessions of the environments that are served."""
    for session in seen.sessions.rows if seen.sessions is not None else ():
        if session.environment_id in seen.settings.environments and names.is_session_id(session.id):
            yield session


def _working_boxes(seen: Seen) -> list[str]:
    """Ids of the sandboxes that run for a living item: a look keeps none of them awake that would sleep."""
    boxes = _session_boxes(seen) or {}
    items = _newest_items(seen)
    found = []
    for session in _served(seen):
        item = items.get(names.canonical_session_id(session.id))
        box = boxes.get(_box_name(seen, session.environment_id, session.id))
        if item is not None and item.state in _LIVE and box is not None and box.status is SandboxStatus.RUNNING:
            found.append(box.id)
    return found


async def _deaths_of(host: SandboxHost, boxes: Sequence[str]) -> Mapping[str, int]:
    """A sandbox that does not tell within seconds is left out."""
    found: dict[str, int] = {}
    gate = asyncio.Semaphore(_AT_ONCE)

    async def read(box: str) -> None:
        async with gate:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    told = await host.process_names(box)
                    if not isinstance(told, Absent | Doubtful):
                        found[box] = deaths_among(told)

    async with asyncio.TaskGroup() as group:
        for box in boxes:
            group.create_task(read(box))
    return found


def deaths_among(processes: Iterable[ProcessState]) -> int:
    """Workers that ended and that nobody had asked to."""
    return sum(not each.running and each.name.startswith(WORKER_NAMES) and died(each) for each in processes)


def open_calls(events: Iterable[Json]) -> tuple[Call, ...]:
    """The calls that have no result among the last events."""
    state = TurnState(None)
    for event in events:
        state.advance(event)
    return state.calls


def rows(seen: Seen) -> list[SessionRow]:
    """One a session of the environments that are served: what works or waits first, then the newest."""
    items = _newest_items(seen)
    boxes = _session_boxes(seen)
    found = [_row(seen, session, items.get(names.canonical_session_id(session.id)), boxes) for session in _served(seen)]
    return sorted(found, key=lambda row: (not row.problem, not row.item, row.age))


def others(seen: Seen) -> list[OtherSandbox]:
    """Sandboxes under our prefix that belong to no listed session, races, servers and kept ones among them."""
    if seen.sandboxes is None:
        return []
    listed = {_box_name(seen, session.environment_id, session.id) for session in _served(seen)}
    pools = {environment.pool for environment in seen.settings.environments.values() if environment.pool}
    found = []
    for box in seen.sandboxes.rows:
        kind = (
            _NAMELESS if not box.name and box.pool_id in pools else _kind(names.parse(seen.settings.prefix, box.name))
        )
        if kind is None or box.name in listed or box.status in ENDED:
            continue
        age = seen.now - box.created_at.timestamp() if box.created_at is not None else None
        found.append(OtherSandbox(box.name or box.id, box.id, kind, box.status.value, age))
    return sorted(found, key=lambda box: (box.kind, box.name))


def _kind(name: names.SandboxName) -> str | None:
    match name:
        case names.SessionSandbox():
            return "session, not listed"
        case names.GoneSandbox():
            return "marked for its end"
        case names.RaceSandbox():
            return "race"
        case names.RaceRecordSandbox():
            return "race record"
        case names.PreparedSandbox():
            return "prepared start"
        case names.RaceLedgerSandbox():
            return "race ledger"
        case names.KeptSnapshotSandbox() | names.KeptSandbox():
            return "kept"
        case names.ServerSandbox():
            return "server"
        case names.ForeignName():
            return None


def _newest_items(seen: Seen) -> dict[str, Item]:
    found: dict[str, Item] = {}
    for listing in seen.items.values():
        for item in listing.rows:
            if not names.is_session_id(item.session_id):
                continue
            key = names.canonical_session_id(item.session_id)
            before = found.get(key)
            if before is None or (item.state in _LIVE, item.created_at) > (before.state in _LIVE, before.created_at):
                found[key] = item
    return found


def _session_boxes(seen: Seen) -> Mapping[str, SandboxRecord] | None:
    if seen.sandboxes is None:
        return None
    return {box.name: box for box in seen.sandboxes.rows if box.name and box.status not in ENDED}


def _box_name(seen: Seen, environment_id: str, session_id: str) -> str:
    return names.sandbox_name(seen.settings.prefix, environment_id, session_id)


def _row(
    seen: Seen, session: SessionListing, item: Item | None, boxes: Mapping[str, SandboxRecord] | None
) -> SessionRow:
    box = boxes.get(_box_name(seen, session.environment_id, session.id)) if boxes is not None else None
    live = item if item is not None and item.state in _LIVE else None
    calls = seen.calls.get(session.id)
    signs = [session.updated_at, live.latest_heartbeat_at if live is not None else None]
    return SessionRow(
        session=session.id,
        title=session.title,
        environment=session.environment_id,
        state=_state(seen, session, live, calls, box),
        item=item.id if item is not None else "",
        item_state=item.state.value if item is not None else "",
        sandbox=box.id if box is not None else "",
        sandbox_state=box.status.value if box is not None else ("" if boxes is not None else "unknown"),
        age=seen.now - session.created_at,
        seen=min((max(0.0, seen.now - sign) for sign in signs if sign is not None), default=None),
        problem=_problem(seen, session, live, calls, box),
        tokens_in=session.tokens_in,
        tokens_out=session.tokens_out,
        cost=session.cost,
        deaths=seen.deaths.get(box.id) if box is not None else None,
    )


def _state(
    seen: Seen, session: SessionListing, item: Item | None, calls: tuple[Call, ...] | None, box: SandboxRecord | None
) -> str:
    if session.archived:
        return "archived"
    if session.status is SessionStatus.TERMINATED:
        return "terminated"
    for call in calls or ():
        since = f" for {in_words(seen.now - call.began)}" if call.began is not None else ""
        if call.asks:
            return f"waits for a person: {call.name}{since}"
        if call.custom:
            return f"waits for the custom tool {call.name}{since}"
        verb = "" if item is not None and item.state is ItemState.ACTIVE else "waits: "
        return f"{verb}{call.name} {summarise(call.input)}".rstrip() + since
    if session.status is SessionStatus.RESCHEDULING:
        return "waits to try again"
    if session.status is SessionStatus.RUNNING:
        return "works"
    if box is not None and box.status in (SandboxStatus.SUSPENDED, SandboxStatus.SUSPENDING):
        return "asleep"
    return session.status.value


def _problem(
    seen: Seen, session: SessionListing, item: Item | None, calls: tuple[Call, ...] | None, box: SandboxRecord | None
) -> str:
    times = seen.settings.times
    tools = [call for call in calls or () if not call.asks and not call.custom]
    if item is None:
        known = session.environment_id in seen.items and seen.items[session.environment_id].complete
        if known and tools and session.status is not SessionStatus.TERMINATED:
            return "its calls wait and no work item is there: make tick, then make repair"
        return ""
    match item.state:
        case ItemState.QUEUED if seen.now - item.created_at > times.reclaim * 2:
            return f"queued for {in_words(seen.now - item.created_at)}: does anything serve? make serve, or make poll"
        case ItemState.STARTING if seen.now - (item.acknowledged_at or seen.now) > times.stranded:
            return "acked, and no worker ever beat: make tick repairs it"
        case ItemState.ACTIVE if item.latest_heartbeat_at and seen.now - item.latest_heartbeat_at > _LEASE_SECONDS:
            return f"its worker is silent for {in_words(seen.now - item.latest_heartbeat_at)}: make tick"
        case ItemState.ACTIVE if box is not None and box.status is SandboxStatus.SUSPENDED:
            return "its sandbox sleeps while it should work: make tick wakes it"
        case _:
            return ""


def in_words(seconds: float) -> str:
    """A time for people, of one or two units."""
    whole = max(0, round(seconds))
    for size, unit, below, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit} {rest} {small}" if rest and whole < size * 10 else f"{whole // size} {unit}"
    return f"{whole} s"
