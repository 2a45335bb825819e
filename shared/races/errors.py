"""Why a race has no report. What goes wrong in one branch is never one of these: it is that branch's result."""

from __future__ import annotations

from shared.errors import HandsError


class RaceError(HandsError):
    """Base of the ways in which a race ends without a report. The text is fit for the caller."""


class BadRace(RaceError):
    """The request asks for what cannot be done here. `field` is the dotted path of what is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class SourceAbsent(RaceError):
    """What the branches should start from does not exist."""


class SourceNotReady(RaceError):
    """The source exists and cannot be checkpointed as it is now."""


class SourceUnknown(RaceError):
    """The service did not say clearly enough what became of the source or its checkpoint."""


class SetupFailed(RaceError):
    """The set-up script did not end with 0. The text ends with the last of its output."""
