"""Which sessions a tick asks about, and in which order: cost follows what changes, not what exists.

Awake sandboxes cost money and stuck sessions keep somebody waiting, so both are asked about first, within
RECONCILE_LOOKUPS. Where the list of items is longer than a pass reads, an awake sandbox may have an item that was not
seen: those are asked about a part a tick, on a ring. Sleepers come last, a few each tick, on another one: what
`ring_share` leaves of a tick's calls is spent on them. All copies walk the rings from places of their own.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from shared.ports import (
    Absent,
    ItemState,
    ListedItem,
    OpenCalls,
    SandboxStatus,
    SessionRecord,
    SessionStatus,
)
from shared.reconcile.world import OurSandbox, World
from shared.settings import Settings

IDLE_TICK_CALLS: Final = 18  # of the 20 that an idle tick may cost; two are the drain's
_PAGE: Final = 100  # rows a page of both lists
_GOLDEN: Final = 0.6180339887498949  # strides by it visit a ring evenly, whatever the period of the ticks
_LATELY: Final = timedelta(hours=1)
_EACH_TICK: Final = timedelta(minutes=10)
_TICK_GAP: Final = 330.0  # seconds: ticks come every five minutes at least
_AT_WORK: Final = (SessionStatus.RUNNING, SessionStatus.RESCHEDULING)
_KEPT: Final = 4  # one look-up of so many is kept for doubtful sessions
_MOST_TICKS: Final = 60  # of one round of the ring of doubtful sessions


@dataclass(frozen=True, slots=True)
class Lookups:
    """What look-ups that succeeded have said, by session id; one that failed is in neither.

    calls: of sessions that are idle, the calls that wait for a worker.
    """

    sessions: Mapping[str, SessionRecord | Absent] = field(default_factory=dict)
    calls: Mapping[str, OpenCalls] = field(default_factory=dict)

    def rests(self, session_id: str) -> bool:
        """Whether it was looked up and is not at work."""
        session = self.sessions.get(session_id)
        return session is not None and not (
            isinstance(session, SessionRecord) and session.status in _AT_WORK and not session.archived
        )

    def waits(self, session_id: str) -> bool:
        """Also where its calls could not be looked at: nothing is known then."""
        calls = self.calls.get(session_id)
        return calls is None or bool(calls.ids)


def idle(session: SessionRecord | Absent) -> bool:
    return isinstance(session, SessionRecord) and session.status is SessionStatus.IDLE and not session.archived


@dataclass(frozen=True, slots=True)
class Questions:
    """Session ids. `urgent`: most urgent first. `doubtful`: whose sandbox is awake and whose item may be one that was
    not read, in this tick's order of their ring. `sleepers`: this tick's part of theirs."""

    urgent: Sequence[str]
    doubtful: Sequence[str]
    sleepers: Sequence[str]

    def within(self, most: int) -> tuple[Sequence[str], Sequence[str]]:
        """The urgent and the doubtful ones that are asked about when `most` may be."""
        urgent = self.urgent[: most - min(len(self.doubtful), max(1, most // _KEPT))]
        return urgent, self.doubtful[: most - len(urgent)]

    def too_many_doubts(self, asked: Sequence[str]) -> bool:
        """Whether a ring of which so many are asked about in a tick takes longer than an hour of ticks a minute."""
        return len(self.doubtful) > _MOST_TICKS * len(asked)


def questions(world: World, settings: Settings, place: float) -> Questions:
    """What decides something and is not known. `place` (0 to 1) is where this copy's ring begins."""
    asleep: list[str] = []
    awake: list[str] = []
    doubtful: list[str] = []
    waiting: list[str] = []
    patient: list[str] = []
    for sandbox in world.sandboxes:
        session_id = world.session_of(sandbox)
        if session_id is None or world.items is None:
            continue
        if world.live_item(sandbox.name) is None:
            if sandbox.status is SandboxStatus.SUSPENDED:
                asleep.append(session_id)
            elif sandbox.status is SandboxStatus.RUNNING and quiet(world, settings, sandbox):
                (doubtful if world.perhaps_at_work(sandbox) else awake).append(session_id)
        elif left_on_the_queue(world, settings, sandbox.name):
            waiting.append(session_id)
        elif settings.reconcile.waiting_sleep and _waits_long(world, settings, sandbox):
            patient.append(session_id)
    urgent = [*_in_turn(awake, world.now), *_in_turn(list(_left_lately(world)), world.now)]
    return Questions(
        [*urgent, *_in_turn(waiting, world.now), *_in_turn(patient, world.now)],
        _ring(doubtful, world, place),
        _ring(asleep, world, place)[: ring_share(world)],
    )


def ring_share(world: World) -> int:
    """Calls that are left for sleepers when both lists are read."""
    items = world.items.count if world.items is not None else 0
    pages = -(-len(world.project) // _PAGE) + -(-items // _PAGE)
    return max(2, IDLE_TICK_CALLS - max(2, pages) - 1)


def in_turn(target: str, now: datetime) -> int:
    """A place in the order of equals that changes with the minute, so that what failed once is not always first."""
    return zlib.crc32(f"{target}{int(now.timestamp() // 60)}".encode())


def quiet(world: World, settings: Settings, sandbox: OurSandbox) -> bool:
    """No sign of work for a while. A sandbox that nothing is known of counts as quiet; it is looked at again."""
    sign = world.last_sign(sandbox.name, sandbox)
    return sign is None or world.now - sign > timedelta(seconds=settings.reconcile.idle_grace)


def left_on_the_queue(world: World, settings: Settings, name: str) -> bool:
    """Queued for longer than any bind takes: perhaps the entry of a deleted session
    (docs/wire/anthropic.md#33-state-machine)."""
    item = world.live_item(name)
    if item is None or item.state is not ItemState.QUEUED:
        return False
    return world.now - item.created_at > timedelta(seconds=2 * settings.times.reclaim)


def touch_due(now: datetime, sandbox: OurSandbox) -> bool:
    return touch_left(now, sandbox) > 0


def touch_left(now: datetime, sandbox: OurSandbox) -> float:
    """Seconds in which it is to be touched; 0 where it is not due.

    By the next tick: in each half of an idle time-out there is a window as long as two ticks may be apart, so that one
    of them falls into it. Each sandbox has a phase of its own, so that one tick touches few of them.
    """
    timeout = sandbox.record.timeout_seconds
    if not timeout:
        return 0.0
    period = max(1, timeout // 2)
    phase = zlib.crc32(sandbox.id.encode()) % period
    return max(0.0, _TICK_GAP - (now.timestamp() - phase) % period)


def _in_turn(sessions: Sequence[str], now: datetime) -> list[str]:
    return sorted(sessions, key=lambda session: (in_turn(session, now), session))


def _waits_long(world: World, settings: Settings, sandbox: OurSandbox) -> bool:
    """Whether its session may wait for a person: asked about as seldom as the sandbox is touched."""
    item = world.live_item(sandbox.name)
    if item is None or item.state is not ItemState.ACTIVE or sandbox.status is not SandboxStatus.RUNNING:
        return False
    old = world.now - item.created_at > timedelta(seconds=settings.reconcile.waiting_sleep)
    return old and touch_due(world.now, sandbox)


def _ring(sessions: list[str], world: World, place: float) -> list[str]:
    sessions.sort(key=lambda session: zlib.crc32(session.encode()))
    begin = int(len(sessions) * ((place + _GOLDEN * (world.now.timestamp() // 60)) % 1.0))
    return sessions[begin:] + sessions[:begin]


def _left_lately(world: World) -> Iterator[str]:
    """Sessions whose sandbox is gone and whose last item was stopped within the last hour: perhaps by a release that
    did not come to its answer, or by a worker that gave up before it served."""
    if not world.listed or world.items is None:
        return
    held = {sandbox.name for sandbox in world.sandboxes}
    for name, item in world.items.latest.items():
        if name not in held and _asked_about(item, world.now) and world.surely_without_item(name):
            yield item.session_id


def _asked_about(item: ListedItem, now: datetime) -> bool:
    """Each tick for ten minutes, and more seldom from then on: many short sessions must not cost an hour of ticks."""
    if item.state is not ItemState.STOPPED or item.stopped_at is None or now - item.stopped_at >= _LATELY:
        return False
    age = max(_EACH_TICK, now - item.stopped_at)
    return in_turn(item.session_id, now) % 1_000 < 1_000 * (_EACH_TICK / age)
