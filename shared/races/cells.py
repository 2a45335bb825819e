"""A small text that any copy of the functions may read and change, without a database: a cell.

It lives in a sandbox of its own, whose name says what it is about: names are unique, so there is one
(docs/wire/tensorlake.md#52-names). No agent, and nothing of a race, ever runs in it. A change makes the next numbered
file, which exists for one writer only (image/session/programs/cell.sh): whoever comes second learns what stands there
instead. So a claim is atomic, and an answer that got lost is asked for again without harm.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from image.session import programs
from image.session.claim import STATE_DIRECTORY
from shared.backoff import pause_before
from shared.deadline import Clock, Deadline
from shared.egress import EgressPolicy
from shared.environment_settings import Environment
from shared.errors import HandsError
from shared.ports import (
    ENDED,
    Absent,
    CommandOutput,
    Created,
    Doubtful,
    FindOutcome,
    NameTaken,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
)

FOLDER: Final = f"{STATE_DIRECTORY}/cell"
# Then the service suspends the sandbox. A suspension by hand would freeze a read of another copy that is under way.
IDLE_SECONDS: Final = 90
DAY: Final = 86_400  # seconds, of UTC
AFTER_A_DAY: Final = 600.0  # seconds
LARGEST_TEXT: Final = 16_384  # bytes
_RUN_SECONDS: Final = 5.0
_WAKE_SECONDS: Final = 20.0
_ATTEMPTS: Final = 3
_PAUSE: Final = 0.3


class CellUnclear(HandsError):
    """The service did not say clearly what stands in the cell. The text is fit for the caller."""


class CellGone(HandsError):
    """There is no such cell any more."""


@dataclass(frozen=True, slots=True)
class CellVersion:
    """What stands in a cell. Number 0 is the empty one, before anybody wrote."""

    number: int
    text: str


class Cell:
    """One cell: `sandbox` as it was when it was opened."""

    def __init__(self, host: SandboxHost, sandbox: SandboxRecord, clock: Clock) -> None:
        self.sandbox = sandbox
        self._host = host
        self._clock = clock

    async def read(self) -> CellVersion:
        """Raises CellGone and CellUnclear."""
        return await self._asked()

    async def write(self, number: int, text: str) -> CellVersion:
        """Makes `text` version `number`, the next one, and gives what stands there now: the same text where it was
        written, another one where somebody else was first. Raises CellGone and CellUnclear."""
        if len(text.encode()) > LARGEST_TEXT:
            raise ValueError(f"a cell holds at most {LARGEST_TEXT} bytes")
        return await self._asked(str(number), text)

    async def suspend(self) -> None:
        """It takes no place of a running sandbox then. For a cell that nobody else is likely to ask just now."""
        self.sandbox = replace(self.sandbox, status=SandboxStatus.SUSPENDED)
        await self._host.suspend(self.sandbox.id)

    async def end(self) -> bool:
        """Whether it is known to be gone."""
        for attempt in range(_ATTEMPTS):
            await asyncio.sleep(pause_before(attempt, _PAUSE))
            if await self._host.terminate(self.sandbox.id) in (None, Absent()):
                return True
        return False

    async def _asked(self, *change: str) -> CellVersion:
        reason = "no attempt was made"
        for attempt in range(_ATTEMPTS):
            await asyncio.sleep(pause_before(attempt, _PAUSE))
            if attempt or self.sandbox.status is not SandboxStatus.RUNNING:
                self.sandbox = await awake(self._host, self.sandbox, self._clock, look=bool(attempt))
            match await self._host.run(
                self.sandbox.id,
                "sh",
                ["-c", programs.text("cell.sh"), "sh", FOLDER, *change],
                env={},
                user=None,
                working_dir=None,
                timeout=_RUN_SECONDS,
            ):
                case CommandOutput(exit_code=0, stdout=said):
                    return _version(said)
                case CommandOutput(exit_code=code):
                    reason = f"it ended with exit code {code}"
                case Absent():
                    raise CellGone("the record is not there any more")
                case Refused(reason=why) | Doubtful(reason=why):
                    reason = why
        raise CellUnclear(f"the record could not be asked: {reason}")


def _version(said: str) -> CellVersion:
    number, _, text = said.partition("\n")
    if not said:
        return CellVersion(0, "")
    if not number.isdigit():
        raise CellUnclear("the record's sandbox gave no clear answer")
    return CellVersion(int(number), text)


async def opened(host: SandboxHost, name: str, clock: Clock) -> Cell | None:
    """The cell of this name; None where there is none. Wakes nothing yet. Raises CellUnclear."""
    match await host.find(name):
        case SandboxRecord(status=status) if status in ENDED:
            return None
        case SandboxRecord(name=now) as record if now == name:
            return Cell(host, record, clock)
        case SandboxRecord():
            raise CellUnclear("the service answered with a sandbox of another name")
        case Absent():
            return None
        case Doubtful(reason=reason):
            raise CellUnclear(f"the record could not be looked up: {reason}")


async def made(host: SandboxHost, name: str, environment: Environment, clock: Clock) -> Cell:
    """The cell of this name, made where there is none. Raises CellUnclear."""
    spec = SandboxSpec(
        name=name,
        image=environment.image,
        timeout_seconds=IDLE_SECONDS,
        egress=EgressPolicy(internet=False),
    )
    reason = "its name is held by a sandbox that has ended"
    for attempt in range(_ATTEMPTS):
        await asyncio.sleep(pause_before(attempt, _PAUSE))
        match await host.create(spec):
            case Created(sandbox=record):
                return Cell(host, record, clock)
            case NameTaken():
                pass
            case Refused(reason=why):
                raise CellUnclear(f"the record could not be made: {why}")
            case Doubtful(reason=why):
                reason = why
        if (found := await opened(host, name, clock)) is not None:
            return found
    raise CellUnclear(f"the record could not be made: {reason}")


async def awake(host: SandboxHost, record: SandboxRecord, clock: Clock, *, look: bool = False) -> SandboxRecord:
    """The sandbox, running; `record` is how it was seen, which `look` does not trust. Raises CellGone, CellUnclear."""
    patience = Deadline.after(_WAKE_SECONDS, clock)
    seen: FindOutcome = await host.find(record.id) if look else record
    while not patience.passed:
        match seen:
            case SandboxRecord(status=SandboxStatus.RUNNING) as found:
                return found
            case SandboxRecord(status=SandboxStatus.SUSPENDED) as found:
                match await host.resume(found.id):
                    case None:
                        return replace(found, status=SandboxStatus.RUNNING)
                    case Absent():
                        raise CellGone("the record is not there any more")
            case SandboxRecord(status=status) if status in ENDED:
                raise CellGone("the record is not there any more")
            case Absent():
                raise CellGone("the record is not there any more")
        await asyncio.sleep(_PAUSE)
        seen = await host.find(record.id)
    raise CellUnclear("the record's sandbox could not be woken")


def is_of_before(born: datetime | None, now: float) -> bool:
    """Whether a ledger that was made then is of an earlier day: the reconciler ends it, whatever it says. A race that
    began just before midnight may still write it, and clocks differ."""
    return born is not None and born.timestamp() // DAY < (now - AFTER_A_DAY) // DAY
