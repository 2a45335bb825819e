"""The sandboxes and snapshots of one race, from the call that makes them to the one that ends them.

Both are context managers whose end is the end of what they made, whatever was raised inside, cancellation included.
What may exist is looked for by name when the answer to its creation was lost, and what could not be confirmed as
ended is a leftover in the report; its name carries the dead-man time by which the reconciler ends it.
Proved by tests/shared/races/test_race_faults.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from shared.ports import (
    Absent,
    Created,
    CreateOutcome,
    Doubtful,
    NameTaken,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
    Snapshot,
)
from shared.races.errors import RaceError, SourceAbsent, SourceNotReady, SourceUnknown

# The service does not know what it is asked for, or may not give it: no later moment changes that.
_FINAL_REFUSALS: Final = (400, 401, 404, 422)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a race is. Seconds; a pause doubles with each attempt."""

    attempts: int = 3
    pause: float = 0.25
    boot: float = 45.0
    reap: float = 60.0


class NotMade(RaceError):
    """A sandbox that could not be made. `status` is the HTTP status of a refusal that no later moment changes."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


async def shielded(work: Coroutine[Any, Any, _T], seconds: float) -> _T | None:
    """Does all of `work` although the caller is cancelled meanwhile, for at most `seconds`; None when they passed.

    A cancellation that arrived is raised at the end, so nothing outlives the caller.
    """
    task = asyncio.create_task(_within(work, seconds))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()


async def _within(work: Awaitable[_T], seconds: float) -> _T | None:
    try:
        async with asyncio.timeout(seconds) as scope:
            return await work
    except TimeoutError:
        if not scope.expired():
            raise
        return None


class _Room:
    """Counts who asks for or holds a sandbox, so that a refusal (a quota, most likely) is tried again as soon as
    another child has ended, and given up when there is nobody left to wait for."""

    def __init__(self) -> None:
        self.ended = 0
        self._busy = 0
        self._changed = asyncio.Event()

    def enter(self) -> None:
        self._busy += 1

    def leave(self, *, ended: bool) -> None:
        self._busy -= 1
        self.ended += ended
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def freed_since(self, seen: int) -> bool:
        while self.ended == seen and self._busy:
            await self._changed.wait()
        return self.ended > seen


@dataclass(slots=True)
class _Tenure:
    """What is known of one name: the latest call that makes it, and the id as soon as there is one."""

    name: str
    making: asyncio.Task[CreateOutcome] | None = None
    id: str | None = None
    in_room: bool = False
    doubted: bool = False

    @property
    def may_exist(self) -> bool:
        return self.making is not None and (self.id is not None or self.doubted or self._not_answered)

    @property
    def _not_answered(self) -> bool:
        return self.making is not None and not self.making.done()


class Children:
    """Everything that one race makes. `reaped` and `leftovers` are what the report says at the end."""

    def __init__(self, host: SandboxHost, pace: Pace) -> None:
        self._host = host
        self._pace = pace
        self._room = _Room()
        self.reaped: list[str] = []
        self.leftovers: list[str] = []

    @asynccontextmanager
    async def sandbox(self, spec: SandboxSpec) -> AsyncIterator[SandboxRecord]:
        """A running sandbox. Raises NotMade; ends the sandbox, or what may be one, at the end."""
        tenure = _Tenure(spec.name)
        try:
            yield await self._make(spec, tenure)
        finally:
            ended: list[bool] = []
            try:
                await shielded(self._end(tenure, ended), self._pace.reap)
            finally:
                if not ended:  # out of time
                    await _drop(tenure.making)
                    self.leftovers.append(tenure.name)
                if tenure.in_room:
                    self._room.leave(ended=ended == [True])

    @asynccontextmanager
    async def checkpoint(self, sandbox_id: str, label: str) -> AsyncIterator[str]:
        """The id of a filesystem snapshot. Raises SourceAbsent, SourceNotReady or SourceUnknown.

        `label` says in the report whose snapshot was left over where no id is known. A memory snapshot would clone a
        worker that lives in the source, and make two holders of one lease.
        """
        made: list[asyncio.Task[Snapshot | Absent | Refused | Doubtful]] = []
        try:
            yield await self._snapshot(sandbox_id, label, made)
        finally:
            ended: list[bool] = []
            try:
                await shielded(self._delete(made, ended), self._pace.reap)
            finally:
                if not ended:
                    for task in made:
                        await _drop(task)
                    self.leftovers.append(_snapshot_of(label))

    async def _make(self, spec: SandboxSpec, tenure: _Tenure) -> SandboxRecord:
        attempt = 0
        while True:
            seen = self._room.ended
            self._room.enter()
            tenure.in_room = True
            tenure.making = asyncio.create_task(self._host.create(spec))
            await asyncio.wait({tenure.making})  # cancelled here, the call goes on and _end waits for its answer
            match tenure.making.result():
                case Created(sandbox=record):
                    tenure.id = record.id
                    return record
                case Refused(status=status, reason=reason) if status in _FINAL_REFUSALS:
                    raise NotMade(f"the sandbox was refused: {reason}", status)
                case Refused(reason=reason):
                    attempt = self._pace.attempts
                case Doubtful(reason=reason):
                    tenure.doubted = True
                case NameTaken():
                    # A race's id is random: whoever has this name is an earlier call of ours.
                    tenure.doubted = True
                    reason = "its name is taken"
            if tenure.doubted:
                record_or_none = await self._adopt(tenure)
                if record_or_none is not None:
                    return record_or_none
            attempt += 1
            self._room.leave(ended=False)
            tenure.in_room = False
            if attempt < self._pace.attempts:
                await asyncio.sleep(self._pace.pause * 2 ** (attempt - 1))
            elif await self._room.freed_since(seen):
                attempt = 0
            else:
                raise NotMade(f"the sandbox could not be made: {reason}")

    async def _adopt(self, tenure: _Tenure) -> SandboxRecord | None:
        """The sandbox that an earlier call made after all, running; None where there is none to be seen."""
        async with asyncio.timeout(self._pace.boot) as patience:
            try:
                while True:
                    match await self._host.find(tenure.name):
                        case Absent() | SandboxRecord(status=SandboxStatus.TERMINATED):
                            return None
                        case Doubtful():
                            pass
                        case SandboxRecord(status=SandboxStatus.RUNNING) as record:
                            tenure.id = record.id
                            return record
                        case SandboxRecord(status=SandboxStatus.FAILED | SandboxStatus.TIMEOUT) as record:
                            tenure.id = record.id
                            raise NotMade("the sandbox failed to start")
                        case SandboxRecord() as record:
                            tenure.id = record.id
                    await asyncio.sleep(self._pace.pause)
            except asyncio.CancelledError:
                if not patience.expired():
                    raise
        raise NotMade(f"the sandbox was not running after {self._pace.boot:g} s")

    async def _end(self, tenure: _Tenure, ended: list[bool]) -> None:
        """Appends True for ended (or never there), False for a leftover; nothing when it is out of time."""
        if tenure.making is not None:
            await asyncio.wait({tenure.making})
            match tenure.making.result():
                case Created(sandbox=record):
                    tenure.id = record.id
                case Doubtful() | NameTaken():
                    tenure.doubted = True
                case Refused():
                    pass
        if not tenure.may_exist:
            ended.append(False)
            return
        gone = await self._terminate(tenure)
        (self.reaped if gone else self.leftovers).append(tenure.name)
        ended.append(gone)

    async def _terminate(self, tenure: _Tenure) -> bool:
        for attempt in range(self._pace.attempts):
            if attempt:
                await asyncio.sleep(self._pace.pause * 2 ** (attempt - 1))
            if tenure.id is None:
                match await self._host.find(tenure.name):
                    case Absent():
                        return True
                    case Doubtful():
                        continue
                    case SandboxRecord(id=found):
                        tenure.id = found
            if await self._host.terminate(tenure.id) in (None, Absent()):
                return True
        return False

    async def _snapshot(
        self, sandbox_id: str, label: str, made: list[asyncio.Task[Snapshot | Absent | Refused | Doubtful]]
    ) -> str:
        failure: RaceError = SourceNotReady(label)
        for attempt in range(self._pace.attempts + 2):
            if attempt:
                await asyncio.sleep(self._pace.pause * 2 ** (attempt - 1))
            made.append(asyncio.create_task(self._host.snapshot(sandbox_id)))
            await asyncio.wait({made[-1]})
            match made[-1].result():
                case Snapshot(id=snapshot_id):
                    return snapshot_id
                case Absent():
                    raise SourceAbsent(f"{label} is not there any more")
                case Refused(reason=reason):
                    # Most likely another race is checkpointing the same sandbox just now.
                    failure = SourceNotReady(f"{label} cannot be checkpointed: {reason}")
                case Doubtful(reason=reason):
                    self.leftovers.append(_snapshot_of(label))
                    failure = SourceUnknown(f"nobody knows whether {label} was checkpointed: {reason}")
                    if attempt >= 1:
                        break
        raise failure

    async def _delete(
        self, made: list[asyncio.Task[Snapshot | Absent | Refused | Doubtful]], ended: list[bool]
    ) -> None:
        if made and not made[-1].done():
            await asyncio.wait({made[-1]})
            if isinstance(made[-1].result(), Doubtful):
                return
        for task in made:
            outcome = task.result()
            if isinstance(outcome, Snapshot):
                gone = await self._delete_one(outcome.id)
                (self.reaped if gone else self.leftovers).append(outcome.id)
        ended.append(True)

    async def _delete_one(self, snapshot_id: str) -> bool:
        for attempt in range(self._pace.attempts):
            if attempt:
                await asyncio.sleep(self._pace.pause * 2 ** (attempt - 1))
            if await self._host.delete_snapshot(snapshot_id) in (None, Absent()):
                return True
        return False


def _snapshot_of(label: str) -> str:
    return f"a snapshot of {label} whose id is not known"


async def _drop(task: asyncio.Task[Any] | None) -> None:
    """No task outlives the race, however late its answer."""
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})
