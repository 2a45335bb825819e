"""A session's event log and its live listeners (docs/wire/anthropic.md#81-a-self-hosted-turn,
docs/wire/anthropic.md#83-sse-framing)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from infra.local.claude.clock import Clock, stamp
from infra.local.claude.ids import new_id

Event = dict[str, Any]
"""One wire event: `type`, `id`, `processed_at`, and what its type adds."""

Bound = tuple[str, datetime]
"""A comparison (`gt`, `gte`, `lt`, `lte`) and the time to compare with."""


@dataclass
class _Entry:
    sequence: int
    processed_at: datetime
    event: Event


class EventLog:
    """What has happened, in order; events that wait for their turn come last, without a `processed_at`.

    Listeners get every event once it is added, nothing from before they came.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: list[_Entry] = []
        self._pending: dict[str, Event] = {}
        self._listeners: set[Listener] = set()

    def add(self, kind: str, **fields: Any) -> Event:
        """Append a processed event and tell the listeners."""
        return self._process({"type": kind, "id": new_id("sevt"), "processed_at": None, **fields})

    def hold(self, event: Event) -> None:
        """An event that waits: listed at the tail with `processed_at` null."""
        self._pending[event["id"]] = event
        self._tell(event)

    def process(self, event: Event) -> Event:
        """Its turn has come: the same id, now with a time. Also takes an event that never waited."""
        self._pending.pop(event["id"], None)
        return self._process(event)

    def select(
        self,
        *,
        types: frozenset[str] | None = None,
        after: int = 0,
        newest_first: bool = False,
        limit: int = 100,
        bounds: Sequence[Bound] = (),
    ) -> tuple[list[Event], int | None]:
        """One page, and the `after` of the next. `bounds` apply to `processed_at`."""
        count = len(self._entries)
        rows: list[tuple[int, Event]] = [
            (entry.sequence, entry.event) for entry in self._entries if within(entry.processed_at, bounds)
        ]
        if not bounds:
            rows += [(count + 1 + index, event) for index, event in enumerate(self._pending.values())]
        if newest_first:
            rows.reverse()
        rest = [
            (sequence, event)
            for sequence, event in rows
            if (types is None or event["type"] in types)
            and (not after or (sequence < after if newest_first else sequence > after))
        ]
        page = rest[:limit]
        return [event for _, event in page], page[-1][0] if len(rest) > limit else None

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def __len__(self) -> int:
        return len(self._entries) + len(self._pending)

    def listen(self) -> Listener:
        listener = Listener(self._listeners)
        self._listeners.add(listener)
        return listener

    def hang_up(self) -> int:
        """End every live stream, as a dropped connection would; answers how many."""
        listeners = list(self._listeners)
        for listener in listeners:
            listener.end()
        return len(listeners)

    def _process(self, event: Event) -> Event:
        now = self._clock.now()
        done = {**event, "processed_at": stamp(now)}
        self._entries.append(_Entry(len(self._entries) + 1, now, done))
        self._tell(done)
        return done

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener.put(event)


def within(moment: datetime, bounds: Sequence[Bound]) -> bool:
    return all(_holds(moment, comparison, bound) for comparison, bound in bounds)


def _holds(value: datetime, comparison: str, bound: datetime) -> bool:
    match comparison:
        case "gt":
            return value > bound
        case "gte":
            return value >= bound
        case "lt":
            return value < bound
        case _:
            return value <= bound


class Listener:
    """One open stream."""

    def __init__(self, peers: set[Listener]) -> None:
        self._peers = peers
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()

    def put(self, event: Event) -> None:
        self._queue.put_nowait(event)

    def end(self) -> None:
        self._peers.discard(self)
        self._queue.put_nowait(None)

    async def events(self, ping_interval: float) -> AsyncIterator[Event | None]:
        """Events as they come; None where `ping_interval` seconds were silent. Ends with the stream."""
        try:
            while True:
                try:
                    event = await asyncio.wait_for(self._queue.get(), ping_interval)
                except TimeoutError:
                    yield None
                    continue
                if event is None:
                    return
                yield event
        finally:
            self._peers.discard(self)
