"""What a worker knows of its lease on a work item, and what each answer to a heartbeat teaches it.

A heartbeat names the previous one's `last_heartbeat` (the first says NO_HEARTBEAT); the service compares and answers
412 on a difference (docs/wire/anthropic.md#32-endpoints). So a worker whose answer was lost names an outdated value
next time and is told 412 by its own success. The rule here: after a beat whose outcome is not known, a 412 that says
`active` with a `last_heartbeat` shows our own beat, for the lock keeps every other worker out of this sandbox and the
sandbox is the session's only one; that value is taken over, once. Without such a beat a 412 means what it says.

A lease may also end unseen: its answer waited in a socket while the sandbox slept, and the item was offered again. An
item that is then `starting` without a heartbeat was acked for the worker in this sandbox that was seen to wait for it,
which by the same lock is this one: it takes the lease anew, or nobody would.

One object sees every beat of an item, from the first one before the lease to the SDK's last. It is not thread-safe:
beats are sent one after another.
"""

from __future__ import annotations

import enum
import json
from typing import Any, Final

NO_HEARTBEAT: Final = "NO_HEARTBEAT"
_LONGEST_INTERVAL: Final = 30.0  # seconds; the SDK's own rhythm
_SHORTEST_INTERVAL: Final = 1.0
_ASSUMED_TTL: Final = 90.0  # seconds, until the service has named one


class Verdict(enum.Enum):
    HELD = enum.auto()  # the lease is ours, extended just now
    OURS = enum.auto()  # an earlier beat of ours had succeeded: beat again, with the value it left
    ACKED_ANEW = enum.auto()  # the lease had ended unseen and nobody has one: beat again, as for the first time
    NOT_ACKED = enum.auto()  # nobody has acked the item yet
    STOPPED = enum.auto()  # the item is being stopped, or is: no lease
    LOST = enum.auto()  # somebody else's
    REFUSED = enum.auto()  # the credential is not accepted
    DOUBTFUL = enum.auto()  # nothing is known


class Lease:
    def __init__(self) -> None:
        self.value = NO_HEARTBEAT
        self.ttl = _ASSUMED_TTL
        self.state = ""  # the item's state as last told
        self._granted = False  # a 200 has said that the lease is ours
        self._unknown = False  # a beat is on its way, or its outcome was never learnt
        self._unknown_before = False

    @property
    def interval(self) -> float:
        """Seconds between two beats."""
        return max(_SHORTEST_INTERVAL, min(self.ttl / 2, _LONGEST_INTERVAL))

    def sending(self) -> str:
        """The value for a beat that goes out now. Its outcome counts as unknown until `judge` has an answer, so a
        beat that is cancelled, cut or killed on the way needs no further word."""
        self._unknown_before = self._unknown
        self._unknown = True
        return self.value

    def judge(self, status: int, body: bytes) -> Verdict:
        """The answer to the beat sent last."""
        if status == 200:
            return self._extended(_object(body))
        if status == 412:
            return self._mismatch(_object(body))
        if 400 <= status < 500 and status != 408:
            # An answer of the service that had no effect; an earlier beat may still be under way.
            self._unknown = self._unknown_before
            return Verdict.REFUSED if status in (401, 403) else Verdict.DOUBTFUL
        return Verdict.DOUBTFUL

    def _extended(self, answer: dict[str, Any]) -> Verdict:
        state, value, ttl = answer.get("state"), answer.get("last_heartbeat"), answer.get("ttl_seconds")
        extended = answer.get("lease_extended")
        if not isinstance(state, str) or not isinstance(extended, bool) or not isinstance(value, str):
            return Verdict.DOUBTFUL
        if isinstance(ttl, bool) or not isinstance(ttl, int | float):
            return Verdict.DOUBTFUL
        if state in ("stopping", "stopped") or not extended:
            self.state = state
            self._unknown = False
            return Verdict.STOPPED
        if not value:
            return Verdict.DOUBTFUL
        self.state, self.value = state, value
        self._granted = True
        self.ttl = float(ttl) if ttl > 0 else self.ttl
        self._unknown = False
        return Verdict.HELD

    def _mismatch(self, answer: dict[str, Any]) -> Verdict:
        current = _dig(answer, "error", "details", "current_state")
        self.state = state = str(current.get("state") or "")
        value = current.get("last_heartbeat")
        if state in ("stopping", "stopped"):
            return Verdict.STOPPED
        if state == "active":
            if self._unknown_before and isinstance(value, str) and value:
                self.value = value
                self._unknown = False
                return Verdict.OURS
            return Verdict.LOST
        # A beat that was lost on its way may yet arrive, after the ack: it stays unknown.
        self._unknown = self._unknown_before
        if self._granted:
            if state != "starting" or value or self.value == NO_HEARTBEAT:
                return Verdict.LOST
            self.value = NO_HEARTBEAT
            return Verdict.ACKED_ANEW
        # A beat that was found to be ours may have lapsed before it was used: the item is to be had anew.
        self.value = NO_HEARTBEAT
        return Verdict.NOT_ACKED


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _dig(node: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}
