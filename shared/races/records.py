"""What is kept of one race on the service, so that any copy of the functions can say how it fares: its record.

A record is a cell (cells.py) that is named by the race's id. Making it and writing its first version is the claim of
the race: of two copies that ask for one `Idempotency-Key` at once, one runs the race and the other waits for it. While
the race runs its sandbox stays awake and says until when it is believed (`until`); a copy that dies says nothing more,
and its race is `lost` from then on. At the end the report is put beside it, compressed; the sandbox falls asleep by
itself, and the reconciler deletes it RACE_RECORD_SECONDS after it was made.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import ValidationError

from shared import names
from shared.deadline import Clock
from shared.environment_settings import Environment
from shared.ports import Absent, Doubtful, Refused, SandboxHost
from shared.races import cells
from shared.races.cells import Cell, CellGone, CellUnclear, CellVersion
from shared.races.events import ErrorBody
from shared.races.fields import Model
from shared.races.report import BranchReport, RaceReport
from shared.races.status import RaceState, RaceStatus
from shared.settings import Settings

log = logging.getLogger(__name__)

DEAD_MAN_SECONDS: Final = 180.0
BEAT_SECONDS: Final = 45.0
LOOK_SECONDS: Final = 5.0
_ATTEMPTS: Final = 3
_PART: Final = 1 << 20  # bytes in one call (docs/wire/tensorlake.md#8-files)
MOST_BYTES: Final = 4 * _PART  # of a report as it is kept, compressed
_MOST_WRITTEN_OUT: Final = 64 * 1024 * 1024
_Kept = Literal["report", "request"]
_LEFT_OUT: Final = "not kept: the report was too large"


class Head(Model):
    """The text in a record's cell. `owner` is the session whose agent asked, empty for the operator; `body` a digest of
    the request; `cancel_asked` is written by whichever copy is asked to end the race; `handed` says that whoever is
    first may take the race up; `until` when a race that says nothing more counts as lost. `parts` and `sha256` are of
    the request's file while it is handed over, later of the report's file. Times are in seconds since 1970."""

    race_id: str
    owner: str
    body: str
    by: str
    asked_at: float
    until: float
    state: RaceState = "running"
    ended_at: float | None = None
    error: ErrorBody | None = None
    status: int = 0
    cancel_asked: bool = False
    handed: bool = False
    parts: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class SeenRecord:
    """A record as it stands. `expires_at` is when the reconciler deletes it, where the service says since when it is
    there."""

    head: Head
    cell: Cell = field(repr=False)
    number: int
    expires_at: float | None = None

    def state(self, now: float) -> RaceState:
        return "lost" if self.head.state == "running" and self.head.until < now else self.head.state


class OwnRecord:
    """The record of a race that runs in this process: others write nothing into it but that the race is to end, which
    sets `cancelled`."""

    def __init__(self, cell: Cell, head: Head, host: SandboxHost, now: Clock, number: int = 1) -> None:
        self.head = head
        self._cell = cell
        self._host = host
        self._now = now
        self._number = number
        self.cancelled = asyncio.Event()
        if head.cancel_asked:
            self.cancelled.set()

    def status(self, report: RaceReport | None = None) -> RaceStatus:
        """As far as it is known here: with a report it has finished."""
        return RaceStatus(
            race_id=self.head.race_id,
            state="running" if report is None else _state_of(report),
            asked_at=_moment(self.head.asked_at),
            ended_at=_moment(self.head.ended_at),
            report=report,
        )

    async def keep_alive(self) -> None:
        """Says every BEAT_SECONDS that the race lives, and looks in between whether it is to end. Until cancelled."""
        looks = 0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            looks += 1
            try:
                if looks * LOOK_SECONDS % BEAT_SECONDS == 0:
                    await self._write(until=self._now() + DEAD_MAN_SECONDS)
                elif not self.cancelled.is_set():
                    self._learn((await self._cell.read()).text)
            except (CellGone, CellUnclear) as error:
                log.warning("race.record_not_renewed race=%s reason=%s", self.head.race_id, error)
                if isinstance(error, CellGone):
                    return

    async def finished(self, report: RaceReport) -> None:
        """Keeps the report. Raises CellGone and CellUnclear."""
        parts, digest = await self._keep("report", await asyncio.to_thread(packed, report))
        await self._over(_state_of(report), parts=parts, sha256=digest)

    async def hand_over(self, request: bytes) -> None:
        """Keeps what another process needs to run the race, which is whose who takes it first from then on
        (RaceRecords.take). Raises CellGone and CellUnclear."""
        parts, digest = await self._keep("request", await asyncio.to_thread(zlib.compress, request))
        await self._write(handed=True, parts=parts, sha256=digest)

    async def _keep(self, what: _Kept, data: bytes) -> tuple[int, str]:
        """The number of parts and the digest. Raises CellGone and CellUnclear."""
        parts = [data[at : at + _PART] for at in range(0, len(data), _PART)]
        for number, part in enumerate(parts):
            match await self._host.write_file(self._cell.sandbox.id, _file(what, number), part):
                case Absent():
                    raise CellGone("the record is not there any more")
                case Refused(reason=reason) | Doubtful(reason=reason):
                    raise CellUnclear(f"the {what} could not be kept: {reason}")
        return len(parts), hashlib.sha256(data).hexdigest()

    async def failed(self, status: int, error: ErrorBody) -> None:
        """Keeps why there is no report. Raises CellGone and CellUnclear."""
        await self._over("failed", status=status, error=error)

    async def released(self) -> None:
        """Nothing was begun: whoever asks again begins anew."""
        if not await self._cell.end():
            log.warning("race.record_not_ended race=%s", self.head.race_id)

    async def _over(self, state: RaceState, **more: object) -> None:
        await self._write(state=state, ended_at=self._now(), **more)

    async def _write(self, **changes: object) -> None:
        self.head = self.head.model_copy(update=changes)
        for _ in range(_ATTEMPTS):
            text = self.head.model_dump_json()
            stands = await self._cell.write(self._number + 1, text)
            self._number = stands.number
            if stands.text == text:
                return
            self._learn(stands.text)  # or an earlier call of ours, whose answer nobody waited for
        raise CellUnclear("this race's record is being written by many at once")

    def _learn(self, text: str) -> None:
        """Raises CellUnclear."""
        found = _head(text)
        if found.by != self.head.by:
            raise CellUnclear("somebody else has written this race's record")
        if found.cancel_asked:
            self.head = self.head.model_copy(update={"cancel_asked": True})
            self.cancelled.set()


class RaceRecords:
    """The records of the races of one environment."""

    def __init__(
        self,
        host: SandboxHost,
        settings: Settings,
        environment: Environment,
        *,
        clock: Clock = time.monotonic,
        now: Clock = time.time,
    ) -> None:
        self._host = host
        self._settings = settings
        self._environment = environment
        self._clock = clock
        self._now = now

    async def claim(self, race_id: str, owner: str, body: str) -> OwnRecord | SeenRecord:
        """The race is this caller's to run, or it has a record already. Raises CellUnclear."""
        now = self._now()
        head = Head(
            race_id=race_id,
            owner=owner,
            body=body,
            by=secrets.token_hex(8),
            asked_at=now,
            until=now + DEAD_MAN_SECONDS,
        )
        text = head.model_dump_json()
        name = self._name(race_id)
        for _ in range(_ATTEMPTS):
            cell = await cells.made(self._host, name, self._environment, self._clock)
            try:
                stands = None if self._is_over(cell) else await cell.write(1, text)
            except CellGone:
                continue
            if stands is not None:
                if stands.text == text:
                    return OwnRecord(cell, head, self._host, self._now)
                seen = self._seen(cell, stands)
                if not self._is_past(seen):
                    return seen
            await cell.end()
        raise CellUnclear("the record of an earlier race of this key is just being deleted")

    async def keep(self, report: RaceReport, owner: str) -> None:
        """The report of a race that ran without a record. What fails is logged: the race is over and told of."""
        try:
            record = await self.claim(report.race_id, owner, "")
            if isinstance(record, OwnRecord):
                await record.finished(report)
        except (CellGone, CellUnclear) as error:
            log.warning("race.report_not_kept race=%s reason=%s", report.race_id, error)

    async def look(self, race_id: str) -> SeenRecord | None:
        """The record of this race; None where there is none, or none any more. Wakes a sleeper. Raises CellUnclear."""
        cell = await cells.opened(self._host, self._name(race_id), self._clock)
        if cell is None or self._is_over(cell):
            return None
        try:
            stands = await cell.read()
        except CellGone:
            return None
        if not stands.number or self._is_past(seen := self._seen(cell, stands)):
            return None
        return seen

    async def cancel(self, seen: SeenRecord) -> SeenRecord:
        """Has it written that this race is to end, where no end of it is known: the copy that runs it looks every
        LOOK_SECONDS. The record as it stands then. Raises CellGone and CellUnclear."""
        for _ in range(_ATTEMPTS):
            stands = await seen.cell.read()
            seen = self._seen(seen.cell, stands)
            if seen.head.state != "running" or seen.head.cancel_asked:
                return seen
            text = seen.head.model_copy(update={"cancel_asked": True}).model_dump_json()
            if (now := await seen.cell.write(stands.number + 1, text)).text == text:
                return self._seen(seen.cell, now)
        raise CellUnclear("this race's record is being written by many at once")

    async def take(self, race_id: str, by: str) -> tuple[OwnRecord, bytes] | None:
        """The record of a race that was handed over by `by`, and its request: for the first who asks for it. None for
        everybody else, and where the race is over or lost. Raises CellUnclear."""
        for _ in range(_ATTEMPTS):
            seen = await self.look(race_id)
            if seen is None or seen.head.by != by or not seen.head.handed or seen.state(self._now()) != "running":
                return None
            request = await asyncio.to_thread(_inflated, await self._kept(seen, "request"))
            until = self._now() + DEAD_MAN_SECONDS
            changes = {"by": secrets.token_hex(8), "until": until, "handed": False, "parts": 0, "sha256": ""}
            head = seen.head.model_copy(update=changes)
            text = head.model_dump_json()
            try:
                stands = await seen.cell.write(seen.number + 1, text)
            except CellGone:
                return None
            if stands.text == text:
                return OwnRecord(seen.cell, head, self._host, self._now, stands.number), request
        raise CellUnclear("this race's record is being written by many at once")

    async def report(self, seen: SeenRecord) -> RaceReport:
        """The report of a finished race. Raises CellUnclear."""
        return await asyncio.to_thread(_unpacked, await self._kept(seen, "report"))

    async def _kept(self, seen: SeenRecord, what: _Kept) -> bytes:
        """Raises CellUnclear."""
        parts: list[bytes] = []
        for number in range(min(seen.head.parts, MOST_BYTES // _PART)):
            match await self._host.read_file(seen.cell.sandbox.id, _file(what, number), _PART):
                case bytes() as part:
                    parts.append(part)
                case Absent():
                    raise CellUnclear(f"a part of the {what} is not there")
                case Refused(reason=reason) | Doubtful(reason=reason):
                    raise CellUnclear(f"the {what} could not be read: {reason}")
        data = b"".join(parts)
        if hashlib.sha256(data).hexdigest() != seen.head.sha256:
            raise CellUnclear(f"the {what} is not whole")
        return data

    async def status(self, seen: SeenRecord) -> RaceStatus:
        """What a caller is told of the race. Raises CellUnclear."""
        state = seen.state(self._now())
        return RaceStatus(
            race_id=seen.head.race_id,
            state=state,
            asked_at=_moment(seen.head.asked_at),
            ended_at=_moment(seen.head.ended_at),
            expires_at=_moment(seen.expires_at),
            error=seen.head.error,
            error_status=seen.head.status or None,
            report=await self.report(seen) if state in ("finished", "cancelled") else None,
        )

    def _expires_at(self, cell: Cell) -> float | None:
        born = cell.sandbox.created_at
        return None if born is None else born.timestamp() + self._settings.races.record_seconds

    def _is_over(self, cell: Cell) -> bool:
        """Past its time already, whenever a tick comes to delete it."""
        expires = self._expires_at(cell)
        return expires is not None and expires < self._now()

    def _is_past(self, seen: SeenRecord) -> bool:
        return seen.expires_at is not None and seen.expires_at < self._now()

    def _seen(self, cell: Cell, stands: CellVersion) -> SeenRecord:
        head, expires = _head(stands.text), self._expires_at(cell)
        return SeenRecord(head, cell, stands.number, expires or head.asked_at + self._settings.races.record_seconds)

    def _name(self, race_id: str) -> str:
        return names.race_record_name(self._settings.prefix, self._environment.id, race_id)


def packed(report: RaceReport) -> bytes:
    """The report as it is kept, in at most MOST_BYTES: one that is too large is kept without the contents of artifacts
    and without patches, then without the ends of outputs as well."""
    data = _compressed(report)
    if len(data) > MOST_BYTES:
        branches = tuple(each.model_copy(update=_without_files(each)) for each in report.branches)
        data = _compressed(report.model_copy(update={"branches": branches}))
    if len(data) > MOST_BYTES:
        tails = {"stdout_tail": "", "stderr_tail": "", "judge_tail": ""}
        branches = tuple(each.model_copy(update=tails) for each in branches)
        data = _compressed(report.model_copy(update={"branches": branches}))
    return data


def _without_files(branch: BranchReport) -> dict[str, object]:
    artifacts = [
        one if one.base64 is None else one.model_copy(update={"base64": None, "truncated": _LEFT_OUT})
        for one in branch.artifacts
    ]
    patch = {"diff": "", "diff_reason": _LEFT_OUT} if branch.diff else {}
    return {"artifacts": tuple(artifacts), **patch}


def _compressed(report: RaceReport) -> bytes:
    return zlib.compress(report.model_dump_json().encode())


def _state_of(report: RaceReport) -> RaceState:
    return "cancelled" if report.cancelled else "finished"


def _head(text: str) -> Head:
    """Raises CellUnclear."""
    try:
        return Head.model_validate_json(text)
    except ValidationError:
        raise CellUnclear("the record cannot be read: is it of another version?") from None


def _unpacked(data: bytes) -> RaceReport:
    try:
        return RaceReport.model_validate_json(_inflated(data))
    except ValidationError:
        raise CellUnclear("the report cannot be read: is it of another version?") from None


def _inflated(data: bytes) -> bytes:
    """Raises CellUnclear."""
    try:
        inflating = zlib.decompressobj()
        text = inflating.decompress(data, _MOST_WRITTEN_OUT)
    except zlib.error:
        raise CellUnclear("what is kept of this race cannot be read") from None
    if not inflating.eof:
        raise CellUnclear("what is kept of this race is larger than anything that is kept")
    return text


def _file(what: _Kept, number: int) -> str:
    return f"{cells.FOLDER}-{what}/{number}"


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)
