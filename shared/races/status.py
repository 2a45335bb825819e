"""How a race fares that its caller does not wait for, or asks for again: what `GET` answers of it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from shared.races.events import ErrorBody
from shared.races.fields import Model
from shared.races.report import RaceReport

RaceState = Literal["running", "finished", "cancelled", "failed", "lost"]


class RaceStatus(Model):
    """One race that was asked for with `Prefer: respond-async` or an `Idempotency-Key`. `finished`: `report` is there,
    whether a branch won or none. `cancelled`: somebody ended it, and `report` says what had finished. `failed`: `error`
    says why there is no report, and `error_status` is the HTTP status that a caller who waits is answered with. `lost`:
    the copy of the functions that ran it has died; what it left is ended by the reconciler, and a promotion may or may
    not have been made. What is known of it is deleted at `expires_at`."""

    race_id: str
    state: RaceState
    asked_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    error: ErrorBody | None = None
    error_status: int | None = None
    report: RaceReport | None = None
