"""Assumptions about the limits of both services: which calls count against them, and how a quota is told.

Nothing here comes near a limit: answers say by their headers what is left. The quota of sandboxes alone must be met to
be seen, and only where somebody asks for it (`--quota`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried, Observed
from infra.cli.certify.queue_checks import beat
from shared.ports import Created, NoCapacity, Refused

if TYPE_CHECKING:
    import httpx2

MOST_SANDBOXES: Final = 20
"""A larger quota is not met: it would cost more than it tells."""
_PREFIXES: Final = ("anthropic-ratelimit-", "x-ratelimit-", "ratelimit")
_QUOTA: Final = "docs/wire/tensorlake.md#11-quotas-and-prices"


def told(headers: Mapping[str, str]) -> str | None:
    """What an answer tells of a limit that its call counts against; None where it tells of none, or where nothing of
    the limit is used up."""
    limits = {name: value for name, value in headers.items() if name.startswith(_PREFIXES)}
    left, most = (_number(limits, ending) for ending in ("remaining", "limit"))
    if not limits or (left is not None and left == most):
        return None
    return "a header says so" if left is None else f"{left} left" if most is None else f"{left} of {most} left"


def _number(limits: Mapping[str, str], ending: str) -> int | None:
    """Of requests rather than of tokens."""
    for name in sorted(limits, key=lambda each: "request" not in each):
        if name.endswith(f"-{ending}") and limits[name].isascii() and limits[name].isdigit():
            return int(limits[name][:12])
    return None


async def calls_of_the_queue(ground: Ground) -> Observed:
    item = await ground.claimed()
    one = f"/{item['id']}"
    answers = {
        "GET /work/poll": await ground.work("GET", "/poll"),
        "POST /ack": await ground.work("POST", f"{one}/ack"),
        "POST /heartbeat": await beat(ground, item["id"]),
        "POST /stop": await ground.work("POST", f"{one}/stop", {"force": True}),
        "GET /work": await ground.work("GET", "", limit=1),
        "GET /stats": await ground.work("GET", "/stats"),
    }
    counted, seen = _counted(answers)
    return Observed(not counted, seen, {"claude.counted_calls": counted})


async def calls_to_sandboxes(ground: Ground) -> Observed:
    one = f"/sandboxes/{(await ground.shared()).id}"
    answers = {
        "GET /sandboxes": await ground.lifecycle("GET", "/sandboxes"),
        "GET /sandboxes/{id}": await ground.lifecycle("GET", one),
        "POST /suspend": await ground.lifecycle("POST", f"{one}/suspend"),
        "POST /resume": await ground.lifecycle("POST", f"{one}/resume"),
    }
    counted, seen = _counted(answers)
    limits = [_number(answer.headers, "limit") or _number(answer.headers, "remaining") for answer in answers.values()]
    most = max((each for each in limits if each), default=None)
    return Observed(not counted, seen, {"tensorlake.calls_a_minute": most if counted else None})


def _counted(answers: Mapping[str, httpx2.Response]) -> tuple[list[str], str]:
    each = {call: told(answer.headers) for call, answer in answers.items()}
    counted = [call for call, says in each.items() if says is not None]
    if not counted:
        return [], "no answer tells of a limit that its call counts against"
    return counted, "these count: " + ", ".join(f"{call} ({each[call]})" for call in counted)


async def quota(ground: Ground) -> Observed:
    """So many sandboxes as somebody says that the account may have, and one more."""
    there = 1 if ground.has_shared else 0
    for _ in range(ground.quota + 1 - there):
        name = ground.new_name()
        ground.owe(name, partial(ground.end_sandbox, name))
        made = await ground.host.create(ground.spec(name))
        match made:
            case Created():
                continue
            case Refused(status=status):
                seen = f"HTTP {status}, {'which says that there is no room' if _no_room(made) else 'like any refusal'}"
                return Observed(_no_room(made), seen, {"tensorlake.over_quota_status": status})
            case _:
                return Observed(False, str(getattr(made, "reason", "neither made nor refused")))
    raise NotTried(f"{ground.quota + 1} sandboxes ran at once: the quota is larger than --quota {ground.quota}")


def _no_room(refusal: Refused) -> bool:
    return isinstance(refusal, NoCapacity)


CHECKS: Final = (
    ServiceCheck(
        "queue.counted-calls",
        "docs/wire/anthropic.md#10-numbers",
        "polls, acks, heartbeats and stops do not count against the organisation's limits",
        "`ANTHROPIC_READS_PER_MINUTE` and `ANTHROPIC_WRITES_PER_MINUTE` must share the limit among all copies",
        calls_of_the_queue,
    ),
    ServiceCheck(
        "sandbox.counted-calls",
        _QUOTA,
        "no call to the lifecycle plane counts against a limit that its answer tells",
        "`TENSORLAKE_CALLS_PER_MINUTE` must share the limit among all copies",
        calls_to_sandboxes,
    ),
    ServiceCheck(
        "sandbox.quota",
        _QUOTA,
        "a create over the quota is refused in a way that says so",
        "a claim that meets the quota counts as a failed attempt, and is not put off until there is room",
        quota,
        asked=True,
    ),
)
