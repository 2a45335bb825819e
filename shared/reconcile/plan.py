"""What is due: a pure function from what was seen to the repairs, so that every rule can be tested by itself.

Nothing here acts. A repair that would end, suspend or release something is looked at once more before it is done
(acting.py), and whatever the view does not know for sure leads to no repair.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from shared import names
from shared.ports import (
    Absent,
    ItemState,
    ListedItem,
    SandboxRecord,
    SandboxStatus,
    SessionRecord,
    SessionStatus,
    SnapshotRecord,
)
from shared.reconcile.world import World
from shared.reports import Act
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Lookups:
    """What look-ups that succeeded have said, by session id; one that failed is in neither.

    waiting: the idle sessions that wait for a worker to answer a call.
    """

    sessions: Mapping[str, SessionRecord | Absent]
    waiting: frozenset[str] = frozenset()

    @property
    def idle(self) -> list[str]:
        return [
            session_id
            for session_id, session in self.sessions.items()
            if isinstance(session, SessionRecord) and session.status is SessionStatus.IDLE and not session.archived
        ]


_DEAD: Final = (SandboxStatus.FAILED, SandboxStatus.TIMEOUT)
_SLEEPERS: Final = "suspend-"
_AFTER_A_RACE: Final = 300.0  # seconds that promotion and reaping may take once a race's deadline has passed
_TOUCH_SLACK: Final = 120.0  # seconds that two ticks may be apart


@dataclass(frozen=True, slots=True)
class Repair:
    """One due repair. `name` is the sandbox's proper name, as its session has it."""

    act: Act
    target: str
    why: str
    name: str = ""
    sandbox: SandboxRecord | None = None
    item: ListedItem | None = None
    session_id: str | None = None


def sessions_to_look_up(world: World, settings: Settings) -> list[str]:
    """Sessions whose state decides something and is not known: those with a sandbox and surely without an item, and
    those whose last item was stopped lately and whose sandbox is gone. The caller asks as many as it may."""
    asked: dict[str, float] = {}
    for sandbox in world.sandboxes:
        session_id = _session_of(world, settings, sandbox.name or "")
        if session_id is None or not (
            world.surely_without_item(sandbox.name or "") or _left_on_the_queue(world, settings, sandbox.name or "")
        ):
            continue
        if sandbox.status in (SandboxStatus.RUNNING, SandboxStatus.SUSPENDED) and _quiet(world, settings, sandbox):
            sign = world.last_sign(sandbox.name or "", sandbox)
            asked[session_id] = sign.timestamp() if sign is not None else 0.0
    held = {sandbox.name for sandbox in world.sandboxes}
    for name, item in (world.items.latest if world.items is not None else {}).items():
        if world.listed and name not in held and _left_lately(world, item, name):
            asked.setdefault(item.session_id, item.created_at.timestamp())
    # Rotate what does not fit into one tick's budget: the minute decides where the ring begins.
    minute = int(world.now.timestamp() // 60)
    return sorted(asked, key=lambda session: (zlib.crc32(f"{session}{minute}".encode()), session))


def due(world: World, lookups: Lookups, settings: Settings, environment_id: str) -> list[Repair]:
    """Every repair that is due by this view, most urgent first."""
    repairs = [
        *_items(world, settings),
        *_stopped_by_nobody(world, settings),
        *_sandboxes(world, lookups, settings, environment_id),
        *_unfinished(world, lookups, settings),
    ]
    order = {act: place for place, act in enumerate(Act)}
    return sorted(repairs, key=lambda repair: order[repair.act])


def snapshots_due(
    snapshots: list[SnapshotRecord], world: World, settings: Settings, environment_id: str
) -> Iterator[Repair]:
    """Snapshots of our sandboxes that no race can still be using (docs/reconciler.md#snapshots). What the service keeps
    of a sleeping sandbox is a snapshot too, known by its id, and not ours to touch
    (docs/wire/tensorlake.md#6-snapshots)."""
    longest = timedelta(seconds=2 * (settings.races.deadline + settings.times.bind) + _AFTER_A_RACE)
    for snapshot in snapshots:
        source = world.project_sandboxes.get(snapshot.sandbox_id)
        if source is None or snapshot.created_at is None or snapshot.filesystem is None:
            continue
        if snapshot.id.startswith(_SLEEPERS):
            continue
        if not _ours(source.name or "", settings, environment_id) or snapshot.created_at > world.now - longest:
            continue
        yield Repair(Act.DELETE_SNAPSHOT, snapshot.id, "left by a race")


def _items(world: World, settings: Settings) -> Iterator[Repair]:
    by_name = {sandbox.name: sandbox for sandbox in world.sandboxes if sandbox.name}
    for name, item in (world.items.live if world.items is not None else {}).items():
        sandbox = by_name.get(name)
        asleep = sandbox is not None and sandbox.status is SandboxStatus.SUSPENDED
        if sandbox is not None and asleep and item.state in (ItemState.STARTING, ItemState.ACTIVE):
            yield Repair(Act.RESUME, name, f"its item is {item.state.value}", name, sandbox, item)
        elif item.state is ItemState.STARTING and item.latest_heartbeat_at is None:
            since = item.acknowledged_at or item.created_at
            if world.now - since > timedelta(seconds=settings.times.stranded):
                yield Repair(Act.RELEASE, item.id, "acked and never beaten", name, sandbox, item, item.session_id)
        elif item.state is ItemState.ACTIVE and sandbox is not None and sandbox.status is SandboxStatus.RUNNING:
            began = item.acknowledged_at or item.created_at
            if world.now - began > timedelta(seconds=settings.worker_lifetime):
                yield Repair(Act.STOP_WORKER, name, "past its lifetime", name, sandbox, item)
            elif _touch_due(world, sandbox):
                yield Repair(Act.TOUCH, name, "its idle time-out must not come", name, sandbox, item)


def _stopped_by_nobody(world: World, settings: Settings) -> Iterator[Repair]:
    """A healthcheck whose stop failed after it was acked stays `starting`: no worker will ever beat it."""
    for item in world.items.others if world.items is not None else ():
        since = item.acknowledged_at or item.created_at
        never = item.state is ItemState.STARTING and item.latest_heartbeat_at is None
        if never and world.now - since > timedelta(seconds=settings.times.stranded):
            yield Repair(Act.STOP_ITEM, item.id, f"a {item.kind} that was acked and not stopped", item=item)


def _sandboxes(world: World, lookups: Lookups, settings: Settings, environment_id: str) -> Iterator[Repair]:
    held = {sandbox.name for sandbox in world.sandboxes}
    for sandbox in world.sandboxes:
        name = sandbox.name or ""
        parsed = names.parse(settings.prefix, name)
        if not names.belongs_to(parsed, environment_id):
            continue
        if isinstance(parsed, names.RaceSandbox | names.KeptSnapshotSandbox):
            if parsed.dead_man < world.now.timestamp():
                yield Repair(Act.END_RACE, name, "its race is long over", name, sandbox)
        elif isinstance(parsed, names.GoneSandbox):
            proper = parsed.proper
            if world.live_item(proper) is not None and proper not in held:
                yield Repair(Act.UNMARK, name, "its session has work after all", proper, sandbox)
            elif world.now.timestamp() - parsed.marked_at >= settings.reconcile.end_grace:
                yield Repair(Act.END_MARKED, name, "marked on an earlier tick", proper, sandbox)
        elif sandbox.status in _DEAD:
            yield Repair(Act.END_FAILED, name, f"it is {sandbox.status.value}", name, sandbox)
        elif world.surely_without_item(name):
            yield from _without_item(world, lookups, settings, sandbox)
        elif _left_on_the_queue(world, settings, name):
            session_id = _session_of(world, settings, name)
            if session_id is not None and isinstance(lookups.sessions.get(session_id), Absent):
                yield Repair(Act.MARK, name, "its session is deleted", name, sandbox, None, session_id)


def _without_item(world: World, lookups: Lookups, settings: Settings, sandbox: SandboxRecord) -> Iterator[Repair]:
    name = sandbox.name or ""
    session_id = _session_of(world, settings, name)
    session = lookups.sessions.get(session_id) if session_id is not None else None
    match session:
        case None:
            return
        case Absent():
            yield Repair(Act.MARK, name, "its session is deleted", name, sandbox, None, session_id)
        case SessionRecord(status=SessionStatus.TERMINATED) | SessionRecord(archived=True):
            yield Repair(Act.MARK, name, "its session is over", name, sandbox, None, session_id)
        case SessionRecord(status=SessionStatus.IDLE) if sandbox.status is SandboxStatus.RUNNING:
            if not _quiet(world, settings, sandbox) or session_id in lookups.waiting:
                return
            yield Repair(Act.SUSPEND, name, "no item, no worker, idle session", name, sandbox, None, session_id)
        case SessionRecord() if sandbox.status is SandboxStatus.SUSPENDED:
            signs = [world.last_sign(name, sandbox), session.updated_at]
            last = max((sign for sign in signs if sign is not None), default=world.now)
            if world.now - last > timedelta(seconds=settings.reconcile.retention):
                yield Repair(Act.MARK, name, "it has slept longer than the retention", name, sandbox, None, session_id)


def _unfinished(world: World, lookups: Lookups, settings: Settings) -> Iterator[Repair]:
    """Idle sessions that wait for a worker which nobody will send. Calls may be seen before their item is queued, so
    a session that has just come to wait is left alone."""
    settled = timedelta(seconds=settings.times.handover)
    for session_id in sorted(lookups.waiting):
        session = lookups.sessions[session_id]
        since = session.updated_at if isinstance(session, SessionRecord) else None
        if since is not None and world.now - since < settled:
            continue
        yield Repair(Act.FINISH, session_id, "unanswered calls and no item", session_id=session_id)


def _left_lately(world: World, item: ListedItem, name: str) -> bool:
    """Stopped within the last hour: perhaps by a release that did not come to its interrupt, or by a worker that gave
    up before it served, in a sandbox that is gone since."""
    if item.state is not ItemState.STOPPED or item.stopped_at is None:
        return False
    return world.surely_without_item(name) and world.now - item.stopped_at < timedelta(hours=1)


def _left_on_the_queue(world: World, settings: Settings, name: str) -> bool:
    """Queued for longer than any bind takes: perhaps the entry of a deleted session
    (docs/wire/anthropic.md#33-state-machine)."""
    item = world.live_item(name)
    if item is None or item.state is not ItemState.QUEUED:
        return False
    return world.now - item.created_at > timedelta(seconds=2 * settings.times.reclaim)


def _quiet(world: World, settings: Settings, sandbox: SandboxRecord) -> bool:
    """No sign of work for a while. A sandbox that nothing is known of counts as quiet; it is looked at again."""
    sign = world.last_sign(sandbox.name or "", sandbox)
    return sign is None or world.now - sign > timedelta(seconds=settings.reconcile.idle_grace)


def _touch_due(world: World, sandbox: SandboxRecord) -> bool:
    """Three times in each idle time-out, each sandbox at a phase of its own, so that one tick touches few of them."""
    if not sandbox.timeout_seconds:
        return False
    period = sandbox.timeout_seconds / 3
    phase = zlib.crc32(sandbox.id.encode()) % max(1, int(period))
    return (world.now.timestamp() - phase) % period < min(period, _TOUCH_SLACK)


def _session_of(world: World, settings: Settings, name: str) -> str | None:
    """The session of a sandbox by its name, or by an item where the name holds only a hash."""
    parsed = names.parse(settings.prefix, name)
    if not isinstance(parsed, names.SessionSandbox):
        return None
    if parsed.session_id is not None:
        return parsed.session_id
    item = world.items.latest.get(name) if world.items is not None else None
    return item.session_id if item is not None else None


def _ours(name: str, settings: Settings, environment_id: str) -> bool:
    return names.belongs_to(names.parse(settings.prefix, name), environment_id)
