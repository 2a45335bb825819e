"""A sandbox as the platform knows it, and how it looks on the wire (docs/wire/tensorlake.md#4-statuses,
docs/wire/tensorlake.md#53-get-and-list)."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from infra.local.tensorlake.box import Box
from infra.local.tensorlake.layers import BaseRoot

DAEMON_PORT = 9501


class Status(enum.StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SNAPSHOTTING = "snapshotting"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    TERMINATED = "terminated"
    FAILED = "failed"


ROUTABLE = {Status.RUNNING, Status.SNAPSHOTTING, Status.SUSPENDING, Status.SUSPENDED}
"""Statuses whose answers carry `sandbox_url`; `get_or_create` depends on it
(docs/wire/tensorlake.md#54-get_or_create)."""
ENDED = {Status.TERMINATED, Status.FAILED}


class Resources(BaseModel):
    """Recorded and echoed, never enforced."""

    model_config = ConfigDict(extra="ignore")

    cpus: float = Field(default=1.0, gt=0)
    memory_mb: int = Field(default=1024, gt=0)
    disk_mb: int = Field(default=10_240, gt=0)


class NetworkPolicy(BaseModel):
    """Recorded and echoed. Sandboxes here share the machine's network: it holds for the names of egress.py alone."""

    allow_internet_access: bool = True
    allow_out: list[str] = []
    deny_out: list[str] = []


Port = int


@dataclass(eq=False)
class Sandbox:
    id: str
    namespace: str
    sequence: int
    name: str | None
    base: BaseRoot
    image: str | None
    snapshot_id: str | None
    resources: Resources
    timeout_secs: int
    entrypoint: list[str]
    network: NetworkPolicy | None
    exposed_ports: list[Port]
    allow_unauthenticated_access: bool
    auto_resume: bool
    max_pending_secs: int | None = None
    pool_id: str | None = None
    created_at: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    terminated_at: int | None = None
    status: Status = Status.PENDING
    pending_reason: str | None = "scheduling"
    termination_reason: str | None = None
    error_details: str | None = None
    hide_url: bool = False
    moved: bool = False
    """Reached by this machine's other name since its last resume."""
    dying_name: str | None = None
    """The name, for as long as it still resolves after terminate (docs/wire/tensorlake.md#54-get_or_create, live
    trap)."""
    resize_generation: int = 0
    box: Box | None = None
    open_requests: int = 0
    last_activity: float = field(default_factory=time.monotonic)
    asleep_since: float = 0.0
    """By the same clock; holds while it is suspended."""
    notes: list[str] = field(default_factory=list)
    boot: asyncio.Task[None] | None = field(default=None, repr=False)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    """Held by whoever moves the sandbox from one state to another."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def outcome(self) -> str | None:
        """How it ended, in a word: none while it lives. The service's own words are not known."""
        if self.live:
            return None
        return "timeout" if self.termination_reason == "timeout" else self.status.value

    @property
    def live(self) -> bool:
        return self.status not in ENDED

    def become(self, status: Status) -> None:
        self.status = status
        if status is not Status.PENDING:
            self.pending_reason = None
        if status in ENDED:
            self.terminated_at = time.time_ns() // 1_000_000
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for(self, statuses: Collection[Status], seconds: float) -> bool:
        """Wait until the status is one of these, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                while self.status not in statuses:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def touch(self) -> None:
        self.last_activity = time.monotonic()

    def idle_seconds(self, *, open_requests_count: bool) -> float:
        if open_requests_count and self.open_requests:
            return 0.0
        return time.monotonic() - self.last_activity


def reach(sandbox: Sandbox, url: str) -> dict[str, Any]:
    """The fields that say where a sandbox is reached. `*.localhost` lets port URLs resolve on this machine."""
    if sandbox.status not in ROUTABLE or sandbox.hide_url:
        return {}
    port = url.rpartition(":")[2]
    if sandbox.moved:
        url = f"http://localhost:{port}"
    return {"sandbox_url": url, "ingress_endpoint": f"http://localhost:{port}"}


def info(sandbox: Sandbox, url: str, *, asked_by: str | None = None) -> dict[str, Any]:
    """The answer to GET. A name that still resolves after terminate reads `running` to who asks by name."""
    answer: dict[str, Any] = {
        "id": sandbox.id,
        "namespace": sandbox.namespace,
        "status": sandbox.status,
        "resources": sandbox.resources.model_dump(),
        "created_at": sandbox.created_at,
        "timeout_secs": sandbox.timeout_secs,
        "allow_unauthenticated_access": sandbox.allow_unauthenticated_access,
        "exposed_ports": sandbox.exposed_ports,
        "auto_resume": sandbox.auto_resume,
        **reach(sandbox, url),
    }
    optional = {
        "name": sandbox.name,
        "image": sandbox.image,
        "entrypoint": sandbox.entrypoint or None,
        "network_policy": sandbox.network.model_dump() if sandbox.network else None,
        "pool_id": sandbox.pool_id,
        "pending_reason": sandbox.pending_reason,
        "outcome": sandbox.outcome,
        "termination_reason": sandbox.termination_reason,
        "error_details": sandbox.error_details,
        "terminated_at": sandbox.terminated_at,
    }
    answer.update({key: value for key, value in optional.items() if value is not None})
    if sandbox.resize_generation:
        answer["resource_resize"] = {
            "generation": sandbox.resize_generation,
            "requested": sandbox.resources.model_dump(),
            "status": "succeeded",
        }
    if asked_by is not None and sandbox.dying_name == asked_by:
        answer.update(status=Status.RUNNING, sandbox_url=url)
    return answer


def created(sandbox: Sandbox, url: str) -> dict[str, Any]:
    """The answer to a blocking create: `sandbox_id` in place of `id` (never both,
    docs/wire/tensorlake.md#33-exceptions)."""
    answer: dict[str, Any] = {"sandbox_id": sandbox.id, "status": sandbox.status, **reach(sandbox, url)}
    optional = {
        "name": sandbox.name,
        "pending_reason": sandbox.pending_reason,
        "termination_reason": sandbox.termination_reason,
        "error_details": sandbox.error_details,
    }
    answer.update({key: value for key, value in optional.items() if value is not None})
    if sandbox.status in ENDED:
        answer["reason"] = sandbox.termination_reason
    return answer
