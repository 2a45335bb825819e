"""Assumptions about pools (docs/wire/tensorlake.md#512-pools).

A pool has no name. A killed certify's is known by its time-out, which no other pool has, and ended by the next one
(left_behind.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried, Observed

POOL_SECONDS: Final = 617


async def pool_rename(ground: Ground) -> Observed:
    wanted = {
        "image": ground.environment.image,
        "resources": {"cpus": 1.0, "memory_mb": 1024, "disk_mb": ground.environment.disk_mb or 10_240},
        "timeout_secs": POOL_SECONDS,
        "max_containers": 1,
    }
    made = await ground.lifecycle("POST", "/sandbox-pools", wanted)
    if made.status_code >= 300:
        return Observed(False, f"a pool is refused: HTTP {made.status_code}")
    pool = f"/sandbox-pools/{made.json()['pool_id']}"
    ground.owe(pool, lambda: end_pool(ground, pool))
    claimed = await ground.lifecycle("POST", f"{pool}/sandboxes", {})
    if claimed.status_code >= 300:
        return Observed(False, f"a claim is refused: HTTP {claimed.status_code}")
    one = f"/sandboxes/{claimed.json()['sandbox_id']}"

    async def end_claimed() -> None:
        await ground.lifecycle("DELETE", one)

    ground.owe(one, end_claimed)
    named = await ground.lifecycle("PATCH", one, {"name": ground.new_name()})
    status = named.status_code
    behaviour = {"tensorlake.pool_rename_status": status if 400 <= status < 500 else None}
    return Observed(status < 300, f"claimed, then named: HTTP {status}", behaviour)


def is_ours(ground: Ground, row: Mapping[str, Any]) -> bool:
    """Whether a listed pool is one of certify's."""
    mark = (row.get("timeout_secs"), row.get("max_containers"), row.get("image"))
    return mark == (POOL_SECONDS, 1, ground.environment.image)


async def end_pool(ground: Ground, pool: str) -> None:
    for _ in range(5):
        if (await ground.lifecycle("DELETE", pool)).status_code != 409:
            return
        await asyncio.sleep(1.0)
    raise NotTried(pool)


CHECKS: Final = (
    ServiceCheck(
        "sandbox.pool-rename",
        "docs/wire/tensorlake.md#512-pools",
        "a sandbox that is claimed from a pool can be named afterwards",
        "pools cannot be used for sessions, whose sandboxes are found by name",
        pool_rename,
    ),
)
