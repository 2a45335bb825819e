"""What drains and ticks report. Complete, small, free of secrets: it is an HTTP answer and a log line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from enum import StrEnum

import orjson


class ItemEnd(StrEnum):
    """What became of a claimed work item."""

    HANDED_OVER = "handed_over"  # a worker said ready, and the item is acked
    DISMISSED = "dismissed"  # not a session: acked and stopped
    SERVING = "serving"  # goes on behind this report; its end is in the log
    FAILED = "failed"  # not acked: it is offered again after R
    NO_CAPACITY = "no_capacity"  # the service has no room for its sandbox now; not acked
    UNFINISHED = "unfinished"  # time ran out; not acked
    GONE = "gone"  # the item is no more
    POISONED = "poisoned"  # given up after bounded deaths of its workers: stopped


@dataclass(frozen=True, slots=True)
class ItemReport:
    """`alarm`: a person should look at it."""

    work_id: str
    session_id: str
    end: ItemEnd
    seconds: float
    sandbox: str | None = None
    reason: str = ""
    alarm: bool = False


class DrainEnd(StrEnum):
    """Why a drain claimed no further."""

    EMPTY = "empty"
    DEADLINE = "deadline"
    LIMIT = "limit"
    UNAVAILABLE = "unavailable"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class DrainReport:
    """`alarms`: what a person should look at, with the names of what is concerned."""

    environment_id: str
    end: DrainEnd
    seconds: float
    polls: int
    items: Sequence[ItemReport] = ()
    reason: str = ""
    alarms: Sequence[str] = ()

    @property
    def counts(self) -> Mapping[str, int]:
        return Counter(item.end.value for item in self.items)


@dataclass(frozen=True, slots=True)
class TickReport:
    """One tick over all environments: first the drains, then the repairs."""

    drains: Sequence[DrainReport]
    reconciled: Sequence[ReconcileReport]
    seconds: float


def to_json(report: DrainReport | TickReport | Mapping[str, object]) -> bytes:
    """Compact JSON of a report, or of a mapping that holds some."""
    try:
        return orjson.dumps(report)
    except orjson.JSONEncodeError:  # a reason of a sandbox's may hold half a character, which is no JSON
        return orjson.dumps(_whole_characters(report))


def _whole_characters(value: object) -> object:
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case Mapping():
            return {str(name): _whole_characters(each) for name, each in value.items()}
        case list() | tuple():
            return [_whole_characters(each) for each in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return _whole_characters(asdict(value))
    return value


class Act(StrEnum):
    """The repairs, most urgent first: a pass works them off in this order."""

    RESUME = "resume"  # a sleeping sandbox whose item is starting or active
    RELEASE = "release"  # a stranded item: force-stop it, then answer its session's lost calls
    FINISH = "finish"  # a release left half done: answer the lost calls
    STOP_ITEM = "stop_item"  # a healthcheck that was acked and not stopped
    UNMARK = "unmark"  # a marked sandbox whose session has work after all
    TOUCH = "touch"  # keep an active sandbox from its idle time-out
    STOP_WORKER = "stop_worker"  # a worker past its hard lifetime
    END_FAILED = "end_failed"  # a sandbox that failed
    SUSPEND = "suspend"  # the worker is gone and the session idle
    MARK = "mark"  # first step of an end: rename it
    END_MARKED = "end_marked"  # second step, on a later tick
    END_NAMELESS = "end_nameless"  # claimed from a pool by a process that died before it gave it a name
    END_RACE = "end_race"  # what a race left behind
    PREPARE = "prepare"  # make an environment's prepared start, a step each tick
    END_PREPARED = "end_prepared"  # a prepared start that no session is started from any more
    DELETE_SNAPSHOT = "delete_snapshot"


ENDS = frozenset({Act.END_FAILED, Act.END_MARKED, Act.END_RACE, Act.END_PREPARED, Act.END_NAMELESS})
COLLECTING = frozenset({Act.SUSPEND, Act.END_MARKED})  # where outputs are collected first
CAPPED = ENDS - {Act.END_RACE, Act.END_PREPARED, Act.END_NAMELESS}  # no session's work is in these


@dataclass(frozen=True, slots=True)
class ActionReport:
    """`target` is a sandbox's name, a work id, a session id or a snapshot id. `done` false with the reason why."""

    act: Act
    target: str
    why: str
    done: bool
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """One pass over one environment.

    needs_interrupt: sessions whose lost calls must be answered by hand (`make repair`): the environment key may neither
        answer them nor interrupt the turn.
    alarms: what a person should look at; with an alarm about look-ups nothing was ended.
    undone: repairs that were due and had to wait for the next tick.
    """

    environment_id: str
    sandboxes: int | None
    items: int | None
    lookups: int
    actions: Sequence[ActionReport]
    needs_interrupt: Sequence[str]
    alarms: Sequence[str]
    undone: int
    seconds: float
