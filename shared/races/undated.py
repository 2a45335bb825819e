"""Whether what is kept of races is past its time where the service does not say since when its sandbox is there: what
stands in it tells then. Reading wakes a sleeper for a minute or two, so it is asked now and then alone."""

from __future__ import annotations

import zlib
from typing import Final

from pydantic import ValidationError

from shared import names
from shared.deadline import Clock
from shared.ports import SandboxHost, SandboxRecord, SandboxStatus
from shared.races.cells import AFTER_A_DAY, DAY, Cell, CellGone
from shared.races.ledger import Page
from shared.races.records import Head

_TURN: Final = 300.0  # seconds
_TURNS: Final = 72  # so that each is asked every six hours


def is_its_turn(name: str, now: float) -> bool:
    """Four times a day for five minutes, at other times each day: whatever a schedule's rhythm, none is never asked."""
    return (int(now // _TURN) + int(now // DAY)) % _TURNS == zlib.crc32(name.encode()) % _TURNS


async def is_over(
    host: SandboxHost, sandbox: SandboxRecord, kind: names.SandboxName, record_seconds: float, now: float, clock: Clock
) -> bool:
    """Whether a record or a ledger is past its time. One that cannot be read is not known to be. Raises CellUnclear."""
    try:
        stands = await Cell(host, sandbox, clock).read()
    except CellGone:
        return False
    if not stands.number:
        return sandbox.status is SandboxStatus.SUSPENDED  # nobody has written for as long as it takes to fall asleep
    try:
        if isinstance(kind, names.RaceRecordSandbox):
            return Head.model_validate_json(stands.text).asked_at + record_seconds < now
        page = Page.model_validate_json(stands.text)
    except ValidationError:
        return False
    return page.day < (now - AFTER_A_DAY) // DAY and all(run.until < now for run in page.running.values())
