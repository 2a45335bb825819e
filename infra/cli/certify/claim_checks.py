"""Assumptions about polls, acks and stops, and what queues a session (docs/wire/anthropic.md#32-endpoints)."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.item_life import item_life
from infra.cli.certify.observation import NotTried, Observed, answered_with

_WINDOW: Final = 8
"""Seconds of the reclaim window that is tried."""
_SLACK: Final = 0.5
_LAST_LOOK: Final = 2 * _WINDOW
_NEVER_MS: Final = 86_400_000
_IDLE: Final = 30.0
_POLLS: Final = 5


async def create_enqueues(ground: Ground) -> Observed:
    session_id = await ground.session()
    queued = await ground.live_item(session_id, 5.0) is not None
    seen = "an item within 5 s" if queued else "no item within 5 s"
    return Observed(queued, f"a session without events has {seen}", {"claude.create_enqueues": queued})


async def has_secret(ground: Ground) -> Observed:
    has = (await ground.once(item_life)).has_secret
    return Observed(has, "the secret is a text" if has else "the secret is null", {"claude.null_secret": not has})


async def poll_order(ground: Ground) -> Observed:
    order = "oldest_first" if (await ground.once(item_life)).oldest_first else "newest_first"
    return Observed(order == "oldest_first", order.replace("_", " "), {"claude.poll_order": order})


async def block_limit(ground: Ground) -> Observed:
    await ground.session()  # raises where others are at work
    item = await ground.work("GET", "/poll", block_ms=1500)
    refused = item.status_code == 400
    return Observed(refused, f"HTTP {item.status_code}", {"claude.longest_block_ms": 999 if refused else 1500})


@dataclass(frozen=True, slots=True)
class _Reclaimed:
    """`after`: seconds from a hand-out to the next one, None where there was none. It is `early` or `late` for certain,
    however long the answers took. `pending`: what stats counted once the window was over and before a poll. `ack`: the
    status of the ack that followed."""

    after: float | None
    early: bool
    late: bool
    pending: int
    ack: int


async def _reclaimed(ground: Ground) -> _Reclaimed:
    """An item that nobody acknowledges meets a poll a second, but for the second in which its window ends."""
    session_id = ground.session_of(await ground.offered())
    item: dict[str, Any] | None = None
    asked = 0.0
    for _ in range(_POLLS):
        asked = time.monotonic()
        item = await ground.polled(_WINDOW)
        if item is not None and ground.session_of(item) == session_id:
            break
    if item is None or ground.session_of(item) != session_id:
        raise NotTried("no poll handed the session's item out")
    work_id, answered, skipped = str(item["id"]), time.monotonic(), 0.0
    after: float | None = None
    pending: int | None = None
    late = False

    def since(moment: float) -> float:
        return time.monotonic() - moment + skipped

    async def reach(moment: float) -> None:
        nonlocal skipped
        left = moment - since(answered)
        if left > 0:
            await ground.pass_time(work_id, left)
            skipped += left if ground.context.offline else 0.0

    async def count() -> int:
        return int((await ground.work("GET", "/stats")).json().get("pending") or 0)

    for moment in (*range(1, _WINDOW), *range(_WINDOW + 1, _LAST_LOOK)):
        await reach(moment)
        if moment > _WINDOW and pending is None:
            pending = await count()
        waited = since(answered)
        again = await ground.polled(_WINDOW)
        if again is not None and ground.session_of(again) == session_id:
            after = since(asked)
            break
        late = late or waited > _WINDOW + _SLACK
    if pending is None:  # handed out early: its second window is as good
        await reach(since(answered) + _WINDOW + 1)
        pending = await count()
    ack = await ground.work("POST", f"/{work_id}/ack")
    return _Reclaimed(after, after is not None and after < _WINDOW, late, pending, ack.status_code)


async def reclaim(ground: Ground) -> Observed:
    seen = await ground.once(_reclaimed)
    by = f"by polls with a window of {_WINDOW} s"
    if seen.after is None:
        told = f"not handed out again within {_LAST_LOOK} s, {by}"
        return Observed(False, told, {"claude.fixed_reclaim_ms": _NEVER_MS})
    holds = not seen.early and not seen.late
    told = f"handed out again {seen.after:.1f} s after the first time, {by}"
    return Observed(holds, told, {"claude.fixed_reclaim_ms": None if holds else int(seen.after * 1000)})


async def lapsed_pending(ground: Ground) -> Observed:
    counted = (await ground.once(_reclaimed)).pending > 0
    seen = "stats still count it as pending" if counted else "stats do not count it as pending"
    return Observed(counted, seen, {"claude.lapsed_is_pending": counted})


async def ack_unclaimed(ground: Ground) -> Observed:
    item = await ground.offered()
    status = (await ground.work("POST", f"/{item['id']}/ack")).status_code
    reclaimed = (await ground.once(_reclaimed)).ack
    seen = f"HTTP {status} where no poll was, HTTP {reclaimed} after a second hand-out"
    return Observed(status == reclaimed == 200, seen, {"claude.ack_needs_claim": status != 200})


async def second_ack(ground: Ground) -> Observed:
    status = (await ground.once(item_life)).second_ack.status_code
    return Observed(status == 200, f"HTTP {status}", answered_with("claude.second_ack_status", status, 200, 409))


async def stopped_ack(ground: Ground) -> Observed:
    status = (await ground.once(item_life)).stopped_ack.status_code
    behaviour = answered_with("claude.stopped_ack_status", status, 200, 404, 409, 412)
    return Observed(status == 200, f"HTTP {status}", behaviour)


async def second_stop(ground: Ground) -> Observed:
    life = await ground.once(item_life)
    first, again = life.stop.status_code, life.second_stop.status_code
    seen = f"HTTP {first}, then HTTP {again}"
    return Observed(first == again == 200, seen, answered_with("claude.second_stop_status", again, 200, 409))


async def list_order(ground: Ground) -> Observed:
    newest_first = (await ground.once(item_life)).newest_listed_first
    if newest_first is None:
        raise NotTried("the list has not both items")
    order = "newest_first" if newest_first else "oldest_first"
    return Observed(newest_first, order.replace("_", " "), {"claude.list_order": order})


async def list_stopped(ground: Ground) -> Observed:
    stays = (await ground.once(item_life)).listed_stopped
    return Observed(stays, "it stays" if stays else "it is gone", {"claude.list_has_stopped": stays})


async def deleted_session(ground: Ground) -> Observed:
    """Its item was handed out to nobody."""
    item = await ground.offered()
    session_id = ground.session_of(item)
    await _until_idle(ground, session_id)
    ended = (await ground.claude("DELETE", f"/v1/sessions/{session_id}", key="api")).status_code
    if ended >= 300:
        raise NotTried(f"the session could not be deleted: HTTP {ended}")
    statuses, handed_out = [], False
    for _ in range(_POLLS):
        answer = await ground.work(
            "GET", "/poll", reclaim_older_than_ms=int(ground.context.settings.times.reclaim * 1000)
        )
        statuses.append(answer.status_code)
        found = answer.json() if answer.status_code == 200 else None
        handed_out = handed_out or (isinstance(found, dict) and found["id"] == item["id"])
    if not set(statuses) <= {200, 404}:
        raise NotTried(f"a poll was answered HTTP {max(statuses)}")
    made = "404" if 404 in statuses else "handed out" if handed_out else "skipped"
    again = statuses.count(404) > 1
    seen = {"404": "a poll answers 404", "handed out": "a poll hands it out", "skipped": "polls pass it over"}[made]
    return Observed(
        made == "404" and not again, seen + (", again and again" if again else ""), {"claude.stale_poll": made}
    )


async def archived_session(ground: Ground) -> Observed:
    item = await ground.offered()
    session_id = ground.session_of(item)
    await _until_idle(ground, session_id)
    archived = (await ground.claude("POST", f"/v1/sessions/{session_id}/archive", key="api")).status_code
    if archived >= 300:
        raise NotTried(f"the session could not be archived: HTTP {archived}")
    found = (await ground.item(item["id"]))["state"]
    stopped = found == "stopped"
    return Observed(found == "queued", f"its item is {found}", {"claude.archive_stops_item": stopped})


async def _until_idle(ground: Ground, session_id: str) -> None:
    end = time.monotonic() + _IDLE
    while time.monotonic() < end:
        answer = await ground.claude("GET", f"/v1/sessions/{session_id}")
        if answer.status_code == 200 and answer.json().get("status") == "idle":
            return
        await asyncio.sleep(0.2)
    raise NotTried(f"the session was not idle within {_IDLE:.0f} s")


_QUEUE: Final = "docs/wire/anthropic.md#32-endpoints"
_STATES: Final = "docs/wire/anthropic.md#33-state-machine"

CHECKS: Final = (
    ServiceCheck(
        "queue.reclaim",
        _QUEUE,
        "an item that was handed out and not acked is handed out again when the polling request's window is over, and"
        " not before",
        "earlier: two dispatchers claim one item, and `ready` of the second one decides. Later: what a crash left waits"
        " longer than `RECLAIM_SECONDS`",
        reclaim,
    ),
    ServiceCheck(
        "queue.lapsed-pending",
        _STATES,
        "stats count a reservation whose window is over as pending, until it is claimed",
        "nothing: the count is shown, and decides nothing",
        lapsed_pending,
    ),
    ServiceCheck(
        "queue.ack-unclaimed",
        _QUEUE,
        "an ack is taken whoever claimed the item, and though nobody did",
        "an ack after somebody else's reclaim is refused, and reported; the other dispatcher serves the item",
        ack_unclaimed,
    ),
    ServiceCheck(
        "queue.second-ack",
        _QUEUE,
        "a second ack is answered 200",
        "a doubtful ack that was taken is reported as a refusal; the item is served all the same",
        second_ack,
    ),
    ServiceCheck(
        "queue.stopped-ack",
        _QUEUE,
        "the ack of a stopped item is answered 200",
        "a drain whose item is stopped meanwhile reports a refused ack; a heartbeat ends its worker either way",
        stopped_ack,
    ),
    ServiceCheck(
        "queue.second-stop",
        _QUEUE,
        "a second stop is answered 200",
        "a stop costs the SDK's three tries, and a tick's report calls it refused",
        second_stop,
    ),
    ServiceCheck(
        "queue.poll-order",
        _STATES,
        "polls hand the oldest item out first",
        "a session that waits may be overtaken by newer ones as long as they come",
        poll_order,
    ),
    ServiceCheck(
        "queue.list-order",
        _QUEUE,
        "work list has the newest items first",
        "a tick reads all pages within its budget: `RECONCILE_PAGES` decides how far it sees",
        list_order,
    ),
    ServiceCheck(
        "queue.list-stopped",
        _QUEUE,
        "stopped items stay in work list",
        "deaths and ages are told from live items alone; a session's end is seen by its own status",
        list_stopped,
    ),
    ServiceCheck(
        "queue.secret",
        "docs/wire/anthropic.md#31-work-item",
        "a poll hands out a secret",
        "no worker can serve without the environment key, which no sandbox gets: sessions are not served",
        has_secret,
    ),
    ServiceCheck(
        "queue.create-enqueues",
        _STATES,
        "a session that is created without events is queued at once",
        "sessions get their sandbox with their first message: nothing is prepared before",
        create_enqueues,
    ),
    ServiceCheck(
        "queue.deleted-session",
        _STATES,
        "a poll that meets the item of a deleted session answers 404, once, and the next one goes on",
        "nothing is lost: an item that is handed out gets a sandbox, whose worker finds no session, and a tick ends it",
        deleted_session,
    ),
    ServiceCheck(
        "queue.archived-session",
        _STATES,
        "the item of an archived session stays queued",
        "nothing: a worker that gets one finds the session terminated, and stops the item",
        archived_session,
    ),
    ServiceCheck(
        "queue.block-limit",
        _QUEUE,
        "`block_ms` over 999 is refused with 400",
        "`make poll` may hold its polls for longer, and sends fewer",
        block_limit,
    ),
)
