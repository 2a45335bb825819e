"""The sandboxes of one race, from the call that makes one to the one that ends it; its snapshots are in snapshots.py.

Each is a context manager whose end is the end of what it made, whatever was raised inside, cancellation included.
What may exist is looked for by name when the answer to its creation was lost, and what could not be confirmed as
ended is a leftover in the report; its name carries the dead-man time by which the reconciler ends it.
Proved by tests/shared/races/test_race_faults.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from shared.backoff import pause_before
from shared.deadline import Clock, Deadline
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
)
from shared.races.ends import InBackground, RaceEnds, RaceTimeouts, within
from shared.races.errors import RaceError, SourceAbsent, SourceNotReady, SourceUnknown
from shared.races.meter import SandboxMeter
from shared.races.snapshots import RaceSnapshots
from shared.tasks import drop

# The service does not know what it is asked for, or may not give it: no later moment changes that.
_FINAL_REFUSALS: Final = (400, 401, 404, 422)


class NotMade(RaceError):
    """A sandbox that could not be made. `status` is the HTTP status of a refusal that no later moment changes."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


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
    """What is known of one name: the latest call that makes it, whether a call's answer was lost, and the id as soon as
    there is one. `failed` are those that had the name before and came up as failures: the name may lead to one for a
    while after its end (docs/wire/tensorlake.md#3-timeouts-and-retries)."""

    name: str
    making: asyncio.Task[CreateOutcome] | None = None
    id: str | None = None
    in_room: bool = False
    doubted: bool = False
    kept: bool = False
    ending: bool = False
    settled: bool = False
    lost: str = ""
    failed: set[str] = field(default_factory=set)
    naming: asyncio.Lock = field(default_factory=asyncio.Lock)


class RaceResources:
    """Everything that one race makes. `give_way` is asked when there is no room and nobody to wait for: whether
    something that can be made again later has just been ended. `until` is when all ends shall be over.
    """

    def __init__(
        self,
        host: SandboxHost,
        timeouts: RaceTimeouts,
        clock: Clock,
        in_background: InBackground,
        until: Deadline | None = None,
    ) -> None:
        self.ends = RaceEnds(timeouts, clock, in_background, until)
        self.snapshots = RaceSnapshots(host, timeouts, clock, self.ends)
        self._clock = clock
        self._host = host
        self._timeouts = timeouts
        self._room = _Room()
        self.meter = SandboxMeter(clock)
        self._tenures: dict[str, _Tenure] = {}
        self.give_way: Callable[[], Awaitable[bool]] | None = None
        self._giving = asyncio.Lock()

    @asynccontextmanager
    async def sandbox(self, spec: SandboxSpec) -> AsyncIterator[SandboxRecord]:
        """A running sandbox. Raises NotMade; ends the sandbox, or what may be one, at the end."""
        tenure = self._tenures[spec.name] = _Tenure(spec.name)
        async with self.ends.behind(lambda: self._begin_end(tenure)):
            yield await self._make(spec, tenure)

    def _begin_end(self, tenure: _Tenure, after: asyncio.Task[Any] | None = None) -> asyncio.Task[None] | None:
        """Ends a sandbox, once `after` is over. Whoever waits for room may wait for this end."""
        if tenure.kept:
            return None
        tenure.ending = True
        if not tenure.in_room:
            tenure.in_room = True
            self._room.enter()
        return self.ends.begin(self._reap(tenure, after), lambda: tenure.name)

    def hold(self, name: str) -> None:
        """This sandbox stays for longer than its branch: whoever waits for room need not wait for it."""
        tenure = self._tenures[name]
        if tenure.in_room:
            tenure.in_room = False
            self._room.leave(ended=False)

    def let_go(self, name: str) -> None:
        """This sandbox is about to end after all: whoever waits for room may wait for it again."""
        tenure = self._tenures[name]
        if not tenure.in_room and not tenure.ending:
            tenure.in_room = True
            self._room.enter()

    @asynccontextmanager
    async def naming(self, name: str) -> AsyncIterator[None]:
        """While somebody gives this sandbox a name of another kind, which no renewal then takes away again."""
        tenure = self._tenures[name]
        async with tenure.naming:
            tenure.settled = True
            yield

    def renamed(self, name: str, now: str) -> None:
        """What this sandbox is called in the report from now on."""
        self._tenures[name].name = now

    async def renew(self, renamed: Callable[[str], str]) -> None:
        """Gives everything that lives a name with a later dead-man time: `renamed` of the name that it was made with.
        What cannot be renamed now is tried again by the next renewal."""
        await asyncio.gather(*(self._renew(tenure, renamed(name)) for name, tenure in self._tenures.items()))

    async def _renew(self, tenure: _Tenure, name: str) -> None:
        async with tenure.naming:
            if tenure.id is None or tenure.kept or tenure.ending or tenure.settled:
                return
            if await self._host.rename(tenure.id, name) is None:
                tenure.name = name

    def keep(self, name: str) -> None:
        """This sandbox is somebody else's from now on and is not ended."""
        self._tenures[name].kept = True

    @asynccontextmanager
    async def copies(self, sandbox_id: str, names: Sequence[str], label: str) -> AsyncIterator[None]:
        """One live copy for each name, all at once, each to be had by `copied` once. What nobody had is ended at the
        end. Raises SourceAbsent, SourceNotReady or SourceUnknown."""
        tenures = [_Tenure(name, doubted=True) for name in names]
        self._tenures.update((tenure.name, tenure) for tenure in tenures)
        copying = asyncio.create_task(self._copy(sandbox_id, tenures, label))
        try:
            await asyncio.wait({copying})
            copying.result()
            yield
        finally:
            for tenure in tenures:
                if self._tenures.get(tenure.name) is tenure:
                    self._begin_end(tenure, after=copying)

    @asynccontextmanager
    async def copied(self, name: str) -> AsyncIterator[SandboxRecord]:
        """A copy that `copies` has made; the same as `sandbox` otherwise."""
        tenure = self._tenures[name]
        self._tenures[name] = tenure = replace(tenure)  # from now on it is this caller's to end
        async with self.ends.behind(lambda: self._begin_end(tenure)):
            if tenure.id is None:
                raise NotMade(f"the copy could not be made: {tenure.lost}")
            yield SandboxRecord(tenure.id, name, SandboxStatus.RUNNING)

    def end_kept(self, name: str) -> None:
        """A sandbox that was to be kept is not wanted after all."""
        tenure = self._tenures[name]
        tenure.kept = False
        self._begin_end(tenure)

    async def _reap(self, tenure: _Tenure, after: asyncio.Task[Any] | None) -> None:
        if after is not None:
            await asyncio.wait({after}, timeout=self.ends.seconds())
            await drop(after)
        gone = await within(self._end(tenure), self.ends.seconds())
        await drop(tenure.making)
        if gone and tenure.id is not None:
            self.meter.ended(tenure.id)
        if not gone:
            self.ends.leftovers.append(tenure.name)
        elif tenure.id is not None:
            self.ends.reaped.append(tenure.name)
        self._room.leave(ended=bool(gone) and tenure.id is not None)

    async def _make(self, spec: SandboxSpec, tenure: _Tenure) -> SandboxRecord:
        attempt = 0
        while True:
            seen = self._room.ended
            self._room.enter()
            tenure.in_room = True
            asked = self._clock()
            tenure.making = asyncio.create_task(self._host.create(spec))
            await asyncio.wait({tenure.making})  # cancelled here, the call goes on and _end waits for its answer
            match tenure.making.result():
                case Created(sandbox=record):
                    tenure.id = record.id
                    self.meter.began(record.id, asked)
                    return record
                case Refused(status=status, reason=reason) if status in _FINAL_REFUSALS:
                    raise NotMade(f"the sandbox was refused: {reason}", status)
                case Refused(reason=reason):
                    attempt = self._timeouts.attempts
                case Doubtful(reason=reason):
                    tenure.doubted = True
                case NameTaken():
                    # A race's id is random: whoever has this name is an earlier call of ours.
                    tenure.doubted = True
                    reason = "its name is taken"
            if tenure.doubted:
                failures = len(tenure.failed)
                adopted = await self._adopt(tenure)
                if adopted is not None:
                    self.meter.began(adopted.id, asked)
                    return adopted
                if len(tenure.failed) > failures:
                    reason = "it failed to start"
            attempt += 1
            self._room.leave(ended=False)
            tenure.in_room = False
            if attempt < self._timeouts.attempts:
                await self._pause_before(attempt)
            elif await self._room.freed_since(seen) or await self._made_room(seen):
                attempt = 0
            else:
                raise NotMade(f"the sandbox could not be made: {reason}")

    async def _made_room(self, seen: int) -> bool:
        if self.give_way is None:
            return False
        async with self._giving:  # many may ask at once, and one answer is for all
            return self._room.ended > seen or (self.give_way is not None and await self.give_way())

    async def _adopt(self, tenure: _Tenure) -> SandboxRecord | None:
        """The sandbox that an earlier call made after all, running; None where there is none to be seen, or one that
        failed to start and was ended."""
        patience = Deadline.after(self._timeouts.boot, self._clock)
        while not patience.passed:
            match await self._host.find(tenure.name):
                case Absent() | SandboxRecord(status=SandboxStatus.TERMINATED):
                    return None
                case SandboxRecord(id=found) if found in tenure.failed:
                    pass  # its name is not free yet
                case Doubtful():
                    pass
                case SandboxRecord(status=SandboxStatus.RUNNING) as record:
                    tenure.id = record.id
                    return record
                case SandboxRecord(status=SandboxStatus.FAILED | SandboxStatus.TIMEOUT) as record:
                    tenure.id = record.id
                    if await self._host.terminate(record.id) in (None, Absent()):
                        tenure.failed.add(record.id)
                        tenure.id = None
                case SandboxRecord() as record:
                    tenure.id = record.id
            await asyncio.sleep(self._timeouts.pause)
        raise NotMade(f"the sandbox was not running after {self._timeouts.boot:g} s")

    async def _end(self, tenure: _Tenure) -> bool:
        """Whether it is known that nothing of this name is left."""
        if tenure.making is not None:
            await asyncio.wait({tenure.making})
            if tenure.making.exception() is not None:
                tenure.doubted = True  # a bug: it is raised elsewhere, and what it made is ended all the same
            else:
                match tenure.making.result():
                    case Created(sandbox=record):
                        tenure.id = record.id
                    case Doubtful() | NameTaken():
                        tenure.doubted = True
                    case Refused():
                        pass
        if tenure.id is None and not tenure.doubted:
            return True
        for attempt in range(self._timeouts.attempts):
            await self._pause_before(attempt)
            if tenure.id is None:
                match await self._host.find(tenure.name):
                    case SandboxRecord(id=found):
                        tenure.id = found
                    case Absent() if attempt > 0:
                        return True  # looked for twice: the call whose answer was lost made nothing
                    case Absent() | Doubtful():
                        continue
            if await self._host.terminate(tenure.id) in (None, Absent()):
                return True
        return False

    async def _copy(self, sandbox_id: str, tenures: Sequence[_Tenure], label: str) -> None:
        asked = self._clock()
        match await self._host.copy(sandbox_id, [tenure.name for tenure in tenures]):
            case Absent():
                self._forget(tenures)
                raise SourceAbsent(f"{label} is not there any more")
            case Refused(reason=reason):
                self._forget(tenures)
                raise SourceNotReady(f"{label} cannot be copied: {reason}")
            case Doubtful(reason=reason):
                self.ends.leftovers.append(f"copies of {label} that have no name")
                raise SourceUnknown(f"it is not known whether {label} was copied: {reason}")
            case rows:
                for tenure, row in zip(tenures, rows, strict=True):
                    match row:
                        case SandboxRecord(id=found):
                            tenure.id = found
                            self.meter.began(found, asked)
                        case Refused(reason=reason):
                            tenure.doubted, tenure.lost = False, reason
                        case Doubtful(reason=reason):
                            tenure.lost = reason

    @staticmethod
    def _forget(tenures: Sequence[_Tenure]) -> None:
        for tenure in tenures:
            tenure.doubted = False

    async def _pause_before(self, attempt: int) -> None:
        if attempt:
            await asyncio.sleep(pause_before(attempt, self._timeouts.pause))
