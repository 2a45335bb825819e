"""The work queue: items, reservations, leases (docs/wire/anthropic.md#3-work-queue).

    queued --poll--> queued, reserved --ack--> starting --NO_HEARTBEAT--> active --beat--> active
    a reservation older than the polling request allows: claimable again
    starting: start-up lease lapsed (off by default), active: lease lapsed  -> queued, heartbeat cleared
    starting, active --stop--> stopping --stop force, or lease lapsed--> stopped;  any --stop force--> stopped

Everything here is synchronous, so each call is atomic in the one event loop. Lapses take effect when somebody looks.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from infra.local.claude.clock import Clock, stamp, stamp_or_none
from infra.local.claude.errors import ClaudeApiError, not_found
from infra.local.claude.ids import new_id
from infra.local.claude.knobs import Knobs

NO_HEARTBEAT = "NO_HEARTBEAT"
DEFAULT_RECLAIM_MS = 5000
WORKERS_WINDOW = timedelta(seconds=30)
_HISTORY_LIMIT = 500
_MOMENTS = (
    *("created_at", "queued_at", "reserved_at", "acknowledged_at", "started_at"),
    *("latest_heartbeat_at", "stop_requested_at", "stopped_at"),
)


class State(enum.StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    ACTIVE = "active"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass
class OfflineWorkItem:
    """One item with all that happened to it (`history`: time, what; for the admin's eyes)."""

    id: str
    sequence: int
    environment_id: str
    kind: Literal["session", "healthcheck"]
    subject_id: str
    created_at: datetime
    queued_at: datetime
    state: State = State.QUEUED
    metadata: dict[str, str] = field(default_factory=dict)
    reserved_at: datetime | None = None
    acknowledged_at: datetime | None = None
    started_at: datetime | None = None
    latest_heartbeat_at: datetime | None = None
    last_heartbeat: str | None = None
    ttl: float | None = None
    stop_requested_at: datetime | None = None
    stopped_at: datetime | None = None
    stale: bool = False
    handouts: int = 0
    acks: int = 0
    heartbeats: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self, secret: str | None = None) -> dict[str, Any]:
        """The wire shape of every work endpoint; only a poll passes a secret."""
        return {
            "id": self.id,
            "type": "work",
            "environment_id": self.environment_id,
            "state": self.state.value,
            "data": {"type": self.kind, "id": self.subject_id},
            "secret": secret,
            "metadata": dict(self.metadata),
            "created_at": stamp(self.created_at),
            "acknowledged_at": stamp_or_none(self.acknowledged_at),
            "started_at": stamp_or_none(self.started_at),
            "latest_heartbeat_at": stamp_or_none(self.latest_heartbeat_at),
            "stop_requested_at": stamp_or_none(self.stop_requested_at),
            "stopped_at": stamp_or_none(self.stopped_at),
        }


class OfflineWorkQueue:
    """The items of all environments. `on_end(item)` is called when one has reached `stopped`."""

    def __init__(self, clock: Clock, knobs: Knobs) -> None:
        self._clock = clock
        self._knobs = knobs
        self._items: dict[str, OfflineWorkItem] = {}
        self._live: dict[str, OfflineWorkItem] = {}
        self._of_session: dict[str, OfflineWorkItem] = {}
        self._sequence = itertools.count(1)
        self._pollers: dict[str, dict[str, datetime]] = {}
        self._windows: dict[str, timedelta] = {}
        self.on_end: Callable[[OfflineWorkItem], None] = lambda item: None
        self.on_queued: Callable[[], None] = lambda: None

    # What fills it

    def enqueue(self, environment_id: str, kind: Literal["session", "healthcheck"], subject_id: str) -> OfflineWorkItem:
        now = self._clock.now()
        item = OfflineWorkItem(new_id("work"), next(self._sequence), environment_id, kind, subject_id, now, now)
        self._items[item.id] = self._live[item.id] = item
        if kind == "session":
            self._of_session[subject_id] = item
        self._note(item, "enqueued")
        self.on_queued()
        return item

    def live_item_of(self, session_id: str) -> OfflineWorkItem | None:
        """At most one item of a session is not stopped, but for `message_adds_item`."""
        self._sweep()
        item = self._of_session.get(session_id)
        return item if item is not None and item.id in self._live else None

    def forsake(self, session_id: str) -> None:
        """The session is deleted: the poll that would hand its item out answers 404 once
        (docs/wire/anthropic.md#33-state-machine)."""
        item = self.live_item_of(session_id)
        if item is not None:
            item.stale = True
            self._note(item, "session deleted")

    # What workers and orchestrators call

    def claim(self, environment_id: str, reclaim_older_than_ms: int = DEFAULT_RECLAIM_MS) -> OfflineWorkItem | None:
        """The oldest item that is queued and not reserved, or reserved for longer than this request allows."""
        now = self._sweep()
        fixed = self._knobs.fixed_reclaim_ms
        window = timedelta(milliseconds=reclaim_older_than_ms if fixed is None else fixed)
        self._windows[environment_id] = window
        items = list(self._live_in(environment_id))
        for item in items if self._knobs.poll_order == "oldest_first" else reversed(items):
            if item.state is not State.QUEUED:
                continue
            if item.reserved_at is not None and now - item.reserved_at <= window:
                continue
            if item.stale and self._knobs.stale_poll != "handed out":
                self._forget(item)
                if self._knobs.stale_poll == "skipped":
                    continue
                raise not_found(f"session {item.subject_id}")
            item.reserved_at = now
            item.handouts += 1
            self._note(item, "handed out", reclaim_older_than_ms=reclaim_older_than_ms)
            return item
        return None

    def note_poller(self, environment_id: str, worker_id: str | None) -> None:
        if worker_id:
            self._pollers.setdefault(environment_id, {})[worker_id] = self._clock.now()

    def acknowledge(self, item: OfflineWorkItem) -> None:
        """queued -> starting; anything later is left as it is, and answered alike."""
        item.acks += 1
        if item.state is not State.QUEUED:
            self._note(item, "acknowledged again")
            stopped = item.state is State.STOPPED
            status = self._knobs.stopped_ack_status if stopped else self._knobs.second_ack_status
            if status != 200:
                raise ClaudeApiError(status, f"the work item is {'stopped' if stopped else 'acknowledged'} already")
            return
        if self._knobs.ack_needs_claim and item.reserved_at is None:
            raise ClaudeApiError(409, "no poll handed the work item out")
        item.reserved_at = None
        item.acknowledged_at = self._clock.now()
        self._move(item, State.STARTING, "acknowledged")

    def heartbeat(self, item: OfflineWorkItem, expected: str | None, desired_ttl: int | None = None) -> dict[str, Any]:
        """One beat; raises 412 where `expected` is not exactly the last value (none: `NO_HEARTBEAT`).

        `expected` None compares nothing. An item nobody has acknowledged cannot be claimed by beating.
        """
        self._sweep()
        item.heartbeats += 1
        if item.state in (State.STOPPING, State.STOPPED):
            self._note(item, "beat after stop")
            return {"type": "work_heartbeat", **self._lease(item), "last_heartbeat": item.last_heartbeat or ""}
        forced = self._knobs.heartbeat_412 > 0
        if forced:
            self._knobs.heartbeat_412 -= 1
        held = item.last_heartbeat or NO_HEARTBEAT
        unclaimed = item.state is State.QUEUED and not self._knobs.beat_claims_unacked
        kind: Literal["stale", "first"] = "first" if expected == NO_HEARTBEAT else "stale"
        fenced = item.last_heartbeat is None or kind not in self._knobs.beats_not_fenced
        if forced or unclaimed or (expected is not None and expected != held and fenced):
            self._note(item, "beat refused", expected=expected)
            current: dict[str, Any] = {**self._lease(item), "last_heartbeat": item.last_heartbeat}
            raise ClaudeApiError(
                412,
                "the heartbeat precondition failed: the lease is not held with this value",
                error_code="heartbeat_precondition_failed",
                details={"current_state": current} if self._knobs.refusals_tell_lease else {},
            )
        now = self._clock.now()
        if item.latest_heartbeat_at is not None:
            now = max(now, item.latest_heartbeat_at + timedelta(microseconds=1))
        item.latest_heartbeat_at = now
        item.last_heartbeat = stamp(now)
        wanted = desired_ttl if self._knobs.honour_desired_ttl else None
        longest = max(self._knobs.lease_ttl, self._knobs.longest_ttl or 0.0)
        item.ttl = min(float(wanted), longest) if wanted else self._knobs.lease_ttl
        if item.state in (State.QUEUED, State.STARTING):
            item.started_at = now
            self._move(item, State.ACTIVE, "first beat")
        else:
            self._note(item, "beat")
        lease = {**self._lease(item), "lease_extended": True}
        return {"type": "work_heartbeat", **lease, "last_heartbeat": item.last_heartbeat}

    def stop(self, item: OfflineWorkItem, *, force: bool) -> None:
        """Idempotent. Graceful: the worker learns it on its next beat. An item nobody serves stops at once."""
        self._sweep()
        if item.state is State.STOPPED:
            self._note(item, "stopped again")
            if self._knobs.second_stop_status == 409:
                raise ClaudeApiError(409, "the work item is stopped already")
            return
        item.stop_requested_at = item.stop_requested_at or self._clock.now()
        # A healthcheck is answered by its ack: no worker beats for it, and nothing would end its stopping.
        answered = item.kind == "healthcheck" and item.latest_heartbeat_at is None
        if force or answered or item.state is State.QUEUED:
            self._end(item, "force-stopped" if force else "stopped before its start")
        elif item.state is not State.STOPPING:
            self._move(item, State.STOPPING, "stop requested")

    def get(self, environment_id: str, work_id: str) -> OfflineWorkItem:
        self._sweep()
        item = self._items.get(work_id)
        if item is None or item.environment_id != environment_id:
            raise not_found(f"work item {work_id}")
        return item

    def page(self, environment_id: str, limit: int, before: int | None) -> tuple[list[OfflineWorkItem], int | None]:
        """Newest first, those with a sequence below `before`; and the `before` of the next page. Oldest first by a
        knob: then those above it."""
        self._sweep()
        newest_first = self._knobs.list_order == "newest_first"
        items = reversed(self._items.values()) if newest_first else iter(self._items.values())
        found = [
            item
            for item in items
            if item.environment_id == environment_id
            if self._knobs.list_has_stopped or item.state is not State.STOPPED
        ]
        if before is not None:
            found = [item for item in found if (item.sequence < before if newest_first else item.sequence > before)]
        page = found[:limit]
        return page, page[-1].sequence if len(found) > limit else None

    def stats(self, environment_id: str) -> dict[str, Any]:
        """`pending` counts every reservation, also one past its window: only a poll ends it. By a knob, not that."""
        now = self._sweep()
        queued = [item for item in self._live_in(environment_id) if item.state is State.QUEUED]
        reserved = [item.reserved_at for item in queued if item.reserved_at is not None]
        window = self._windows.get(environment_id, timedelta())
        pending = sum(self._knobs.lapsed_is_pending or now - since <= window for since in reserved)
        pollers = self._pollers.get(environment_id, {})
        recent = sum(now - seen <= WORKERS_WINDOW for seen in pollers.values())
        return {
            "type": "work_queue_stats",
            "depth": len(queued) - pending,
            "pending": pending,
            "oldest_queued_at": stamp_or_none(min((item.queued_at for item in queued), default=None)),
            "workers_polling": recent if pollers else None,
        }

    # What an operator can do to it (admin API)

    def all_items(self) -> list[OfflineWorkItem]:
        self._sweep()
        return list(self._items.values())

    def find(self, work_id: str) -> OfflineWorkItem:
        if work_id not in self._items:
            raise not_found(f"work item {work_id}")
        return self._items[work_id]

    def lapse(self, item: OfflineWorkItem) -> None:
        """Let the item's lease end now, whatever its time."""
        if item.state in (State.STARTING, State.ACTIVE):
            self._requeue(item, "lease lapsed on request")

    def age(self, item: OfflineWorkItem, seconds: float, *, created: bool = True) -> None:
        """Let so much time pass for this item alone: all that happened to it happened so much earlier, its creation
        too unless not `created`, for the list stays in the order of that. Leases and reservations that this makes too
        old lapse as if the time had been waited for."""
        earlier = timedelta(seconds=seconds)
        for name in _MOMENTS if created else _MOMENTS[1:]:
            moment = getattr(item, name)
            if moment is not None:
                setattr(item, name, moment - earlier)
        self._note(item, "aged", seconds=seconds)
        self._sweep()
        self.on_queued()

    # Lapses

    def _sweep(self) -> datetime:
        now = self._clock.now()
        for item in list(self._live.values()):
            end = self._lapses_at(item)
            if end is None or now < end:
                continue
            if item.state is State.STOPPING:
                self._end(item, "stopped: nobody beat any more")
            else:
                self._requeue(item, "lease lapsed")
        return now

    def _lapses_at(self, item: OfflineWorkItem) -> datetime | None:
        match item.state:
            case State.STARTING if item.acknowledged_at is not None and self._knobs.startup_lease is not None:
                return item.acknowledged_at + timedelta(seconds=self._knobs.startup_lease)
            case State.ACTIVE if item.latest_heartbeat_at is not None:
                return item.latest_heartbeat_at + timedelta(seconds=item.ttl or self._knobs.lease_ttl)
            case State.STOPPING:
                # A worker that was told to stop and died would else keep its session's only item indefinitely.
                since = max(filter(None, (item.latest_heartbeat_at, item.stop_requested_at)))
                return since + timedelta(seconds=item.ttl or self._knobs.lease_ttl)
            case _:
                return None

    def _requeue(self, item: OfflineWorkItem, why: str) -> None:
        item.queued_at = self._clock.now()
        item.reserved_at = None
        if not self._knobs.requeue_keeps_times:
            item.acknowledged_at = item.started_at = None
        item.latest_heartbeat_at = item.last_heartbeat = item.ttl = None
        self._move(item, State.QUEUED, why)
        self.on_queued()

    def _end(self, item: OfflineWorkItem, why: str) -> None:
        item.stopped_at = self._clock.now()
        item.reserved_at = None
        self._live.pop(item.id, None)
        self._move(item, State.STOPPED, why)
        self.on_end(item)

    def _forget(self, item: OfflineWorkItem) -> None:
        self._live.pop(item.id, None)
        self._items.pop(item.id, None)

    # Small parts

    def _live_in(self, environment_id: str) -> Iterator[OfflineWorkItem]:
        return (item for item in list(self._live.values()) if item.environment_id == environment_id)

    def _lease(self, item: OfflineWorkItem) -> dict[str, Any]:
        ttl = item.ttl if item.ttl is not None else self._knobs.reported_startup_ttl
        return {
            "state": item.state.value,
            "lease_extended": False,
            "ttl_seconds": int(ttl) if float(ttl).is_integer() else ttl,
        }

    def _move(self, item: OfflineWorkItem, state: State, why: str) -> None:
        item.state = state
        self._note(item, why)

    def _note(self, item: OfflineWorkItem, what: str, **more: Any) -> None:
        item.history.append({"at": stamp(self._clock.now()), "what": what, "state": item.state.value, **more})
        del item.history[:-_HISTORY_LIMIT]
