"""The work queue and the sessions of one environment (docs/wire/anthropic.md#33-state-machine,
docs/wire/anthropic.md#81-a-self-hosted-turn).

    queued --poll--> queued, reserved --ack--> starting --NO_HEARTBEAT--> active --beat--> active
    a reservation older than the polling request's R: claimable; the start-up lease never lapses; an active lease does
    starting, active --force stop--> stopped

A session's turn is a row of rounds, each of so many tool calls. Everything here is one atomic step; the clock is the
loop's, in seconds.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from shared.ports import ItemState, ListedItem
from tests.support.model.lines import RefusedError
from tests.support.model.loop import VirtualLoop
from tests.support.model.truth import Truth

NO_HEARTBEAT = "NO_HEARTBEAT"
LIVE = (ItemState.QUEUED, ItemState.STARTING, ItemState.ACTIVE, ItemState.STOPPING)

Turn = tuple[int, ...]
"""Tool calls of each round. An empty turn is answered without tools."""


class StaleError(Exception):
    """The queue's head belongs to a deleted session."""


@dataclass(slots=True, eq=False)
class ModelItem:
    id: str
    kind: str
    session_id: str
    created_at: float
    number: int = 0  # in the order of creation
    state: ItemState = ItemState.QUEUED
    reserved_at: float | None = None
    acked_at: float | None = None
    beat_at: float | None = None
    beat: str | None = None
    stopped_at: float | None = None
    stop_asked_at: float | None = None
    stale: bool = False
    handed_out: int = 0
    holder: str | None = None  # the process whose beat was last accepted
    expired: bool = False  # its lease has ended before its time, and nobody has claimed it since
    excuse: str = ""  # why nobody serves it and its calls must be answered without a worker
    row: tuple[tuple[object, ...], ListedItem] | None = None  # of the list, and what it was made of

    @property
    def live(self) -> bool:
        return self.state in LIVE


class ModelPhase(enum.Enum):
    AT_REST = enum.auto()
    THINKING = enum.auto()
    PARKED = enum.auto()


@dataclass(slots=True, eq=False)
class ModelCall:
    id: str
    answered: bool = False


@dataclass(slots=True, eq=False)
class ModelSession:
    id: str
    updated_at: float
    think: float = 1.0
    phase: ModelPhase = ModelPhase.AT_REST
    inbox: deque[Turn] = field(default_factory=deque)
    rounds: deque[int] = field(default_factory=deque)
    calls: dict[str, ModelCall] = field(default_factory=dict)
    unserved: bool = False
    over: str | None = None  # archived or deleted
    over_at: float = 0.0
    said: int = 0
    done: int = 0
    interrupted: int = 0
    given_up: bool = False  # a call of this turn was answered for want of a worker
    watchers: dict[asyncio.Event, None] = field(default_factory=dict)
    _epoch: int = 0

    @property
    def open_calls(self) -> list[str]:
        return [call.id for call in self.calls.values() if not call.answered]

    @property
    def status(self) -> str:
        if self.over == "archived":
            return "terminated"
        return "running" if self.phase is ModelPhase.THINKING else "idle"


@dataclass(frozen=True, slots=True)
class BrokenOff:
    """A turn of which a call was answered for want of a worker, or that was interrupted. `excuse`: why nobody served
    the item that was stopped last; empty where somebody could have. `told`: the agent got an error for a call."""

    session: ModelSession
    turn: int
    excuse: str
    told: bool


class ModelClaude:
    """The service. `lease` is the time to live of an active item; `on_run` is the webhook's sender."""

    def __init__(self, loop: VirtualLoop, truth: Truth, *, lease: float) -> None:
        self._loop = loop
        self._truth = truth
        self.lease = lease
        self.items: dict[str, ModelItem] = {}
        self._live: dict[str, ModelItem] = {}
        self._queued: dict[int, ModelItem] = {}
        self.sessions: dict[str, ModelSession] = {}
        self.granted: set[str] = set()
        self.broken_off: list[BrokenOff] = []
        self._stopped: dict[str, ModelItem] = {}  # the latest of each session
        self.on_run: Callable[[ModelSession], None] = lambda session: None
        self.on_over: Callable[[ModelSession], None] = lambda session: None
        self._next_lapse = math.inf  # no lease ends before
        self._numbers = itertools.count(1)
        self._calls = itertools.count(1)
        self._work = itertools.count(1)

    def time(self) -> float:
        return self._loop.time()

    # What users do

    def open(self, session_id: str, turn: Turn, think: float) -> ModelSession:
        session = ModelSession(session_id, self._loop.time(), think)
        self.sessions[session_id] = session
        self.say(session, turn)
        return session

    def say(self, session: ModelSession, turn: Turn) -> None:
        if session.over:
            return
        session.said += 1
        session.inbox.append(turn)
        if session.phase is ModelPhase.AT_REST:
            item = self.live_item(session.id)
            session.unserved = item is not None and item.state is ItemState.ACTIVE
            self._next_turn(session)
        elif session.open_calls:
            self._ensure_item(session)

    def archive(self, session: ModelSession) -> bool:
        """False where the session is running: that is refused."""
        if session.status == "running" or session.over:
            return False
        self._over(session, "archived")
        return True

    def delete(self, session: ModelSession) -> bool:
        if session.status == "running" or session.over == "deleted":
            return False
        item = self.live_item(session.id)
        if item is not None:
            item.stale = True
        self._over(session, "deleted")
        return True

    def interrupt(self, session_id: str) -> None:
        """`user.interrupt`: ends the turn, then there is an item again. Raises KeyError for a deleted session."""
        session = self.sessions[session_id]
        if session.over == "deleted":
            raise KeyError(session_id)
        if session.over:
            raise RefusedError(400)
        session._epoch += 1
        if session.phase is not ModelPhase.AT_REST:
            session.interrupted += 1
            self._break_off(session)
            session.done += 1
        session.calls.clear()
        session.rounds.clear()
        session.phase = ModelPhase.AT_REST
        self._touch(session)
        if session.inbox:
            self._next_turn(session)
        else:
            self._ensure_item(session)

    def enqueue_healthcheck(self) -> ModelItem:
        return self._enqueue("healthcheck", f"check{next(self._numbers)}")

    # Turns

    def _over(self, session: ModelSession, how: str) -> None:
        session.over, session.over_at = how, self._loop.time()
        session._epoch += 1
        session.phase = ModelPhase.AT_REST
        session.calls.clear()
        self._touch(session)
        self.on_over(session)

    def give_up(self, session_id: str, calls: Sequence[str]) -> None:
        """Error results for calls whose worker is lost. Raises KeyError for a deleted session."""
        session = self.sessions[session_id]
        if session.over == "deleted":
            raise KeyError(session_id)
        for call_id in calls:
            if self.result(session_id, call_id):
                session.given_up = True
                self._break_off(session)

    def _break_off(self, session: ModelSession) -> None:
        item = self._stopped.get(session.id)
        excuse = item.excuse if item is not None else ""
        self.broken_off.append(BrokenOff(session, session.done, excuse, told=session.given_up))

    def _next_turn(self, session: ModelSession) -> None:
        session.given_up = False
        session.rounds = deque(session.inbox.popleft())
        self._think(session)

    def _think(self, session: ModelSession) -> None:
        session.phase = ModelPhase.THINKING
        session._epoch += 1
        self._ensure_item(session)
        self._touch(session)
        self.on_run(session)
        self._loop.after(session.think, self._reply, session, session._epoch)

    def _reply(self, session: ModelSession, epoch: int) -> None:
        if epoch != session._epoch:
            return
        if session.rounds:
            for _ in range(session.rounds.popleft()):
                call = ModelCall(f"call{next(self._calls)}")
                session.calls[call.id] = call
            session.phase = ModelPhase.PARKED
            self._ensure_item(session)
        else:
            session.done += 1
            session.phase = ModelPhase.AT_REST
            if session.inbox:
                self._next_turn(session)
        self._touch(session)

    def result(self, session_id: str, call_id: str) -> bool:
        """A worker's answer. False for a call that is answered or closed: accepted, and without effect."""
        session = self.sessions[session_id]
        call = session.calls.get(call_id)
        if session.over == "deleted":
            raise RefusedError(404)
        if call is None or call.answered:
            return False
        call.answered = True
        session.unserved = False
        if not session.open_calls:
            session.calls.clear()
            self._think(session)
        self._touch(session)
        return True

    def _touch(self, session: ModelSession) -> None:
        session.updated_at = self._loop.time()
        for watcher in session.watchers:
            watcher.set()

    # The queue

    def live_item(self, session_id: str) -> ModelItem | None:
        self._sweep()
        return self._live.get(session_id)

    def claim(self, reclaim: float) -> ModelItem | None:
        """The oldest claimable item, by the polling request's window. Raises StaleError."""
        self._sweep()
        now = self._loop.time()
        for number in sorted(self._queued):
            item = self._queued[number]
            if item.reserved_at is not None and now - item.reserved_at <= reclaim:
                continue
            if item.stale:
                del self._live[item.session_id], self._queued[number]
                del self.items[item.id]
                raise StaleError
            item.reserved_at = now
            item.handed_out += 1
            item.expired = False
            self._note(item, "handed out")
            return item
        return None

    def claimable(self, reclaim: float) -> list[ModelItem]:
        """What a poll may hand out now."""
        self._sweep()
        latest = self._loop.time() - reclaim
        return [
            item for item in self.waiting() if not item.stale if item.reserved_at is None or item.reserved_at < latest
        ]

    def place(self, session_id: str) -> ModelItem:
        """An item of a session that is at work since before the run began. Its lease is its holder's business."""
        item = self._enqueue("session", session_id)
        del self._queued[item.number]
        item.state, item.acked_at, item.beat = ItemState.ACTIVE, item.created_at, "placed"
        return item

    def live_of(self, session_id: str) -> ModelItem | None:
        """As `live_item`, of one session alone."""
        return self._live.get(session_id)

    def waiting(self) -> Iterator[ModelItem]:
        return (self._queued[number] for number in sorted(self._queued))

    def ack(self, work_id: str) -> None:
        """Raises KeyError for an item that is no more."""
        self._sweep()
        item = self.items[work_id]
        if self._queued.pop(item.number, None) is not None:
            item.state = ItemState.STARTING
            item.acked_at = self._loop.time()
            item.reserved_at = None
            if item.expired:
                # The ack of the claim before, whose answer was lost. No dispatcher can know; and a lease that lasts is
                # seen to be held, or its worker to be gone, before an ack is asked for again so late.
                item.excuse = "it was acked again after its lease had ended before its time"
            self._note(item, "acked")

    def stop(self, work_id: str, by: str) -> None:
        self._sweep()
        item = self.items[work_id]
        if item.state is ItemState.STOPPED:
            return
        item.state = ItemState.STOPPED
        item.stopped_at = self._loop.time()
        if item.stop_asked_at is not None:
            item.excuse = "somebody asked it to stop"
        self._live.pop(item.session_id, None)
        self._queued.pop(item.number, None)
        self._stopped[item.session_id] = item
        self._note(item, f"stopped by {by}")
        session = self.sessions.get(item.session_id)
        if session is not None and not session.over and session.phase is not ModelPhase.AT_REST and session.unserved:
            self._ensure_item(session)

    def heartbeat(self, work_id: str, expected: str, by: str) -> tuple[int, dict[str, object]]:
        """Status and body of the answer (docs/wire/anthropic.md#32-endpoints)."""
        self._sweep()
        item = self.items.get(work_id)
        if item is None:
            return 404, {}
        lease = {"state": item.state, "lease_extended": False, "ttl_seconds": self.lease}
        if item.state is ItemState.STOPPED:
            return 200, {**lease, "last_heartbeat": item.beat or ""}
        if item.state is ItemState.STOPPING:
            return 200, {**lease, "last_heartbeat": item.beat or ""}
        if item.state is ItemState.QUEUED or expected != (item.beat or NO_HEARTBEAT):
            state = {**lease, "last_heartbeat": item.beat}
            return 412, {"error": {"details": {"current_state": state}}}
        if item.beat is None:
            self._note(item, f"first beat, of {by}")
        item.beat_at = self._loop.time()
        self._next_lapse = min(self._next_lapse, item.beat_at + self.lease)
        item.beat = f"beat-{next(self._numbers)}"
        item.state = ItemState.ACTIVE
        item.holder, item.excuse = by, ""
        self.granted.add(by)
        return 200, {**lease, "state": "active", "lease_extended": True, "last_heartbeat": item.beat}

    def expire(self, session_id: str) -> bool:
        """The lease of the session's item ends before its time."""
        item = self.live_item(session_id)
        if item is None or item.state is not ItemState.ACTIVE:
            return False
        self._requeue(item)
        item.expired = True
        return True

    def ask_to_stop(self, session_id: str) -> bool:
        """Somebody asks the session's item to stop: its worker learns of it on its next beat and ends it."""
        item = self.live_item(session_id)
        if item is None or item.state not in (ItemState.STARTING, ItemState.ACTIVE):
            return False
        item.state, item.stop_asked_at = ItemState.STOPPING, self._loop.time()
        self._note(item, "asked to stop")
        return True

    def lose_worker(self, session_id: str, why: str) -> None:
        """Whoever was to serve the session's item is no more. One with a lease is offered again when that lapses, and
        its calls are answered by the next worker: no reason to break off a turn."""
        item = self.live_item(session_id)
        if item is not None and item.state in (ItemState.QUEUED, ItemState.STARTING):
            item.excuse = why

    def listed(self) -> Iterator[ModelItem]:
        """Newest first."""
        self._sweep()
        return reversed(self.items.values())

    def _ensure_item(self, session: ModelSession) -> None:
        if self.live_item(session.id) is None:
            session.unserved = False
            self._enqueue("session", session.id)

    def _enqueue(self, kind: str, session_id: str) -> ModelItem:
        number = next(self._work)
        item = ModelItem(f"work{number}", kind, session_id, self._loop.time(), number)
        self.items[item.id] = self._live[session_id] = self._queued[number] = item
        self._note(item, "enqueued")
        return item

    def _sweep(self) -> None:
        now = self._loop.time()
        if now < self._next_lapse:
            return
        self._next_lapse = math.inf
        for item in self._live.values():
            if item.state is ItemState.ACTIVE and item.beat_at is not None:
                lapse = item.beat_at + self.lease
                if now >= lapse:
                    self._requeue(item)
                else:
                    self._next_lapse = min(self._next_lapse, lapse)

    def _requeue(self, item: ModelItem) -> None:
        item.state, self._queued[item.number] = ItemState.QUEUED, item
        item.reserved_at = item.acked_at = item.beat_at = item.beat = item.holder = None
        self._note(item, "lease lapsed")

    def _note(self, item: ModelItem, what: str) -> None:
        if self._truth.tracing:
            self._truth.note(self._loop.time(), "queue", f"{item.id} of {item.session_id}: {what}")
