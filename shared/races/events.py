"""What happens in a race while it runs, one JSON object a line (`Accept: application/x-ndjson`).

    {"event":"race","race_id":"…","branches":["a","b"],"at":0.0}
    {"event":"phase","branch":"a","phase":"boot","at":1.2}          a phase begins; branch is null for the whole race
    {"event":"output","branch":"a","line":"…","at":2.3}             the last line that a running branch has written
    {"event":"branch","report":{…},"at":4.5}                        a branch is decided (report.BranchReport)
    {"event":"promotion","promotion":{…},"at":5.0}                  (report.PromotionReport)
    {"event":"report","report":{…}}                                 the end (report.RaceReport), or
    {"event":"error","error":{"type":"…","message":"…","field":"…"}}    no report after all

`at` is in seconds since the race began. `race` comes first, `report` or `error` last and once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from shared.races.fields import Model
from shared.races.report import BranchReport, Phase, PromotionReport, RaceReport

LINE_CHARACTERS: Final = 200


class RaceBegan(Model):
    event: Literal["race"] = "race"
    race_id: str
    branches: tuple[str, ...]
    at: float


class PhaseBegan(Model):
    event: Literal["phase"] = "phase"
    branch: str | None
    phase: Phase
    at: float


class OutputLine(Model):
    """At most LINE_CHARACTERS; as the branch wrote it, control characters included."""

    event: Literal["output"] = "output"
    branch: str
    line: str
    at: float


class BranchDecided(Model):
    event: Literal["branch"] = "branch"
    report: BranchReport
    at: float


class Promoted(Model):
    event: Literal["promotion"] = "promotion"
    promotion: PromotionReport
    at: float


class Reported(Model):
    event: Literal["report"] = "report"
    report: RaceReport


class ErrorBody(Model):
    """The same as in an answer that is no stream."""

    type: str
    message: str
    field: str | None = None


class RaceFailed(Model):
    event: Literal["error"] = "error"
    error: ErrorBody


Event = Annotated[
    RaceBegan | PhaseBegan | OutputLine | BranchDecided | Promoted | Reported | RaceFailed, Field(discriminator="event")
]
OnEvent = Callable[[Event], None]

_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Event)


def to_line(event: Event) -> bytes:
    """One line with its end."""
    return event.model_dump_json().encode() + b"\n"


def from_line(line: bytes | str) -> Event:
    """Raises pydantic's ValidationError for what is no event."""
    return _EVENT.validate_json(line)
