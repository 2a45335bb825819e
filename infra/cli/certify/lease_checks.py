"""Assumptions about leases and heartbeats (docs/wire/anthropic.md#33-state-machine).

The longest wait is that for a start-up lease to lapse: the other waits run beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.item_life import beat, held_by, item_life
from infra.cli.certify.observation import NotTried, Observed
from infra.cli.certify.stream_checks import stream_life

_LAPSE: Final = 150.0
"""Seconds after an ack by which a start-up lease of about 120 s has lapsed."""
_STEP: Final = 5.0
_LEASE: Final = 300
"""Seconds (docs/wire/anthropic.md#10-numbers)."""
_TTL: Final = 15
_LONG_TTL: Final = 3600
_LEEWAY: Final = 5.0


async def startup_lease(ground: Ground) -> Observed:
    lapsed, _, _ = await asyncio.gather(
        _start_up(ground), _quietly(ground.once(requeued)), _quietly(ground.once(stream_life))
    )
    behaviour = {"claude.startup_lease": lapsed}
    if lapsed is not None:
        return Observed(False, f"queued again {lapsed:g} s after the ack, without a heartbeat", behaviour)
    return Observed(True, f"starting {_LAPSE:.0f} s after the ack, without a heartbeat", behaviour)


async def _start_up(ground: Ground) -> float | None:
    """Seconds from the ack until the item was seen to be queued again, to five; None where it stays."""
    item = await ground.started()
    began, skipped = time.monotonic(), 0.0
    while (passed := time.monotonic() - began + skipped) < _LAPSE:
        await ground.pass_time(item["id"], _STEP)
        skipped += _STEP if ground.context.offline else 0.0
        state = (await ground.item(item["id"]))["state"]
        if state == "queued":
            return round(time.monotonic() - began + skipped, 1)
        if state != "starting":
            raise NotTried(f"{state} {passed:.0f} s after the ack, without a heartbeat")
    return None


async def _quietly(look: Any) -> None:
    """What it sees is told by the check that it belongs to, which looks itself where this failed."""
    with contextlib.suppress(Exception):
        await look


@dataclass(frozen=True, slots=True)
class _Requeued:
    ttl_status: int
    ttl: float | None
    none_status: int
    """Of a wish for no seconds."""
    long_ttl: float | None
    waited: float
    item: dict[str, Any]
    """As it is once its lease has lapsed."""


async def requeued(ground: Ground) -> _Requeued:
    """A lease that was asked to be short lapses."""
    item = await ground.started()
    none = await beat(ground, item["id"], desired_ttl_seconds=0)
    long = await beat(ground, item["id"], held_by(none, "NO_HEARTBEAT"), desired_ttl_seconds=_LONG_TTL)
    held = held_by(long, held_by(none, "NO_HEARTBEAT"))
    short = await beat(ground, item["id"], held, desired_ttl_seconds=_TTL)
    ttl, long_ttl = _ttl(short), _ttl(long)
    waited = (ttl or float(_LEASE)) + _LEEWAY
    await ground.pass_time(item["id"], waited)
    now = await ground.item(item["id"])
    return _Requeued(short.status_code, ttl, none.status_code, long_ttl, waited, now)


def _ttl(answer: Any) -> float | None:
    return float(answer.json()["ttl_seconds"]) if answer.status_code == 200 else None


async def desired_ttl(ground: Ground) -> Observed:
    seen = await ground.once(requeued)
    if seen.ttl is None:
        return Observed(False, f"HTTP {seen.ttl_status}", {"claude.honour_desired_ttl": False})
    honoured = seen.ttl == _TTL
    return Observed(honoured, f"asked for {_TTL}, got {seen.ttl:g}", {"claude.honour_desired_ttl": honoured})


async def ttl_bounds(ground: Ground) -> Observed:
    seen = await ground.once(requeued)
    if seen.long_ttl is None:
        raise NotTried("a heartbeat that asks for an hour is refused")
    long = seen.long_ttl > _LEASE
    told = f"0 is answered HTTP {seen.none_status}, an hour is {seen.long_ttl:g} s"
    behaviour = {"claude.longest_ttl": seen.long_ttl if long else None}
    return Observed(seen.none_status == 400 and not long, told, behaviour)


async def requeue_fields(ground: Ground) -> Observed:
    seen = await ground.once(requeued)
    if seen.item["state"] != "queued":
        return Observed(False, f"{seen.item['state']} {seen.waited:.0f} s after the last heartbeat")
    kept = [name for name in ("acknowledged_at", "started_at", "latest_heartbeat_at") if seen.item.get(name)]
    told = "queued under the same id, " + (f"still with {', '.join(kept)}" if kept else "all three times null")
    return Observed(not kept, told, {"claude.requeue_keeps_times": bool(kept)})


async def beat_before_ack(ground: Ground) -> Observed:
    item = await ground.claimed()
    status = (await beat(ground, item["id"])).status_code
    return Observed(status == 412, f"HTTP {status}", {"claude.beat_claims_unacked": status == 200})


async def lease(ground: Ground) -> Observed:
    ttl = _ttl((await ground.once(item_life)).first_beat)
    if ttl is None:
        raise NotTried("the first heartbeat was refused")
    return Observed(ttl == _LEASE, f"the answer to a first heartbeat says {ttl:g} s", {"claude.lease_ttl": ttl})


async def fence(ground: Ground) -> Observed:
    life = await ground.once(item_life)
    if (life.first_beat.status_code, life.second_beat.status_code) != (200, 200):
        first, second = life.first_beat.status_code, life.second_beat.status_code
        raise NotTried(f"nobody holds the lease: two heartbeats were answered HTTP {first}, then HTTP {second}")
    statuses = {"stale": life.stale_beat.status_code, "first": life.other_first_beat.status_code}
    told = f"HTTP {statuses['stale']} to an old value, HTTP {statuses['first']} to another first heartbeat"
    taken = [kind for kind, status in statuses.items() if status == 200]
    return Observed(set(statuses.values()) == {412}, told, {"claude.beats_not_fenced": taken})


async def refusal_state(ground: Ground) -> Observed:
    life = await ground.once(item_life)
    refused = [answer for answer in (life.other_first_beat, life.stale_beat) if answer.status_code == 412]
    if not refused:
        raise NotTried("no heartbeat was refused")
    current = ((refused[0].json().get("error") or {}).get("details") or {}).get("current_state") or {}
    told = {name: current.get(name) for name in ("state", "last_heartbeat")}
    holds = told == {"state": "active", "last_heartbeat": life.held}
    seen = "the 412 says `active` and the value that is held"
    if not holds:
        value = (
            "no value"
            if not told["last_heartbeat"]
            else "the value"
            if told["last_heartbeat"] == life.held
            else "another value"
        )
        seen = f"the 412 says the state {told['state']} and {value}"
    return Observed(holds, seen, {"claude.refusals_tell_lease": holds})


_QUEUE: Final = "docs/wire/anthropic.md#32-endpoints"
_STATES: Final = "docs/wire/anthropic.md#33-state-machine"

CHECKS: Final = (
    ServiceCheck(
        "queue.startup-lease",
        _STATES,
        "an item that was acked and never beat stays `starting`: nobody gets it again by waiting",
        "nothing is lost: `STRANDED_SECONDS` may be longer than the lease, and ticks release less",
        startup_lease,
        400.0,
    ),
    ServiceCheck(
        "queue.requeue-fields",
        _STATES,
        "an item whose lease has lapsed is queued under its own id, its three times null",
        "attempts are judged from `created_at` alone; where the times stay, a queued item may look acked in overviews",
        requeue_fields,
        400.0,
    ),
    ServiceCheck(
        "queue.desired-ttl",
        _QUEUE,
        "`desired_ttl_seconds` sets the lease's length",
        "nothing: no worker sends it. It makes this certification faster",
        desired_ttl,
        400.0,
    ),
    ServiceCheck(
        "queue.ttl-bounds",
        _QUEUE,
        f"a `desired_ttl_seconds` of 0 is refused with 400, and no longer lease than {_LEASE} s is given",
        "nothing: no worker sends it",
        ttl_bounds,
        400.0,
    ),
    ServiceCheck(
        "queue.lease",
        _QUEUE,
        f"a lease lasts {_LEASE} s from a heartbeat",
        "a tick takes a worker for dead too early or too late: `_LEASE` of shared/reconcile/plan.py must be that long",
        lease,
    ),
    ServiceCheck(
        "queue.fence",
        _QUEUE,
        "a heartbeat with an old value, and another first one, are refused with 412 while the lease lives",
        "two workers may serve one item: only the lock in the sandbox holds them apart",
        fence,
    ),
    ServiceCheck(
        "queue.refusal-state",
        _QUEUE,
        "such a 412 tells the state, and the value that is held",
        "a worker whose heartbeat was taken in a lost answer gives its own lease up: its item waits until that lapses",
        refusal_state,
    ),
    ServiceCheck(
        "queue.beat-before-ack",
        _QUEUE,
        "a first heartbeat before the ack is refused with 412",
        "a worker has its lease before the ack, and the ack that follows is what frees the reservation",
        beat_before_ack,
    ),
)
