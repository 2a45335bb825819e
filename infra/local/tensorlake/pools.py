"""Pools: containers that are started before anybody asks for them
(docs/wire/tensorlake.md#512-pools).

A warm container is a sandbox's body without a record. A claim gives it one, or starts a cold body where none is warm;
at `max_containers` a claim waits as `pending` until another ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra.local.tensorlake.box import Box
from infra.local.tensorlake.errors import conflict, not_found
from infra.local.tensorlake.layers import BaseRoot
from infra.local.tensorlake.names import new_id
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.records import NetworkPolicy, Resources, Sandbox


class PoolRequest(BaseModel):
    """Of a create and of an update, which replaces everything but a network policy that it does not name."""

    model_config = ConfigDict(extra="ignore")

    image: str = Field(min_length=1)
    resources: Resources = Resources()
    timeout_secs: int = Field(default=0, ge=0)
    entrypoint: list[str] | None = None
    max_containers: int | None = Field(default=None, ge=1)
    warm_containers: int | None = Field(default=None, ge=0)
    network: NetworkPolicy | None = None

    @model_validator(mode="after")
    def _room_for_the_warm(self) -> PoolRequest:
        if self.max_containers is not None and (self.warm_containers or 0) > self.max_containers:
            raise ValueError("warm_containers must not be more than max_containers")
        return self


@dataclass(eq=False)
class Pool:
    """`warm`: bodies that start or have started, by container id. `claimed`: sandboxes, waiting ones too."""

    id: str
    namespace: str
    request: PoolRequest
    base: BaseRoot
    created_at: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    updated_at: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    warm: dict[str, asyncio.Task[Box]] = field(default_factory=dict)
    claimed: list[Sandbox] = field(default_factory=list)
    deleted: bool = False

    def live(self) -> list[Sandbox]:
        """The sandboxes that hold a container."""
        return [sandbox for sandbox in self.claimed if sandbox.live and sandbox.pending_reason != AT_CAPACITY]

    @property
    def full(self) -> bool:
        most = self.request.max_containers
        return most is not None and len(self.live()) >= most

    def record(self, *, containers: bool) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "id": self.id,
            "namespace": self.namespace,
            **self.request.model_dump(exclude={"network"}, exclude_none=True),
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }
        if self.request.network is not None:
            answer["network_policy"] = self.request.network.model_dump()
        if containers:
            answer["containers"] = [
                *({"id": one, "state": "Idle", "executor_id": "offline"} for one in self.warm),
                *(
                    {"id": one.id, "state": "Running", "sandbox_id": one.id, "executor_id": "offline"}
                    for one in self.live()
                ),
            ]
        return answer


AT_CAPACITY = "pool_at_capacity"


class Pools:
    def __init__(self, platform: TensorlakePlatform) -> None:
        self._platform = platform
        self._pools: dict[str, Pool] = {}

    def create(self, namespace: str, request: PoolRequest) -> Pool:
        """Raises 400 for an image that is not registered."""
        base = self._platform.images.for_create(request.image).base
        pool = Pool(new_id(), namespace, request, self._platform.layers.hold(base))
        self._pools[pool.id] = pool
        self._keep_warm(pool)
        return pool

    def get(self, namespace: str, pool_id: str) -> Pool:
        pool = self._pools.get(pool_id)
        if pool is None or pool.namespace != namespace:
            raise not_found(f"pool '{pool_id}'")
        return pool

    def all(self, namespace: str) -> Iterator[Pool]:
        return (pool for pool in self._pools.values() if pool.namespace == namespace)

    async def update(self, pool: Pool, request: PoolRequest, *, keep_network: bool) -> None:
        """Warm containers are started anew with what has changed; claimed ones stay as they are."""
        base = self._platform.images.for_create(request.image).base
        if keep_network:
            request = request.model_copy(update={"network": pool.request.network})
        before, pool.base = pool.base, self._platform.layers.hold(base)
        pool.request = request
        pool.updated_at = time.time_ns() // 1_000_000
        await self._cool(pool)
        await self._platform.layers.release(before)
        self._keep_warm(pool)

    async def delete(self, pool: Pool) -> None:
        """Raises 409 while one of its containers is claimed."""
        if any(sandbox.live for sandbox in pool.claimed):
            raise conflict(f"pool '{pool.id}' has claimed containers")
        del self._pools[pool.id]
        pool.deleted = True
        await self._cool(pool)
        await self._platform.layers.release(pool.base)

    # What a claim does, in this order

    def admit(self, pool: Pool, sandbox: Sandbox) -> None:
        """Synchronous, hence atomic: the claim that comes second to a full pool is the one that waits."""
        if pool.full:
            sandbox.pending_reason = AT_CAPACITY
        pool.claimed.append(sandbox)

    async def container(self, pool: Pool, sandbox: Sandbox) -> asyncio.Task[Box] | None:
        """A warm body, or None where a cold one must be started. Waits while the pool is full."""
        while sandbox.pending_reason == AT_CAPACITY:
            if not pool.full:
                sandbox.pending_reason = "scheduling"
                break
            await asyncio.sleep(_LOOK_AGAIN)
        if not pool.warm:
            return None
        body = pool.warm.pop(next(iter(pool.warm)))
        self._platform.warm.discard(body)
        self._keep_warm(pool)
        return body

    def left(self, sandbox: Sandbox) -> None:
        """A claimed sandbox has ended."""
        pool = self._pools.get(sandbox.pool_id or "")
        if pool is not None:
            pool.claimed.remove(sandbox)
            self._keep_warm(pool)

    # Warmth

    def _keep_warm(self, pool: Pool) -> None:
        wanted = pool.request.warm_containers or 0
        if pool.request.max_containers is not None:
            wanted = min(wanted, pool.request.max_containers - len(pool.live()))
        while len(pool.warm) < wanted and not pool.deleted:
            container = new_id()
            directory = self._platform.directory / "s" / container
            body = asyncio.create_task(self._started(pool.base, directory, container))
            pool.warm[container] = body
            self._platform.warm.add(body)
            body.add_done_callback(_seen)

    async def _started(self, base: BaseRoot, directory: Path, container: str) -> Box:
        """It takes as long as a create, and nobody waits for it."""
        await asyncio.sleep(self._platform.settings.create_seconds)
        return await self._platform.isolation.start(base, directory, container, self._platform.settings.launcher)

    async def _cool(self, pool: Pool) -> None:
        bodies = list(pool.warm.values())
        pool.warm.clear()
        self._platform.warm.difference_update(bodies)
        for body in await asyncio.gather(*bodies, return_exceptions=True):
            if isinstance(body, Box):
                await body.end()


_LOOK_AGAIN = 0.02
"""Seconds between two looks of a claim that waits for room."""


def _seen(body: asyncio.Task[Box]) -> None:
    """A body that could not be started is told to whoever claims it."""
    if not body.cancelled():
        body.exception()
