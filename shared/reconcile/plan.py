"""What is due: a pure function from what was seen to the repairs, so that every rule can be tested by itself.

Nothing here acts. A repair that would end, suspend or release something is looked at once more before it is done
(executor.py), and whatever the world does not know for sure leads to no repair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, assert_never

from shared import names
from shared.ports import (
    BROKEN,
    Absent,
    ItemState,
    ListedItem,
    SandboxStatus,
    SessionRecord,
    SessionStatus,
    SnapshotRecord,
)
from shared.races.cells import is_of_before
from shared.reconcile.lookups import Lookups, idle, in_turn, left_on_the_queue, quiet, touch_due
from shared.reconcile.repairs import (
    AnswerCalls,
    DeleteSnapshot,
    EndFailed,
    EndLifetime,
    EndMarked,
    EndNameless,
    EndRace,
    EndUndated,
    LetSleep,
    Mark,
    Release,
    Repair,
    Resume,
    StopItem,
    Suspend,
    Touch,
    Unmark,
)
from shared.reconcile.world import LONGEST_LIFE, OVER, OurSandbox, World
from shared.reports import Act
from shared.settings import Settings

ASLEEP: Final = "suspend-"
_AFTER_A_RACE: Final = 300.0  # seconds that promotion and reaping may take once a race's deadline has passed
_LEASE: Final = (
    300.0  # seconds from a beat until the service takes the lease away (docs/wire/anthropic.md#32-endpoints)
)
_WIND_DOWN: Final = 240.0  # seconds: a tool may run for 150 and its result must be posted
_NOBODY_LEFT: Final = 3600.0  # seconds without a beat after which no process counts as a worker
_LEAVING: Final = 300.0  # seconds after a session's last sign of work in which its worker may be on its way out
_URGENCY: Final = {act: place for place, act in enumerate(Act)}


def due(world: World, lookups: Lookups, settings: Settings) -> list[Repair]:
    """Every repair that is due by this view, most urgent first."""
    repairs: list[Repair] = [
        *_of_items(world, settings),
        *_stopped_by_nobody(world, settings),
        *_of_sandboxes(world, lookups, settings),
        *_nameless(world, settings),
        *_unanswered(world, lookups, settings),
        *_waiting_for_a_person(world, lookups, settings),
    ]
    return sorted(repairs, key=lambda repair: (_URGENCY[repair.act], in_turn(repair.target, world.now), repair.target))


def snapshots_due(snapshots: Iterable[SnapshotRecord], world: World, settings: Settings) -> Iterator[DeleteSnapshot]:
    """Snapshots that no race can still be using. A race's are known for certain by the race's name of the sandbox that
    they were taken of, or of one that was made of them; any other one of a session's own sandbox may be a person's and
    is left alone (`unclaimed`)."""
    longest = timedelta(seconds=2 * (settings.races.deadline + settings.times.bind) + _AFTER_A_RACE)
    made_of = _made_of(world)
    for snapshot in snapshots:
        children = made_of.get(names.snapshot_tag(snapshot.id))
        if children is not None and not snapshot.id.startswith(ASLEEP):
            old = snapshot.created_at is not None and world.now - snapshot.created_at >= longest
            # One that lives past its time proves that the race is dead: a living race renews its sandboxes' names.
            if children.dead_man <= world.now.timestamp() and (children.one_lives or old):
                yield DeleteSnapshot(snapshot, "left by a race that was killed")
            continue
        kind = _source(snapshot, world)
        if not isinstance(kind, names.RaceSandbox) or kind.dead_man > world.now.timestamp():
            continue
        if snapshot.filesystem is not None and snapshot.created_at is not None:
            age = world.now - snapshot.created_at
            if age >= longest:
                yield DeleteSnapshot(snapshot, "left by a race")


@dataclass(slots=True)
class _Children:
    """The sandboxes that a race has made of one snapshot: the latest of their dead-man times."""

    dead_man: int = 0
    one_lives: bool = False


def _made_of(world: World) -> dict[str, _Children]:
    """By the tag of the snapshot. Sandboxes that have ended count as well, as long as the service lists them."""
    found: dict[str, _Children] = {}
    for sandbox_id, kind in world.kinds.items():
        if isinstance(kind, names.RaceSandbox) and kind.snapshot_tag:
            children = found.setdefault(kind.snapshot_tag, _Children())
            children.dead_man = max(children.dead_man, kind.dead_man)
            children.one_lives |= world.project[sandbox_id].status is not SandboxStatus.TERMINATED
    return found


def unclaimed(snapshots: Iterable[SnapshotRecord], world: World) -> Iterator[SnapshotRecord]:
    """Snapshots of session sandboxes: taken by a person, or by a race that was killed. Nothing tells which, so nothing
    deletes them; the doctor names them."""
    for snapshot in snapshots:
        if isinstance(_source(snapshot, world), names.SessionSandbox | names.GoneSandbox):
            yield snapshot


def _source(snapshot: SnapshotRecord, world: World) -> names.SandboxName | None:
    """What the snapshot was taken of. What the service keeps of a sleeping sandbox is a snapshot too, known by its id,
    and not ours to touch (docs/wire/tensorlake.md#6-snapshots)."""
    return None if snapshot.id.startswith(ASLEEP) else world.kinds.get(snapshot.sandbox_id)


def _of_items(world: World, settings: Settings) -> Iterator[Repair]:
    by_name = {sandbox.name: sandbox for sandbox in world.sandboxes}
    for name, item in (world.items.live if world.items is not None else {}).items():
        sandbox = by_name.get(name)
        held = (world.now - (item.acknowledged_at or item.created_at)).total_seconds()
        match item.state:
            case ItemState.QUEUED | ItemState.STOPPED | ItemState.UNKNOWN:
                continue
            case ItemState.ACTIVE | ItemState.STOPPING if held > settings.worker_lifetime:
                yield EndLifetime(item, name, "past its lifetime", held - settings.worker_lifetime)
            case ItemState.STARTING:
                yield from _starting(world, settings, item, name, sandbox, held)
            case ItemState.ACTIVE:
                yield from _active(world, settings, item, name, sandbox)
            case ItemState.STOPPING:
                yield from _stopping(world, settings, item, name, held)
            case _:
                assert_never(item.state)


def _starting(
    world: World, settings: Settings, item: ListedItem, name: str, sandbox: OurSandbox | None, held: float
) -> Iterator[Repair]:
    """Nobody has beaten since the ack, whatever `latest_heartbeat_at` still says of a lease before it was queued
    again. When a worker's own patience is over too, no silent or sleeping sandbox can have one that still serves."""
    given_up = held > settings.times.stranded + settings.times.gate + 60.0
    hung = held > settings.times.poison_age
    if sandbox is not None and sandbox.status is SandboxStatus.SUSPENDED and not given_up:
        yield Resume(sandbox, "its item is starting")
    elif held > settings.times.stranded:
        yield Release(item, name, "acked and never beaten", silence_tells=given_up, whatever_it_says=hung)


def _active(
    world: World, settings: Settings, item: ListedItem, name: str, sandbox: OurSandbox | None
) -> Iterator[Repair]:
    silent = (world.now - (item.latest_heartbeat_at or item.acknowledged_at or item.created_at)).total_seconds()
    if silent > max(_NOBODY_LEFT, settings.times.stranded):
        yield Release(item, name, "its lease was not renewed", silence_tells=True, whatever_it_says=True)
    elif sandbox is not None and sandbox.status is SandboxStatus.SUSPENDED:
        yield Resume(sandbox, "its item is active")
    elif silent > _LEASE + settings.times.stranded:
        yield Release(item, name, "its lease was not renewed")
    elif sandbox is not None and sandbox.status is SandboxStatus.RUNNING and touch_due(world.now, sandbox):
        yield Touch(sandbox, "its idle time-out must not come")


def _stopping(world: World, settings: Settings, item: ListedItem, name: str, held: float) -> Iterator[Repair]:
    """A worker learns of it on its next beat, lets its tool finish, posts the result and stops the item."""
    asked = item.stop_requested_at or item.latest_heartbeat_at
    waited = held if asked is None else (world.now - asked).total_seconds()
    patience = max(_WIND_DOWN, settings.times.stranded)
    if waited > patience:
        yield Release(
            item,
            name,
            "asked to stop, and nobody stops it",
            silence_tells=waited > 2 * patience,
            whatever_it_says=waited > 4 * patience,
        )


def _stopped_by_nobody(world: World, settings: Settings) -> Iterator[Repair]:
    """A healthcheck whose stop failed after it was acked stays `starting`: no worker will ever beat it."""
    for item in world.items.others if world.items is not None else ():
        held = world.now - (item.acknowledged_at or item.created_at)
        left = item.state in (ItemState.STARTING, ItemState.STOPPING)
        if left and held > timedelta(seconds=settings.times.stranded):
            yield StopItem(item, f"a {item.kind} that was acked and not stopped")


def _of_sandboxes(world: World, lookups: Lookups, settings: Settings) -> Iterator[Repair]:
    held = {sandbox.name for sandbox in world.sandboxes}
    broken = {sandbox.name for sandbox in world.sandboxes if sandbox.status in BROKEN}
    for sandbox in world.sandboxes:
        match sandbox.kind:
            case names.SessionSandbox():  # nearly all are
                if sandbox.status in BROKEN:
                    yield EndFailed(sandbox, f"it is {sandbox.status.value}: its session's next workspace is new")
                else:
                    yield from _perhaps_at_work(world, sandbox)
                    yield from _of_session(world, lookups, settings, sandbox)
            case names.RaceSandbox(dead_man=dead_man) | names.KeptSnapshotSandbox(dead_man=dead_man):
                if dead_man < world.now.timestamp():
                    yield EndRace(sandbox, "its race is long over")
            case names.RaceRecordSandbox():
                if sandbox.status in BROKEN:
                    yield EndRace(sandbox, f"its record is {sandbox.status.value}")
                elif sandbox.record.created_at is None:
                    yield from _undated(world, sandbox)
                elif _record_is_old(world, settings, sandbox):
                    yield EndRace(sandbox, "its record is older than RACE_RECORD_SECONDS")
            case names.RaceLedgerSandbox():
                if sandbox.status in BROKEN:
                    yield EndRace(sandbox, f"its ledger is {sandbox.status.value}")
                elif sandbox.record.created_at is None:
                    yield from _undated(world, sandbox)
                elif is_of_before(sandbox.record.created_at, world.now.timestamp()):
                    yield EndRace(sandbox, "its ledger is of an earlier day")
            case names.GoneSandbox(proper=proper, marked_at=marked_at):
                if world.live_item(proper) is not None and proper not in held:
                    yield Unmark(sandbox, "its session has work after all", proper)
                elif world.live_item(proper) is not None and proper in broken:
                    pass  # gets its name back once the broken one, made meanwhile, has gone
                elif world.now.timestamp() - marked_at >= settings.reconcile.end_grace:
                    yield EndMarked(sandbox, "marked on an earlier tick", proper)
            case names.PreparedSandbox():
                continue  # reconcile/prepared.py, which wants to know its snapshots
            case names.KeptSandbox() | names.ServerSandbox() | names.ForeignName():
                continue
            case _:
                assert_never(sandbox.kind)


def _undated(world: World, sandbox: OurSandbox) -> Iterator[Repair]:
    from shared.races.undated import is_its_turn  # needs pydantic, and is as good as never needed

    if is_its_turn(sandbox.name, world.now.timestamp()):
        yield EndUndated(sandbox, "by what stands in it, it is past its time")


def _record_is_old(world: World, settings: Settings, sandbox: OurSandbox) -> bool:
    born = sandbox.record.created_at
    return born is not None and (world.now - born).total_seconds() > settings.races.record_seconds


def _nameless(world: World, settings: Settings) -> Iterator[Repair]:
    """Sandboxes of a configured pool that got no name: no session finds them. An item is given back R after its claim,
    so nobody is about to name an older one. Warm containers that nobody claimed are no sandboxes
    (docs/wire/tensorlake.md#512-pools)."""
    pools = {environment.pool for environment in settings.environments.values() if environment.pool}
    grace = timedelta(seconds=settings.times.reclaim)
    for record in world.project.values() if pools else ():
        if record.pool_id not in pools or record.name or record.status in OVER or record.created_at is None:
            continue
        if world.now - record.created_at > grace:
            yield EndNameless(
                OurSandbox(record, "", names.ForeignName()), f"of the pool {record.pool_id}, without a name"
            )


def _perhaps_at_work(world: World, sandbox: OurSandbox) -> Iterator[Repair]:
    """Among more items than a pass reads its own may be one that was not seen: unknown, never gone. Its session, which
    is looked up in its turn, decides whether it sleeps."""
    if world.perhaps_at_work(sandbox) and touch_due(world.now, sandbox):
        yield Touch(sandbox, "its item may be among those that were not read")


def _of_session(world: World, lookups: Lookups, settings: Settings, sandbox: OurSandbox) -> Iterator[Repair]:
    session_id = world.session_of(sandbox)
    session = lookups.sessions.get(session_id) if session_id is not None else None
    if session_id is None or session is None or world.items is None:
        return
    live = world.live_item(sandbox.name)
    match session:
        case Absent() if live is None or left_on_the_queue(world, settings, sandbox.name):
            yield Mark(sandbox, "its session is deleted", session_id)
        case SessionRecord() if live is not None:
            return
        case SessionRecord(status=SessionStatus.TERMINATED) | SessionRecord(archived=True):
            yield Mark(sandbox, "its session is over", session_id)
        case SessionRecord(status=SessionStatus.IDLE) if sandbox.status is SandboxStatus.RUNNING:
            if quiet(world, settings, sandbox) and not lookups.waits(session_id):
                sign = max(filter(None, (world.last_sign(sandbox.name, sandbox), session.updated_at)), default=None)
                leaving = sign is not None and world.now - sign < timedelta(seconds=_LEAVING)
                proven = world.surely_without_item(sandbox.name)
                why = "no item, no worker, idle session"
                yield Suspend(sandbox, why, session_id, ask=leaving or not proven, proven=proven)
        case SessionRecord() if sandbox.status is SandboxStatus.SUSPENDED:
            if _unused(world, settings, sandbox, session):
                yield Mark(sandbox, "it has slept longer than the retention", session_id)


def _unused(world: World, settings: Settings, sandbox: OurSandbox, session: SessionRecord) -> bool:
    signs = [world.last_sign(sandbox.name, sandbox), session.updated_at]
    last = max((sign for sign in signs if sign is not None), default=world.now)
    proven = world.surely_without_item(sandbox.name) or (
        session.status is SessionStatus.IDLE and world.now - last > LONGEST_LIFE
    )
    return proven and world.now - last > timedelta(seconds=settings.reconcile.retention)


def _unanswered(world: World, lookups: Lookups, settings: Settings) -> Iterator[Repair]:
    """Idle sessions that wait for a worker which nobody will send. Calls may be seen before their item is queued, so
    a session that has just come to wait is left alone."""
    if world.items is None:
        return
    served = {names.canonical_session_id(item.session_id) for item in world.items.live.values()}
    for session_id in sorted(set(lookups.calls) - served):
        calls, session = lookups.calls[session_id], lookups.sessions.get(session_id)
        since = session.updated_at if isinstance(session, SessionRecord) else None
        if not calls.ids or (since is not None and world.now - since < timedelta(seconds=settings.times.handover)):
            continue
        yield AnswerCalls(session_id, calls, "unanswered calls and no item")


def _waiting_for_a_person(world: World, lookups: Lookups, settings: Settings) -> Iterator[Repair]:
    """Its worker is asked to end, which stops its item; a later tick suspends the sandbox, and the service queues an
    item when the answer comes."""
    patience = timedelta(seconds=settings.reconcile.waiting_sleep)
    for sandbox in world.sandboxes if patience else ():
        item, session_id = world.live_item(sandbox.name), world.session_of(sandbox)
        if item is None or session_id is None or item.state is not ItemState.ACTIVE:
            continue
        session = lookups.sessions.get(session_id)
        if not isinstance(session, SessionRecord) or not idle(session) or lookups.waits(session_id):
            continue
        if session.updated_at is not None and world.now - session.updated_at > patience:
            yield LetSleep(sandbox, "its session waits for a person", session_id)
