"""The snapshots of one race, from the call that makes one to the one that deletes it.

What could not be confirmed as deleted is a leftover in the report. Proved by tests/shared/races/test_race_faults.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from shared.backoff import pause_before
from shared.deadline import Clock, Deadline
from shared.ports import Absent, Doubtful, Refused, SandboxHost, Snapshot, SnapshotKind
from shared.races.ends import RaceEnds, RaceTimeouts, within
from shared.races.errors import SourceAbsent, SourceNotReady, SourceUnknown
from shared.tasks import drop

_SnapshotCall = asyncio.Task[Snapshot | Absent | Refused | Doubtful]


class RaceSnapshots:
    def __init__(self, host: SandboxHost, timeouts: RaceTimeouts, clock: Clock, ends: RaceEnds) -> None:
        self._host = host
        self._timeouts = timeouts
        self._clock = clock
        self._ends = ends
        self._kept: set[str] = set()

    @asynccontextmanager
    async def checkpoint(
        self, sandbox_id: str, label: str, kind: SnapshotKind = SnapshotKind.FILESYSTEM
    ) -> AsyncIterator[str]:
        """The id of a snapshot. Raises SourceAbsent, SourceNotReady or SourceUnknown.

        `label` says in the report whose snapshot was left over where no id is known. A memory snapshot clones what
        runs in the source: a worker there would make two holders of one lease.
        """
        calls: list[_SnapshotCall] = []

        def begin() -> asyncio.Task[None] | None:
            if not calls:
                return None
            # What is still being made from the snapshot is ended first.
            before = self._ends.pending()
            return self._ends.begin(self._forget_all(calls, label, before), lambda: _called(calls, label))

        async with self._ends.behind(begin):
            yield await self._snapshot(sandbox_id, label, kind, calls)

    def keep(self, snapshot_id: str) -> None:
        """This snapshot is somebody else's from now on and is not deleted."""
        self._kept.add(snapshot_id)

    def end_kept(self, snapshot_id: str) -> None:
        """A snapshot that was to be kept is not wanted after all."""
        self._ends.begin(self._forget(snapshot_id), lambda: snapshot_id)

    async def _forget(self, snapshot_id: str) -> None:
        gone = await within(self._delete(snapshot_id), self._ends.seconds())
        (self._ends.reaped if gone else self._ends.leftovers).append(snapshot_id)

    async def _snapshot(self, sandbox_id: str, label: str, kind: SnapshotKind, calls: list[_SnapshotCall]) -> str:
        patience = Deadline.after(self._timeouts.boot, self._clock)
        refusals = doubts = 0
        while True:
            call = asyncio.create_task(self._host.snapshot(sandbox_id, kind))
            calls.append(call)
            await asyncio.wait({call})
            match call.result():
                case Snapshot(id=snapshot_id):
                    return snapshot_id
                case Absent():
                    raise SourceAbsent(f"{label} is not there any more")
                case Refused(status=status, reason=reason):
                    # Most likely another race is checkpointing the same sandbox just now.
                    refusals += 1
                    if patience.passed or (status != 409 and refusals > self._timeouts.attempts):
                        raise SourceNotReady(f"{label} cannot be checkpointed: {reason}")
                    await self._pause_before(min(refusals, self._timeouts.attempts))
                case Doubtful(reason=reason):
                    doubts += 1
                    if doubts == 2:  # each may leave a snapshot behind that only the reconciler can find
                        raise SourceUnknown(f"it is not known whether {label} was checkpointed: {reason}")
                    await self._pause_before(doubts)

    async def _forget_all(self, calls: list[_SnapshotCall], label: str, before: Sequence[asyncio.Task[None]]) -> None:
        if before:
            await asyncio.wait(before)
        for call in calls:
            await asyncio.wait({call}, timeout=self._ends.seconds())
            await drop(call)
            unknown = call.cancelled() or call.exception() is not None
            match None if unknown else call.result():
                case Snapshot(id=snapshot_id) if snapshot_id in self._kept:
                    pass
                case Snapshot(id=snapshot_id):
                    await self._forget(snapshot_id)
                case Doubtful() | None:
                    self._ends.leftovers.append(f"a snapshot of {label} whose id is not known")
                case Absent() | Refused():
                    pass

    async def _delete(self, snapshot_id: str) -> bool:
        for attempt in range(self._timeouts.attempts):
            await self._pause_before(attempt)
            if await self._host.delete_snapshot(snapshot_id) in (None, Absent()):
                return True
        return False

    async def _pause_before(self, attempt: int) -> None:
        if attempt:
            await asyncio.sleep(pause_before(attempt, self._timeouts.pause))


def _called(calls: Sequence[_SnapshotCall], label: str) -> str:
    """A snapshot for a report: its id, where there is one by now."""
    for call in calls:
        if call.done() and not call.cancelled() and call.exception() is None:
            match call.result():
                case Snapshot(id=snapshot_id):
                    return snapshot_id
                case _:
                    continue
    return f"a snapshot of {label}"
