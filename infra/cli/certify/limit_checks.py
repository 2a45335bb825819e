"""Assumptions about the limits of both services: which calls count against them, and how a quota is told.

Nothing here comes near a limit: answers say by their headers what is left. The quota of sandboxes alone must be met to
be seen, and only where somebody asks for it (`--quota`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.item_life import NO_HEARTBEAT, beat, held_by
from infra.cli.certify.observation import NotTried, Observed
from shared.ports import Created, NoCapacity, Refused

if TYPE_CHECKING:
    import httpx2

MOST_SANDBOXES: Final = 20
"""A larger quota is not met: it would cost more than it tells."""
_TRIES: Final = 3
_PREFIXES: Final = ("anthropic-ratelimit-", "x-ratelimit-", "ratelimit")
_QUOTA: Final = "docs/wire/tensorlake.md#11-quotas-and-prices"


def told(headers: Mapping[str, str]) -> str | None:
    """What an answer tells of a limit of calls; None where it tells of none."""
    limits = _limits(headers)
    left, most = (_number(limits, ending) for ending in ("remaining", "limit"))
    if not limits:
        return None
    return "a header says so" if left is None else f"{left} left" if most is None else f"{left} of {most} left"


def _limits(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith(_PREFIXES)}


def _number(limits: Mapping[str, str], ending: str) -> int | None:
    """Of requests rather than of tokens."""
    for name in sorted(limits, key=lambda each: "request" not in each):
        if name.endswith(f"-{ending}") and limits[name].isascii() and limits[name].isdigit():
            return int(limits[name][:12])
    return None


class Counts(StrEnum):
    YES = "counts"
    NO = "does not count"
    UNCLEAR = "unclear"


def counted(first: Mapping[str, str], second: Mapping[str, str]) -> Counts:
    """What the headers of two answers to one call tell, that came one right after the other. A limit that refills
    meanwhile, or that earlier calls used up, makes it unclear."""
    if not _limits(first) and not _limits(second):
        return Counts.NO
    before, after = (_number(_limits(headers), "remaining") for headers in (first, second))
    most = _number(_limits(second), "limit")
    if before is None or after is None:
        return Counts.UNCLEAR
    if after < before:
        return Counts.YES
    return Counts.NO if before == after == most else Counts.UNCLEAR


async def calls_of_the_queue(ground: Ground) -> Observed:
    """Reads of agents and sessions count, as is documented: where not even they tell of a limit, no answer does."""
    item = await ground.claimed()
    session_id = ground.session_of(item)
    one, held = f"/{item['id']}", [NO_HEARTBEAT]
    reclaim_ms = int(ground.context.settings.times.reclaim * 1000)

    async def heartbeat() -> httpx2.Response:
        answer = await beat(ground, item["id"], held[0])
        held[0] = held_by(answer, held[0])
        return answer

    calls: dict[str, Callable[[], Awaitable[httpx2.Response]]] = {
        "GET /agents": lambda: ground.claude("GET", "/v1/agents", key="api", limit=1),
        "GET /sessions/{id}": lambda: ground.claude("GET", f"/v1/sessions/{session_id}"),
        "GET /work/poll": lambda: ground.work("GET", "/poll", reclaim_older_than_ms=reclaim_ms),
        "POST /ack": lambda: ground.work("POST", f"{one}/ack"),
        "POST /heartbeat": heartbeat,
        "GET /work": lambda: ground.work("GET", "", limit=1),
        "GET /stats": lambda: ground.work("GET", "/stats"),
        "POST /stop": lambda: ground.work("POST", f"{one}/stop", {"force": True}),
    }
    found = {name: await _tried(call) for name, call in calls.items()}
    control = {found.pop(name) for name in ("GET /agents", "GET /sessions/{id}")}
    if Counts.YES not in control:
        raise NotTried("not even reads of agents and sessions tell of a limit that they count against")
    yes, unclear = ([call for call, each in found.items() if each is which] for which in (Counts.YES, Counts.UNCLEAR))
    seen = "none of them counts, while reads of agents or sessions do"
    if yes or unclear:
        seen = "; ".join(
            f"{what}: {', '.join(names)}" for what, names in (("count", yes), ("unclear", unclear)) if names
        )
    return Observed(False if yes else None if unclear else True, seen, {"claude.counted_calls": yes})


async def _tried(call: Callable[[], Awaitable[httpx2.Response]]) -> Counts:
    """Again where it is unclear, for a limit may have begun anew between the two."""
    for _ in range(_TRIES):
        first, second = await call(), await call()
        seen = counted(first.headers, second.headers)
        if seen is not Counts.UNCLEAR:
            break
    return seen


async def calls_to_sandboxes(ground: Ground) -> Observed:
    one = f"/sandboxes/{(await ground.shared()).id}"
    answers = {
        "GET /sandboxes": await ground.lifecycle("GET", "/sandboxes"),
        "GET /sandboxes/{id}": await ground.lifecycle("GET", one),
        "POST /suspend": await ground.lifecycle("POST", f"{one}/suspend"),
        "POST /resume": await ground.lifecycle("POST", f"{one}/resume"),
    }
    tell = {call: each for call, answer in answers.items() if (each := told(answer.headers)) is not None}
    limits = [_number(answer.headers, "limit") or _number(answer.headers, "remaining") for answer in answers.values()]
    most = max((each for each in limits if each), default=None)
    seen = "no answer tells of a limit"
    if tell:
        seen = "these tell of one: " + ", ".join(f"{call} ({each})" for call, each in tell.items())
    return Observed(not tell, seen, {"tensorlake.calls_a_minute": most if tell else None})


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
        "no answer of the lifecycle plane tells of a limit of calls",
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
