"""What a check saw: whether an assumption holds, and how the service really behaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class CheckVerdict(StrEnum):
    HOLDS = "holds"
    DIFFERS = "differs"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Observed:
    """`holds` is None where it could not be tried, and `seen` says why. No text has a character of a secret.

    behaviour: what makes the offline platform behave so, by `claude.<knob>` or `tensorlake.<setting>`
    (infra/local/claude/knobs.py, infra/local/tensorlake/settings.py).
    here: whether a service of this kind can show it at all.
    """

    holds: bool | None
    seen: str
    behaviour: Mapping[str, Any] = field(default_factory=dict)
    here: bool = True

    @property
    def verdict(self) -> CheckVerdict:
        if self.holds is None:
            return CheckVerdict.UNKNOWN
        return CheckVerdict.HOLDS if self.holds else CheckVerdict.DIFFERS


def answered_with(name: str, status: int, *known: int) -> dict[str, Any]:
    """A behaviour: this status, if it is one that the offline platform can answer in that place."""
    return {name: status} if status in known else {}


class NotTried(Exception):
    """A check cannot be made here; the text says why, and has no secret."""


class NotHere(NotTried):
    """The services in use cannot show it, and nothing is to be mended for it: the offline platform is no machine of its
    own."""
