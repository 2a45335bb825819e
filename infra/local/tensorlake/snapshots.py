"""Snapshots: capture, list, delete, and what a restore starts from (docs/wire/tensorlake.md#6-snapshots).

What a running process holds in memory cannot be cloned here. Where none runs, a snapshot of memory is its file layer
and "no processes", and is taken as such; else it is refused, and fails if one starts before the freeze.
"""

from __future__ import annotations

import asyncio
import enum
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.local.tensorlake import trees
from infra.local.tensorlake.errors import TensorlakeApiError, bad_request, conflict, not_found
from infra.local.tensorlake.layers import BaseRoot
from infra.local.tensorlake.link import SupervisorGone
from infra.local.tensorlake.names import new_id
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.records import Resources, Sandbox, Status

NO_PROCESSES = "no process ran: restored as its files, with no processes"


class OfflineSnapshotKind(enum.StrEnum):
    FILESYSTEM = "filesystem"
    MEMORY = "memory"


class Stage(enum.StrEnum):
    IN_PROGRESS = "in_progress"
    LOCAL_READY = "local_ready"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(eq=False)
class OfflineSnapshot:
    id: str
    sequence: int
    namespace: str
    sandbox_id: str
    image: str | None
    resources: Resources
    base: BaseRoot
    kind: OfflineSnapshotKind = OfflineSnapshotKind.FILESYSTEM
    stage: Stage = Stage.IN_PROGRESS
    error: str | None = None
    size_bytes: int = 0
    created_at: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def info(self) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "id": self.id,
            "namespace": self.namespace,
            "sandbox_id": self.sandbox_id,
            "status": self.stage,
            "snapshot_type": self.kind,
            "created_at": self.created_at,
        }
        if self.image is not None:
            answer["base_image"] = self.image
        if self.kind is OfflineSnapshotKind.MEMORY:
            answer["note"] = NO_PROCESSES  # beside the contract: the SDK drops it
        if self.error is not None:
            answer["error"] = self.error
        if self.stage in (Stage.LOCAL_READY, Stage.COMPLETED):
            answer["size_bytes"] = self.size_bytes
        return answer


class Snapshots:
    def __init__(self, platform: TensorlakePlatform) -> None:
        self._platform = platform
        self._all: dict[str, OfflineSnapshot] = {}

    async def take(self, sandbox: Sandbox, kind: str) -> OfflineSnapshot:
        """Begin a snapshot. Raises 409 unless the sandbox runs or sleeps, 400 for one of memory that processes use."""
        if kind not in set(OfflineSnapshotKind):
            raise bad_request(f"snapshot_type: '{kind}' is neither filesystem nor memory")
        if kind == OfflineSnapshotKind.MEMORY:
            await refuse_processes(sandbox)
        if sandbox.status not in (Status.RUNNING, Status.SUSPENDED):
            raise conflict(f"sandbox is {sandbox.status}")
        snapshot = self._new(sandbox, OfflineSnapshotKind(kind))
        self._all[snapshot.id] = snapshot
        before = sandbox.status
        sandbox.become(Status.SNAPSHOTTING)
        self._platform.spawn(self._take(snapshot, sandbox, before))
        return snapshot

    def _new(self, sandbox: Sandbox, kind: OfflineSnapshotKind) -> OfflineSnapshot:
        return OfflineSnapshot(
            new_id(),
            next(self._platform.sequence),
            sandbox.namespace,
            sandbox.id,
            sandbox.image,
            sandbox.resources,
            BaseRoot(sandbox.base.runtime, self._platform.directory / "n", ()),
            kind,
        )

    async def _take(self, snapshot: OfflineSnapshot, sandbox: Sandbox, before: Status) -> None:
        settings = self._platform.settings
        async with sandbox.lock:
            try:
                if settings.snapshot_failures > 0:
                    settings.snapshot_failures -= 1
                    raise trees.CopyError("snapshot fault")
                await self._capture(snapshot, sandbox, before)
            except (OSError, trees.CopyError, SupervisorGone, TensorlakeApiError) as error:
                snapshot.stage = Stage.FAILED
                snapshot.error = str(error) or type(error).__name__
            finally:
                if sandbox.status is Status.SNAPSHOTTING:
                    sandbox.become(before)
        if snapshot.stage is Stage.FAILED:
            return
        if snapshot.id not in self._all:
            await self._drop(snapshot)
            return
        await asyncio.sleep(settings.snapshot_local_seconds)
        snapshot.stage = Stage.LOCAL_READY
        await asyncio.sleep(settings.snapshot_completed_seconds)
        snapshot.stage = Stage.COMPLETED

    async def _capture(self, snapshot: OfflineSnapshot, sandbox: Sandbox, before: Status) -> None:
        if sandbox.box is None:
            raise trees.CopyError(f"sandbox is {sandbox.status}")
        layer = self._platform.layers.new()
        system = self._platform.directory / "n" / snapshot.id
        if before is Status.RUNNING:
            await sandbox.box.freeze()
        try:
            if snapshot.kind is OfflineSnapshotKind.MEMORY:
                await refuse_processes(sandbox)
            stack = await sandbox.box.capture(layer, system)
        except TensorlakeApiError:
            await asyncio.to_thread(trees.remove, layer.directory)
            raise
        finally:
            if before is Status.RUNNING:
                await sandbox.box.thaw()
        snapshot.base = self._platform.layers.hold(replace(sandbox.base, system=system, layers=stack))
        snapshot.size_bytes = await asyncio.to_thread(_size, layer.directory)

    async def fork(self, sandbox: Sandbox) -> BaseRoot:
        """What live copies of a running sandbox start from, held once. Raises TensorlakeApiError."""
        async with sandbox.lock:
            if sandbox.status is not Status.RUNNING:
                raise conflict(f"sandbox is {sandbox.status}: only a running one can be copied")
            await refuse_processes(sandbox)
            snapshot = self._new(sandbox, OfflineSnapshotKind.MEMORY)
            try:
                await self._capture(snapshot, sandbox, Status.RUNNING)
            except (OSError, trees.CopyError, SupervisorGone) as error:
                raise conflict(f"the sandbox could not be copied: {error}") from None
        return snapshot.base

    async def drop(self, base: BaseRoot) -> None:
        """Gives up what `fork` held."""
        await asyncio.to_thread(trees.remove, base.system)
        await self._platform.layers.release(base)

    def find(self, snapshot_id: str) -> OfflineSnapshot:
        snapshot = self._all.get(snapshot_id)
        if snapshot is None:
            raise not_found(f"snapshot '{snapshot_id}'")
        return snapshot

    def for_restore(self, snapshot_id: str) -> OfflineSnapshot:
        snapshot = self.find(snapshot_id)
        if snapshot.stage not in (Stage.LOCAL_READY, Stage.COMPLETED):
            raise bad_request(f"snapshot '{snapshot_id}' is {snapshot.stage}: it cannot be restored")
        return snapshot

    def all(self) -> list[OfflineSnapshot]:
        return list(self._all.values())

    async def delete(self, snapshot_id: str) -> None:
        """What live sandboxes still stand on is kept until they end."""
        snapshot = self.find(snapshot_id)
        if snapshot.stage is Stage.IN_PROGRESS:
            raise conflict(f"snapshot '{snapshot_id}' is in progress")
        del self._all[snapshot_id]
        if snapshot.stage is not Stage.FAILED:
            await self._drop(snapshot)

    async def clear(self) -> None:
        """Forget all of them; one still being captured is dropped when it is done."""
        forgotten, self._all = self._all, {}
        for snapshot in forgotten.values():
            if snapshot.base.layers and snapshot.stage is not Stage.FAILED:
                await self._drop(snapshot)

    async def _drop(self, snapshot: OfflineSnapshot) -> None:
        base, snapshot.base = snapshot.base, replace(snapshot.base, layers=())
        await self.drop(base)


async def refuse_processes(sandbox: Sandbox) -> None:
    """Raises 400 where a process lives, whose memory cannot be cloned."""
    try:
        count = 0 if sandbox.box is None else await sandbox.box.living()
    except SupervisorGone:
        raise conflict("the sandbox's supervisor ended") from None
    if count:
        are = "a process runs" if count == 1 else f"{count} processes run"
        raise bad_request(
            f"a running process cannot be cloned offline, and {are} in sandbox '{sandbox.id}': "
            "end them, or take a filesystem snapshot"
        )


def _size(directory: Path) -> int:
    """Bytes of the files below. Not by rglob, which calls itself for each folder in a folder."""
    size, pending = 0, [directory]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    size += entry.stat(follow_symlinks=False).st_size
    return size
