"""Assumptions that need a turn of the agent's model (docs/wire/anthropic.md#81-a-self-hosted-turn).

Three sessions with a message each, of which several checks read: they are what the checks of the queue cost.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.item_life import beat
from infra.cli.certify.observation import NotTried, Observed, answered_with

_PROMPT: Final = "run echo certify"
_TURN_ENDS: Final = 10.0
"""Seconds after an interrupt."""
_CALLED: Final = 60.0
_SEEN: Final = 10.0
_TWO: Final = 3.0
_TWO_OFFLINE: Final = 0.5
"""Seconds after a message in which a second item would come."""


@dataclass(frozen=True, slots=True)
class _Answered:
    """A session waited for a result and had no item, as after the release of a stranded one."""

    by_environment_key: int
    second: int
    queued: bool
    mirrored: bool


async def _answered(ground: Ground) -> _Answered:
    session_id, call_id = await _unserved_call(ground)
    status = first = (await _give_up(ground, session_id, call_id, "environment")).status_code
    if status >= 300:
        status = (await _give_up(ground, session_id, call_id, "api")).status_code
    if status >= 300:
        raise NotTried(f"the result was refused: HTTP {first} and HTTP {status}")
    queued = await ground.live_item(session_id, _SEEN) is not None
    second = (await _give_up(ground, session_id, call_id, "api")).status_code
    answers = [event for event in await _events(ground, session_id) if event["type"] == "agent.tool_result"]
    return _Answered(first, second, queued, any(event.get("tool_use_id") == call_id for event in answers))


async def results_enqueue(ground: Ground) -> Observed:
    queued = (await ground.once(_answered)).queued
    seen = "it queues again" if queued else f"no item within {_SEEN:.0f} s"
    return Observed(queued, seen, {"claude.results_enqueue": queued})


async def results_by_environment_key(ground: Ground) -> Observed:
    status = (await ground.once(_answered)).by_environment_key
    taken = status < 300
    return Observed(taken, f"HTTP {status}", {"claude.no_events_from_environment_keys": not taken})


async def second_result(ground: Ground) -> Observed:
    again = (await ground.once(_answered)).second
    behaviour = answered_with("claude.second_result_status", again, 200, 400, 409)
    return Observed(again < 300, f"HTTP {again}", behaviour)


async def result_mirrored(ground: Ground) -> Observed:
    mirrored = (await ground.once(_answered)).mirrored
    seen = "`agent.tool_result` follows it" if mirrored else "no `agent.tool_result` follows it"
    return Observed(not mirrored, seen, {"claude.mirrors_results": mirrored})


@dataclass(frozen=True, slots=True)
class _Interrupted:
    """The same, given up by an interrupt. Then what an environment key may send, in order."""

    over: bool
    by_environment_key: dict[str, int]


async def _interrupted(ground: Ground) -> _Interrupted:
    session_id, call_id = await _unserved_call(ground)
    interrupt = {"type": "user.interrupt"}
    status = (await _send(ground, session_id, interrupt, "api")).status_code
    if status >= 300:
        raise NotTried(f"the interrupt was refused: HTTP {status}")
    end = time.monotonic() + _TURN_ENDS
    over = False
    while not over and time.monotonic() < end:
        idle = [event for event in await _events(ground, session_id) if event["type"] == "session.status_idle"]
        over = any((event.get("stop_reason") or {}).get("type") == "end_turn" for event in idle)
        await asyncio.sleep(0.2)
    message = {"type": "user.message", "content": [{"type": "text", "text": "Say ok."}]}
    statuses = {"user.interrupt": (await _send(ground, session_id, interrupt, "environment")).status_code}
    statuses["user.tool_result"] = (await _give_up(ground, session_id, call_id, "environment")).status_code
    statuses["user.message"] = (await _send(ground, session_id, message, "environment")).status_code
    return _Interrupted(over, statuses)


async def interrupt_ends_calls(ground: Ground) -> Observed:
    over = (await ground.once(_interrupted)).over
    seen = f"the turn is {'over' if over else f'not over within {_TURN_ENDS:.0f} s'}"
    return Observed(over, seen, {"claude.interrupt_ends_calls": over})


async def events_by_environment_key(ground: Ground) -> Observed:
    statuses = (await ground.once(_interrupted)).by_environment_key
    other = [status for kind, status in statuses.items() if kind != "user.tool_result"]
    if {401, 403} & {statuses["user.tool_result"]} and not any(status < 300 for status in other):
        return Observed(True, "no event at all, results neither")
    refused = any(status >= 300 for status in other)
    seen = ", ".join(f"{kind}: HTTP {status}" for kind, status in statuses.items() if kind != "user.tool_result")
    return Observed(not refused, seen, {"claude.results_only_for_workers": refused})


@dataclass(frozen=True, slots=True)
class _LateMessage:
    """A message came while an item was active, and its worker ended without a look at it."""

    items: int
    """The most that lived at once while the worker did."""
    queued: bool


async def _late_message(ground: Ground) -> _LateMessage:
    item = await ground.started()
    session_id = ground.session_of(item)
    status = (await beat(ground, item["id"])).status_code
    if status != 200:
        raise NotTried(f"the first heartbeat was refused: HTTP {status}")
    await ground.say(session_id, _PROMPT)
    end = time.monotonic() + (_TWO_OFFLINE if ground.context.offline else _TWO)
    most = 0
    while most < 2 and time.monotonic() < end:
        most = max(most, len(await _live(ground, session_id)))
        await asyncio.sleep(0.2)
    await ground.work("POST", f"/{item['id']}/stop", {"force": True})
    end, called, queued = time.monotonic() + _CALLED, False, False
    while not queued and time.monotonic() < end:
        if not called and await _calls(ground, session_id):
            end, called = time.monotonic() + _SEEN, True
        await asyncio.sleep(0.2)
        queued = bool(await _live(ground, session_id))
    return _LateMessage(most, queued)


async def two_items(ground: Ground) -> Observed:
    two = (await ground.once(_late_message)).items > 1
    seen = "a message to a session with an active item made " + ("another" if two else "no other")
    return Observed(not two, seen, {"claude.message_adds_item": two})


async def message_at_stop(ground: Ground) -> Observed:
    queued = (await ground.once(_late_message)).queued
    seen = "it is queued again" if queued else f"no item within {_SEEN:.0f} s of the call that it led to"
    return Observed(queued, seen, {"claude.message_at_stop_enqueues": queued})


async def _live(ground: Ground, session_id: str) -> list[dict[str, Any]]:
    items = await ground.items()
    return [item for item in items if ground.session_of(item) == session_id and item["state"] != "stopped"]


async def _unserved_call(ground: Ground) -> tuple[str, str]:
    """A session with one open tool call and no item."""
    session_id = await ground.session(_PROMPT)
    end = time.monotonic() + _CALLED
    calls: list[str] = []
    while not calls and time.monotonic() < end:
        calls = await _calls(ground, session_id)
        await asyncio.sleep(0.2)
    if not calls:
        raise NotTried("the model called no tool")
    item = await ground.claim(session_id)
    await ground.work("POST", f"/{item['id']}/ack")
    await ground.work("POST", f"/{item['id']}/stop", {"force": True})
    return session_id, calls[0]


async def _calls(ground: Ground, session_id: str) -> list[str]:
    return [str(event["id"]) for event in await _events(ground, session_id) if event["type"] == "agent.tool_use"]


async def _events(ground: Ground, session_id: str) -> list[dict[str, Any]]:
    answer = await ground.claude("GET", f"/v1/sessions/{session_id}/events", limit=1000)
    return list(answer.json().get("data", []))


async def _give_up(ground: Ground, session_id: str, call_id: str, key: str) -> Any:
    content = [{"type": "text", "text": "certify: the worker was lost"}]
    event = {"type": "user.tool_result", "tool_use_id": call_id, "is_error": True, "content": content}
    return await _send(ground, session_id, event, key)


async def _send(ground: Ground, session_id: str, event: dict[str, Any], key: str) -> Any:
    return await ground.claude("POST", f"/v1/sessions/{session_id}/events", {"events": [event]}, key=key)


_STATES: Final = "docs/wire/anthropic.md#33-state-machine"
_CREDENTIALS: Final = "docs/wire/anthropic.md#12-credentials"

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
        "queue.result-mirrored",
        "docs/wire/anthropic.md#81-a-self-hosted-turn",
        "no `agent.tool_result` follows a `user.tool_result`",
        "nothing: what follows a session shows one result of a call, whichever comes",
        result_mirrored,
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
        "queue.events-by-environment-key",
        _CREDENTIALS,
        "an environment key that may send results may send `user.interrupt` and `user.message`, too",
        "a tick's last resort for a stuck session, an interrupt, is refused: `make repair` sends it, with the API key",
        events_by_environment_key,
        180.0,
    ),
    ServiceCheck(
        "queue.two-items",
        _STATES,
        "a session has one item at a time that is not stopped",
        "two workers of one session meet at the lock in its sandbox: the second waits until the first has ended",
        two_items,
        180.0,
    ),
    ServiceCheck(
        "queue.message-at-stop",
        _STATES,
        "a message that no worker saw before its item's stop queues the session again",
        "such a session waits for the next tick, which looks for unanswered calls without an item",
        message_at_stop,
        180.0,
    ),
)
