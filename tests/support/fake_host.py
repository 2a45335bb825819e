"""ports.SandboxHost in memory: for schedules and faults, where real sandboxes would be slow and too well-behaved.

Sandboxes, names, snapshots and files follow the contract's rules; programs are a function of the test's. Every call
takes `latency` seconds, has its effect half-way, and meets the faults that `meet` hands out.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal, TypeVar

from image.session import programs
from shared.ports import (
    LARGEST_OUTPUT,
    Absent,
    CommandOutput,
    Created,
    CreateOutcome,
    Doubtful,
    FindOutcome,
    Listing,
    NameTaken,
    NoCapacity,
    OutputEnded,
    PoolRecord,
    ProcessSpec,
    ProcessState,
    Refused,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
    Snapshot,
    SnapshotKind,
    SnapshotRecord,
)

Method = Literal[
    "create", "find", "resume", "suspend", "terminate", "rename", "touch", "list", "run", "write", "read", "delete",
    "snapshot", "copy", "delete_snapshot", "pool", "claim",
]  # fmt: skip
_T = TypeVar("_T")


_BORN = datetime(2026, 1, 1, tzinfo=UTC)


class FakeFault(StrEnum):
    """What a call meets instead of success."""

    REFUSED = "refused"  # no effect, HTTP 403
    LOST_BEFORE = "lost before"  # no effect, doubtful
    LOST_AFTER = "lost after"  # the effect, doubtful
    BUG = "bug"  # no effect, raises


class Bug(Exception):
    """What no host should do."""


@dataclass(frozen=True, slots=True)
class FakeCall:
    """A program that is run: without what wraps it."""

    sandbox: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    timeout: float
    user: str | None
    working_dir: str | None


@dataclass(slots=True)
class FakeBox:
    record: SandboxRecord
    spec: SandboxSpec
    files: dict[str, bytes] = field(default_factory=dict)


async def _succeed(call: FakeCall) -> CommandOutput:
    return CommandOutput(0, "", "", timed_out=False)


def _cell(files: dict[str, bytes], folder: str, *change: str) -> str:
    """What image/session/programs/cell.sh does."""
    if change:
        files.setdefault(f"{folder}/{change[0]}", change[1].encode())
    numbers = [int(path.removeprefix(f"{folder}/")) for path in files if path.startswith(f"{folder}/")]
    return f"{max(numbers)}\n{files[f'{folder}/{max(numbers)}'].decode()}" if numbers else ""


class FakeHost:
    """`program` answers runs; `meet(method, name or id)` says what a call meets, None for nothing unusual."""

    def __init__(
        self,
        *,
        program: Callable[[FakeCall], Awaitable[CommandOutput | Absent | Refused | Doubtful]] = _succeed,
        meet: Callable[[Method, str], FakeFault | None] = lambda method, what: None,
        latency: float = 0.05,
        quota: int | None = None,
    ) -> None:
        self._program = program
        self._meet = meet
        self._latency = latency
        self._quota = quota
        self._made = 0
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.boxes: dict[str, FakeBox] = {}
        self.pools: dict[str, PoolRecord] = {}
        self.snapshots: dict[str, dict[str, bytes]] = {}
        self.kinds: dict[str, SnapshotKind] = {}
        self._taken_of: dict[str, str] = {}
        self.specs: list[SandboxSpec] = []
        self.calls: list[FakeCall] = []
        self.most_alive = 0

    def alive(self) -> list[str]:
        """Names of the sandboxes that exist."""
        return [box.record.name or "" for box in self.boxes.values() if box.record.status != SandboxStatus.TERMINATED]

    def add(self, name: str, status: SandboxStatus = SandboxStatus.RUNNING) -> FakeBox:
        """A sandbox that was there before the test."""
        return self._add(SandboxSpec(name=name), status)

    def _add(self, spec: SandboxSpec, status: SandboxStatus) -> FakeBox:
        self._made += 1
        record = SandboxRecord(f"id{self._made}", spec.name, status, _BORN, egress=spec.egress)
        box = FakeBox(record, spec, dict(self.snapshots.get(spec.snapshot_id or "", {})))
        self.boxes[record.id] = box
        self.most_alive = max(self.most_alive, len(self.alive()))
        return box

    async def _call(self, method: Method, what: str, effect: Callable[[], _T]) -> _T | Refused | Doubtful:
        fault = self._meet(method, what)
        await asyncio.sleep(self._latency / 2)
        match fault:
            case FakeFault.BUG:
                raise Bug(method)
            case FakeFault.REFUSED:
                return Refused(403, "HTTP 403")
            case FakeFault.LOST_BEFORE:
                return Doubtful("dropped")
        result = effect()
        await asyncio.sleep(self._latency / 2)
        return Doubtful("dropped") if fault is FakeFault.LOST_AFTER else result

    def _live(self, sandbox_id: str) -> FakeBox | None:
        box = self.boxes.get(sandbox_id)
        return box if box is not None and box.record.status is not SandboxStatus.TERMINATED else None

    def _set(self, sandbox_id: str, status: SandboxStatus) -> Absent | None:
        box = self._live(sandbox_id)
        if box is None:
            return Absent()
        box.record = replace(box.record, status=status)
        return None

    async def create(self, spec: SandboxSpec) -> CreateOutcome:
        def effect() -> CreateOutcome:
            if spec.name in self.alive():
                return NameTaken()
            if spec.snapshot_id is not None and spec.snapshot_id not in self.snapshots:
                return Refused(404, "HTTP 404")
            if self._quota is not None and len(self.alive()) >= self._quota:
                return NoCapacity(402, "HTTP 402")
            self.specs.append(spec)
            box = self._add(spec, SandboxStatus.RUNNING)
            box.record = replace(box.record, created_at=self.now())
            return Created(box.record)

        return await self._call("create", spec.name, effect)

    async def find(self, name_or_id: str) -> FindOutcome:
        def effect() -> FindOutcome:
            for box in self.boxes.values():
                live = box.record.status is not SandboxStatus.TERMINATED
                if box.record.id == name_or_id or (live and box.record.name == name_or_id):
                    return box.record
            return Absent()

        outcome = await self._call("find", name_or_id, effect)
        return Doubtful(outcome.reason) if isinstance(outcome, Refused) else outcome

    async def pool(self, pool_id: str) -> PoolRecord | Absent | Doubtful:
        outcome = await self._call("pool", pool_id, lambda: self.pools.get(pool_id, Absent()))
        return Doubtful(outcome.reason) if isinstance(outcome, Refused) else outcome

    async def claim_from_pool(self, pool_id: str, seconds: float) -> SandboxRecord | Absent | Refused | Doubtful:
        def effect() -> SandboxRecord | Absent:
            if pool_id not in self.pools:
                return Absent()
            box = self._add(SandboxSpec(name=""), SandboxStatus.RUNNING)
            box.record = replace(box.record, name=None, pool_id=pool_id)
            return box.record

        return await self._call("claim", pool_id, effect)

    async def resume(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        return await self._call("resume", sandbox_id, lambda: self._set(sandbox_id, SandboxStatus.RUNNING))

    async def suspend(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        return await self._call("suspend", sandbox_id, lambda: self._set(sandbox_id, SandboxStatus.SUSPENDED))

    async def terminate(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        return await self._call("terminate", sandbox_id, lambda: self._set(sandbox_id, SandboxStatus.TERMINATED))

    async def rename(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None:
        def effect() -> Absent | Refused | None:
            box = self._live(sandbox_id)
            if box is None:
                return Absent()
            if name in self.alive():
                return Refused(409, "HTTP 409")
            box.record = replace(box.record, name=name)
            return None

        return await self._call("rename", sandbox_id, effect)

    async def touch(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        return await self._call("touch", sandbox_id, lambda: None if self._live(sandbox_id) else Absent())

    async def list_sandboxes(self) -> Listing[SandboxRecord] | Doubtful:
        outcome = await self._call("list", "", lambda: [box.record for box in self.boxes.values()])
        return Listing(outcome, complete=True) if isinstance(outcome, list) else Doubtful(outcome.reason)

    async def list_snapshots(self, sandbox_id: str | None = None) -> Listing[SnapshotRecord] | Doubtful:
        def effect() -> list[SnapshotRecord]:
            return [
                SnapshotRecord(id_, self._taken_of[id_], filesystem=True, created_at=None)
                for id_ in self.snapshots
                if sandbox_id in (None, self._taken_of[id_])
            ]

        outcome = await self._call("list", "snapshots", effect)
        return Listing(outcome, complete=True) if isinstance(outcome, list) else Doubtful(outcome.reason)

    async def start(self, sandbox_id: str, process: ProcessSpec) -> Absent | Refused | Doubtful | None:
        return Absent() if self._live(sandbox_id) is None else Refused(501, "named processes are not faked")

    async def process_names(self, sandbox_id: str) -> Sequence[ProcessState] | Absent | Doubtful:
        return Absent() if self._live(sandbox_id) is None else []

    async def process_output(
        self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> Sequence[str] | Absent | Doubtful:
        return Absent()

    async def follow_output(
        self, sandbox_id: str, name: str, *, silence: float, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> AsyncGenerator[str | OutputEnded | Absent | Doubtful, None]:
        yield Absent()

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState | Absent | Doubtful:
        return Absent()

    async def kill(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None:
        return Absent()

    async def signal(self, sandbox_id: str, name: str, number: int) -> Absent | Refused | Doubtful | None:
        return Absent()

    async def run(
        self,
        sandbox_id: str,
        command: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        user: str | None,
        working_dir: str | None,
        timeout: float,
        limit: int = LARGEST_OUTPUT,
    ) -> CommandOutput | Absent | Refused | Doubtful:
        box = self._live(sandbox_id)
        if box is None:
            return Absent()
        outcome = await self._call("run", box.record.name or "", lambda: None)
        if outcome is not None:
            return outcome
        if args[1] == programs.text("cell.sh"):
            return CommandOutput(0, _cell(box.files, *args[3:]), "", timed_out=False)
        # ["-c", text, "sh", user, directory, mark, folder, input, bytes, *argv]; the rest is the race's housekeeping.
        if args[1] == programs.text("run_python.sh") and args[6:7] in (["scan"], ["diff"]):
            nothing: object = [] if args[6] == "scan" else {"changes": [], "skipped": []}
            where = f"{args[-1]}/listing-0" if args[6] == "scan" else args[-1]
            box.files[where] = zlib.compress(json.dumps(nothing).encode())
            return CommandOutput(0, "{}", "", timed_out=False)
        if args[1] != programs.text("sweep.sh", "run_program.sh"):
            return CommandOutput(0, "", "", timed_out=False)
        call = FakeCall(box.record.name or "", tuple(args[9:]), dict(env), timeout, user, working_dir)
        self.calls.append(call)
        try:
            async with asyncio.timeout(timeout):
                result = await self._program(call)
        except TimeoutError:
            return CommandOutput(-9, "", "", timed_out=True)
        return result if self._live(sandbox_id) is not None else Absent()

    async def write_file(self, sandbox_id: str, path: str, data: bytes) -> Absent | Refused | Doubtful | None:
        def effect() -> Absent | None:
            box = self._live(sandbox_id)
            if box is None:
                return Absent()
            box.files[path] = data
            return None

        return await self._call("write", path, effect)

    async def read_file(self, sandbox_id: str, path: str, limit: int) -> bytes | Absent | Refused | Doubtful:
        def effect() -> bytes | Absent | Refused:
            box = self._live(sandbox_id)
            if box is None or path not in box.files:
                return Absent()
            data = box.files[path]
            return data if len(data) <= limit else Refused(413, "larger than asked for")

        return await self._call("read", path, effect)

    async def delete_file(self, sandbox_id: str, path: str) -> Absent | Refused | Doubtful | None:
        def effect() -> Absent | None:
            box = self._live(sandbox_id)
            return None if box is not None and box.files.pop(path, None) is not None else Absent()

        return await self._call("delete", path, effect)

    async def snapshot(
        self, sandbox_id: str, kind: SnapshotKind = SnapshotKind.FILESYSTEM
    ) -> Snapshot | Absent | Refused | Doubtful:
        def effect() -> Snapshot | Absent:
            box = self._live(sandbox_id)
            if box is None:
                return Absent()
            self._made += 1
            snapshot = Snapshot(f"snap{self._made}")
            self.snapshots[snapshot.id] = dict(box.files)
            self.kinds[snapshot.id] = kind
            self._taken_of[snapshot.id] = sandbox_id
            return snapshot

        return await self._call("snapshot", sandbox_id, effect)

    async def copy(
        self, sandbox_id: str, names: Sequence[str]
    ) -> Sequence[SandboxRecord | Refused | Doubtful] | Absent | Refused | Doubtful:
        def one(box: FakeBox, name: str) -> SandboxRecord | Refused | Doubtful:
            if name in self.alive():
                return Refused(409, "HTTP 409")
            if self._quota is not None and len(self.alive()) >= self._quota:
                return Refused(409, "the copy is failed: no_capacity")
            copy = self._add(replace(box.spec, name=name), SandboxStatus.RUNNING)
            copy.files.update(box.files)
            return copy.record

        def effect() -> Sequence[SandboxRecord | Refused | Doubtful] | Absent:
            box = self._live(sandbox_id)
            return Absent() if box is None else [one(box, name) for name in names]

        return await self._call("copy", sandbox_id, effect)

    async def delete_snapshot(self, snapshot_id: str) -> Absent | Refused | Doubtful | None:
        def effect() -> Absent | None:
            return None if self.snapshots.pop(snapshot_id, None) is not None else Absent()

        return await self._call("delete_snapshot", snapshot_id, effect)

    async def aclose(self) -> None:
        return None
