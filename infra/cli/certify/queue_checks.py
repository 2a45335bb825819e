"""Assumptions about the work queue and sessions (docs/wire/anthropic.md)."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried, Observed

_LAPSE: Final = 150.0
"""Seconds after an ack by which a start-up lease of about 120 s would have lapsed."""
_TTL: Final = 15
_LEEWAY: Final = 5.0
_TURN_ENDS: Final = 10.0
"""Seconds after an interrupt."""


async def create_enqueues(ground: Ground) -> Observed:
    session_id = await ground.session()
    queued = await ground.live_item(session_id, 5.0) is not None
    seen = "an item within 5 s" if queued else "no item within 5 s"
    return Observed(queued, f"a session without events has {seen}", {"claude.create_enqueues": queued})


async def has_secret(ground: Ground) -> Observed:
    item = await ground.claimed()
    null = item.get("secret") is None
    return Observed(not null, "the secret is null" if null else "the secret is a text", {"claude.null_secret": null})


async def beat_before_ack(ground: Ground) -> Observed:
    item = await ground.claimed()
    status = (await beat(ground, item["id"])).status_code
    return Observed(status == 412, f"HTTP {status}", {"claude.beat_claims_unacked": status == 200})


async def second_ack(ground: Ground) -> Observed:
    item = await ground.started()
    status = (await ground.work("POST", f"/{item['id']}/ack")).status_code
    return Observed(status == 200, f"HTTP {status}", _status("claude.second_ack_status", status))


async def second_stop(ground: Ground) -> Observed:
    item = await ground.started()
    first = (await ground.work("POST", f"/{item['id']}/stop", {"force": True})).status_code
    again = (await ground.work("POST", f"/{item['id']}/stop", {"force": True})).status_code
    seen = f"HTTP {first}, then HTTP {again}"
    return Observed(first == again == 200, seen, _status("claude.second_stop_status", again))


async def startup_lease(ground: Ground) -> Observed:
    item = await ground.started()
    await ground.pass_time(item["id"], _LAPSE)
    state = (await ground.item(item["id"]))["state"]
    lapsed = state == "queued"
    behaviour = {"claude.startup_lease": 120.0 if lapsed else None}
    return Observed(state == "starting", f"{state} {_LAPSE:.0f} s after the ack, without a heartbeat", behaviour)


async def desired_ttl(ground: Ground) -> Observed:
    item = await ground.started()
    answer = await beat(ground, item["id"], desired_ttl_seconds=_TTL)
    if answer.status_code != 200:
        return Observed(False, f"HTTP {answer.status_code}", {"claude.honour_desired_ttl": False})
    ttl = answer.json()["ttl_seconds"]
    return Observed(ttl == _TTL, f"asked for {_TTL}, got {ttl}", {"claude.honour_desired_ttl": ttl == _TTL})


async def requeue_fields(ground: Ground) -> Observed:
    item = await ground.started()
    answer = await beat(ground, item["id"], desired_ttl_seconds=_TTL)
    ttl = float(answer.json()["ttl_seconds"]) if answer.status_code == 200 else 300.0
    await ground.pass_time(item["id"], ttl + _LEEWAY)
    now = await ground.item(item["id"])
    if now["state"] != "queued":
        return Observed(False, f"{now['state']} {ttl + _LEEWAY:.0f} s after the last heartbeat")
    kept = [name for name in ("acknowledged_at", "started_at", "latest_heartbeat_at") if now.get(name) is not None]
    seen = "queued under the same id, " + (f"still with {', '.join(kept)}" if kept else "all three times null")
    return Observed(not kept, seen, {"claude.requeue_keeps_times": bool(kept)})


async def list_order(ground: Ground) -> Observed:
    older, newer = await ground.claimed(), await ground.claimed()
    ids = [item["id"] for item in await ground.items()]
    if older["id"] not in ids or newer["id"] not in ids:
        raise NotTried("the first page has not both items")
    order = "newest_first" if ids.index(newer["id"]) < ids.index(older["id"]) else "oldest_first"
    return Observed(order == "newest_first", order.replace("_", " "), {"claude.list_order": order})


async def list_stopped(ground: Ground) -> Observed:
    item = await ground.started()
    await ground.work("POST", f"/{item['id']}/stop", {"force": True})
    stays = any(each["id"] == item["id"] for each in await ground.items())
    return Observed(stays, "it stays" if stays else "it is gone", {"claude.list_has_stopped": stays})


async def results_enqueue(ground: Ground) -> Observed:
    """A session waits for a result and has no item, as after the release of a stranded one."""
    session_id, call_id = await _unserved_call(ground)
    status = (await _give_up(ground, session_id, call_id, "environment")).status_code
    if status >= 300:
        status = (await _give_up(ground, session_id, call_id, "api")).status_code
    if status >= 300:
        raise NotTried(f"the result was refused: HTTP {status}")
    queued = await ground.live_item(session_id, 10.0) is not None
    seen = "it queues again" if queued else "no item within 10 s"
    return Observed(queued, seen, {"claude.results_enqueue": queued})


async def results_by_environment_key(ground: Ground) -> Observed:
    session_id, call_id = await _unserved_call(ground)
    status = (await _give_up(ground, session_id, call_id, "environment")).status_code
    taken = status < 300
    return Observed(taken, f"HTTP {status}", {"claude.no_events_from_environment_keys": not taken})


async def second_result(ground: Ground) -> Observed:
    session_id, call_id = await _unserved_call(ground)
    first = (await _give_up(ground, session_id, call_id, "api")).status_code
    if first >= 300:
        raise NotTried(f"the first result was refused: HTTP {first}")
    again = (await _give_up(ground, session_id, call_id, "api")).status_code
    behaviour = {"claude.second_result_status": again} if again in (200, 400, 409) else {}
    return Observed(again < 300, f"HTTP {first}, then HTTP {again}", behaviour)


async def interrupt_ends_calls(ground: Ground) -> Observed:
    """A session waits for a result and has no item: `repair` ends such a turn so."""
    session_id, _ = await _unserved_call(ground)
    interrupt = {"events": [{"type": "user.interrupt"}]}
    status = (await ground.claude("POST", f"/v1/sessions/{session_id}/events", interrupt, key="api")).status_code
    if status >= 300:
        raise NotTried(f"the interrupt was refused: HTTP {status}")
    end = time.monotonic() + _TURN_ENDS
    ended = False
    while not ended and time.monotonic() < end:
        answer = await ground.claude("GET", f"/v1/sessions/{session_id}/events", limit=1000)
        idle = [event for event in answer.json().get("data", []) if event["type"] == "session.status_idle"]
        ended = any((event.get("stop_reason") or {}).get("type") == "end_turn" for event in idle)
        await asyncio.sleep(0.2)
    seen = f"the turn is {'over' if ended else f'not over within {_TURN_ENDS:.0f} s'}"
    return Observed(ended, seen, {"claude.interrupt_ends_calls": ended})


async def block_limit(ground: Ground) -> Observed:
    await ground.session()  # raises where others are at work
    item = await ground.work("GET", "/poll", block_ms=1500)
    refused = item.status_code == 400
    return Observed(refused, f"HTTP {item.status_code}", {"claude.longest_block_ms": 999 if refused else 1500})


async def api_key_polls(ground: Ground) -> Observed:
    await ground.session()
    status = (await ground.work("GET", "/poll", key="api")).status_code
    return Observed(status in (401, 403), f"HTTP {status}", {"claude.api_key_polls": status == 200})


async def beta_header(ground: Ground) -> Observed:
    status = (await ground.work("GET", "/stats", beta=False)).status_code
    return Observed(status == 404, f"HTTP {status}", {"claude.require_beta_header": status == 404})


async def beat(ground: Ground, work_id: str, **params: Any) -> Any:
    """The first heartbeat of an item."""
    return await ground.work("POST", f"/{work_id}/heartbeat", expected_last_heartbeat="NO_HEARTBEAT", **params)


async def _unserved_call(ground: Ground) -> tuple[str, str]:
    """A session with one open tool call and no item."""
    session_id = await ground.session("run echo certify")
    end = time.monotonic() + 60.0
    calls: list[str] = []
    while not calls and time.monotonic() < end:
        answer = await ground.claude("GET", f"/v1/sessions/{session_id}/events", limit=1000)
        calls = [str(event["id"]) for event in answer.json().get("data", []) if event["type"] == "agent.tool_use"]
        await asyncio.sleep(0.2)
    if not calls:
        raise NotTried("the model called no tool")
    item = await ground.claim(session_id)
    await ground.work("POST", f"/{item['id']}/ack")
    await ground.work("POST", f"/{item['id']}/stop", {"force": True})
    return session_id, calls[0]


async def _give_up(ground: Ground, session_id: str, call_id: str, key: str) -> Any:
    content = [{"type": "text", "text": "certify: the worker was lost"}]
    event = {"type": "user.tool_result", "tool_use_id": call_id, "is_error": True, "content": content}
    return await ground.claude("POST", f"/v1/sessions/{session_id}/events", {"events": [event]}, key=key)


def _status(name: str, status: int) -> dict[str, Any]:
    """What the offline platform can answer in this place."""
    return {name: status} if status in (200, 409) else {}


_QUEUE: Final = "docs/wire/anthropic.md#32-endpoints"
_STATES: Final = "docs/wire/anthropic.md#33-state-machine"
_CREDENTIALS: Final = "docs/wire/anthropic.md#12-credentials"
_UNKNOWN: Final = "docs/wire/anthropic.md#13-unknowns"

CHECKS: Final = (
    ServiceCheck(
        "queue.results-enqueue",
        _STATES,
        "error results to a session without an item queue it again",
        "the release of a stranded item must end with `user.interrupt`, which gives the turn up",
        results_enqueue,
        180.0,
    ),
    ServiceCheck(
        "queue.results-by-environment-key",
        _CREDENTIALS,
        "an environment key may post tool results",
        "a tick cannot release stranded items by itself: `make repair` does it, with the API key",
        results_by_environment_key,
        180.0,
    ),
    ServiceCheck(
        "queue.second-result",
        "docs/wire/anthropic.md#5-session-tool-runner",
        "a second result of one call is taken, and ignored",
        "a worker whose result was taken in a lost answer sees a refusal when it sends it again",
        second_result,
        180.0,
    ),
    ServiceCheck(
        "queue.interrupt-ends-calls",
        _STATES,
        "`user.interrupt` ends a turn that waits for a result and has no item",
        "`make repair` cannot give such a turn up: the session must be archived",
        interrupt_ends_calls,
        180.0,
    ),
    ServiceCheck(
        "queue.startup-lease",
        _STATES,
        "an item that was acked and never beat stays `starting`: nobody gets it again by waiting",
        "nothing is lost: `STRANDED_SECONDS` may be longer than the lease, and ticks release less",
        startup_lease,
        300.0,
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
        "queue.beat-before-ack",
        _QUEUE,
        "a first heartbeat before the ack is refused with 412",
        "a worker has its lease before the ack, and the ack that follows is what frees the reservation",
        beat_before_ack,
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
        "queue.second-ack",
        _QUEUE,
        "a second ack is answered 200",
        "a doubtful ack that was taken is reported as a refusal; the item is served all the same",
        second_ack,
    ),
    ServiceCheck(
        "queue.second-stop",
        _QUEUE,
        "a second stop is answered 200",
        "a stop costs the SDK's three tries, and a tick's report calls it refused",
        second_stop,
    ),
    ServiceCheck(
        "queue.create-enqueues",
        _STATES,
        "a session that is created without events is queued at once",
        "sessions get their sandbox with their first message: nothing is prepared before",
        create_enqueues,
    ),
    ServiceCheck(
        "queue.desired-ttl",
        _QUEUE,
        "`desired_ttl_seconds` sets the lease's length",
        "nothing: no worker sends it. It makes this certification faster",
        desired_ttl,
    ),
    ServiceCheck(
        "queue.block-limit",
        _QUEUE,
        "`block_ms` over 999 is refused with 400",
        "`make poll` may hold its polls for longer, and sends fewer",
        block_limit,
    ),
    ServiceCheck(
        "queue.api-key-polls",
        _CREDENTIALS,
        "an API key may not poll",
        "who has the API key can take work: keep it away from what should only watch",
        api_key_polls,
    ),
    ServiceCheck(
        "queue.beta-header",
        _UNKNOWN,
        "work routes answer 404 without the beta header",
        "nothing: the SDK sends it always",
        beta_header,
    ),
)
