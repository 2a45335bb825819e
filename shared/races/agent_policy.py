"""What an agent may race, and for how long (docs/security.md#capability-tokens).

An agent can read its capability token, so a token must not reach further than its session does by itself: whatever
starts elsewhere, stays longer than the race or runs the operator's own code is the operator's alone. And an agent's
race must be over, its promotion and its ends included, while its worker still waits for the answer.
tests/functions/test_agent_auth.py, tests/shared/races/test_race_faults.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from shared.capability import Capability
from shared.errors import HandsError

if TYPE_CHECKING:
    from shared.races.ends import RaceTimeouts
    from shared.races.request import RaceRequest


@dataclass(frozen=True, slots=True)
class AgentTimes:
    """Seconds of one tool call.

    waits: what the worker waits (145, image/session/worker/fork_tool.py), less what the way takes.
    reaps, ends: for each end of something, and for all of them together. What ends later is a leftover in the report,
        and the reconciler's; late_ends is what those are given all the same.
    books: for the day's ledger, at a race's end (shared/races/ledger.py); it is on the way of the answer.
    promotes, applies: for a promotion, and for one whose time is up while it changes files: it goes on to its end.
    """

    waits: float = 140.0
    reaps: float = 6.0
    ends: float = 12.0
    late_ends: float = 3.0
    books: float = 2.0
    promotes: float = 12.0
    applies: float = 8.0


TIMES: Final = AgentTimes()


class NotAllowed(HandsError):
    """Part of a request that an agent may not make. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def with_own_source(body: bytes, caller: Capability) -> bytes:
    """The body with what an agent need not say, its session and its environment, without parsing it.

    They are written before everything else: of two equal names the parser of the model takes the last, so what the
    agent says itself counts. What is no JSON object is left as it is, for the model to refuse.
    """
    text = body.lstrip(b" \t\r\n")
    if not text.startswith(b"{"):
        return body
    rest = text[1:]
    own = orjson.dumps({"source": {"session_id": caller.session_id}, "environment_id": caller.environment_id})
    return own[:-1] + (b"" if rest.lstrip(b" \t\r\n").startswith(b"}") else b",") + rest


def narrowed(race: RaceRequest, caller: Capability) -> RaceRequest:
    """The race with the capability's own deadline where it names none. Raises NotAllowed."""
    if race.source.model_dump(exclude_none=True) != {"session_id": caller.session_id}:
        raise NotAllowed("source", "an agent's race starts from its own session: leave the source out")
    if race.environment_id != caller.environment_id:
        raise NotAllowed("environment_id", "an agent's race stays in its own environment")
    if race.promote not in ("none", "workspace"):
        raise NotAllowed("promote", "an agent may promote into its workspace, or not at all")
    if race.checkpoint != "filesystem":
        raise NotAllowed("checkpoint", "an agent's race starts from the files of its sandbox")
    if any(step.judge.type == "plugin" for step in race.panel):
        raise NotAllowed("judge" if race.judges is None else "judges", "plug-ins are for the operator")
    if race.on_finish is not None:
        raise NotAllowed("on_finish", "webhooks are for the operator")
    if race.most_branches > caller.branches:
        over = "" if race.rounds == 1 else ", in all rounds together"
        raise NotAllowed(race.branches_field, f"at most {caller.branches} branches here{over}")
    if race.deadline is not None and race.deadline > caller.seconds:
        raise NotAllowed("deadline", f"at most {caller.seconds:g} seconds here")
    return race.model_copy(update={"deadline": race.deadline or caller.seconds})


def in_time(race: RaceRequest, spent: float, longest: float | None = None) -> RaceRequest:
    """The race with a deadline that leaves time for what comes after it, `spent` seconds after its call.

    `longest`: what this runtime has for a race, where it says so.
    """
    left = TIMES.waits - spent - TIMES.ends - TIMES.late_ends
    if race.promote != "none":
        left -= TIMES.promotes + TIMES.applies
    left = min(left, race.deadline or left, left if longest is None else longest)
    return race.model_copy(update={"deadline": max(1.0, left)})


def timeouts(boot: float) -> RaceTimeouts:
    """How patient an agent's race is."""
    from shared.races.ends import RaceTimeouts

    return RaceTimeouts(boot=boot, promote=TIMES.promotes, reap=TIMES.reaps, ends=TIMES.ends)
