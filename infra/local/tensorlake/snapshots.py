"""Filesystem snapshots: capture, list, delete, and what a restore starts from (contract section 6)."""

from __future__ import annotations

import asyncio
import enum
import time
from dataclasses import dataclass, field, replace
from typing import Any

from infra.local.tensorlake import trees
from infra.local.tensorlake.errors import ApiError, bad_request, conflict, not_found, not_supported
from infra.local.tensorlake.layers import Base
from infra.local.tensorlake.link import SupervisorGone
from infra.local.tensorlake.names import new_id
from infra.local.tensorlake.platform import Platform
from infra.local.tensorlake.records import Resources, Sandbox, Status


class Stage(enum.StrEnum):
    IN_PROGRESS = "in_progress"
    LOCAL_READY = "local_ready"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(eq=False)
class Snapshot:
    id: str
    sequence: int
    namespace: str
    sandbox_id: str
    image: str | None
    resources: Resources
    base: Base
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
            "snapshot_type": "filesystem",
            "created_at": self.created_at,
        }
        if self.image is not None:
            answer["base_image"] = self.image
        if self.error is not None:
            answer["error"] = self.error
        if self.stage in (Stage.LOCAL_READY, Stage.COMPLETED):
            answer["size_bytes"] = self.size_bytes
        return answer


class Snapshots:
    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._all: dict[str, Snapshot] = {}

    def take(self, sandbox: Sandbox, kind: str) -> Snapshot:
        """Begin a snapshot. Raises 409 unless the sandbox runs or sleeps, 501 for a memory snapshot."""
        if kind == "memory":
            raise not_supported("memory snapshots", "take a filesystem snapshot")
        if kind != "filesystem":
            raise bad_request(f"snapshot_type: '{kind}' is neither filesystem nor memory")
        if sandbox.status not in (Status.RUNNING, Status.SUSPENDED):
            raise conflict(f"sandbox is {sandbox.status}")
        source = Base(sandbox.base.runtime, self._platform.directory / "n", ())
        snapshot = Snapshot(
            new_id(),
            next(self._platform.sequence),
            sandbox.namespace,
            sandbox.id,
            sandbox.image,
            sandbox.resources,
            source,
        )
        self._all[snapshot.id] = snapshot
        before = sandbox.status
        sandbox.become(Status.SNAPSHOTTING)
        self._platform.spawn(self._take(snapshot, sandbox, before))
        return snapshot

    async def _take(self, snapshot: Snapshot, sandbox: Sandbox, before: Status) -> None:
        settings = self._platform.settings
        async with sandbox.lock:
            try:
                if settings.snapshot_failures > 0:
                    settings.snapshot_failures -= 1
                    raise trees.CopyError("snapshot fault")
                await self._capture(snapshot, sandbox, before)
            except (OSError, trees.CopyError, SupervisorGone, ApiError) as error:
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

    async def _capture(self, snapshot: Snapshot, sandbox: Sandbox, before: Status) -> None:
        if sandbox.box is None:
            raise trees.CopyError(f"sandbox is {sandbox.status}")
        layer = self._platform.layers.new()
        system = self._platform.directory / "n" / snapshot.id
        if before is Status.RUNNING:
            await sandbox.box.freeze()
        try:
            stack = await sandbox.box.capture(layer, system)
        finally:
            if before is Status.RUNNING:
                await sandbox.box.thaw()
        snapshot.base = self._platform.layers.hold(Base(sandbox.base.runtime, system, stack))
        snapshot.size_bytes = await asyncio.to_thread(_size, layer.directory)

    def find(self, snapshot_id: str) -> Snapshot:
        snapshot = self._all.get(snapshot_id)
        if snapshot is None:
            raise not_found(f"snapshot '{snapshot_id}'")
        return snapshot

    def for_restore(self, snapshot_id: str) -> Snapshot:
        snapshot = self.find(snapshot_id)
        if snapshot.stage not in (Stage.LOCAL_READY, Stage.COMPLETED):
            raise bad_request(f"snapshot '{snapshot_id}' is {snapshot.stage}: it cannot be restored")
        return snapshot

    def all(self) -> list[Snapshot]:
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

    async def _drop(self, snapshot: Snapshot) -> None:
        base, snapshot.base = snapshot.base, replace(snapshot.base, layers=())
        await asyncio.to_thread(trees.remove, base.system)
        await self._platform.layers.release(base)


def _size(directory: Any) -> int:
    return sum(file.lstat().st_size for file in directory.rglob("*") if not file.is_symlink() and file.is_file())
