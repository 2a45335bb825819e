"""What killed runs left: the next one ends it before it begins. Whose a thing is, and whether that run is dead, is told
in runs.py; a pool has no name, and is known by its time-out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from infra.cli.certify import pool_checks
from infra.cli.certify.ground import CleanUp, Ground
from infra.cli.certify.observation import NotTried
from shared import names
from shared.ports import Doubtful, SandboxRecord, SandboxStatus
from shared.reconcile.plan import ASLEEP

_POOL_CHECK: Final = 180.0
"""Seconds after which a living run's pool is gone: its check and the clean-up after it take less."""


async def end_earlier(ground: Ground) -> list[str]:
    """Ends what dead runs left under this prefix and environment; returns what that was. What may be left is noted
    (`Ground.left_over`)."""
    gone: list[str] = []
    for look in (_sessions, _pools, _sandboxes):
        try:
            found = await look(ground)
        except Exception as error:  # the edge: the checks tell what is wrong with the service
            why = str(error) if isinstance(error, NotTried) else type(error).__name__
            ground.left_over.append(f"perhaps what an earlier certify made: {why}")
            continue
        for what, end in found.items():
            try:
                await end()
                gone.append(what)
            except Exception as error:  # the edge: what is left is told
                ground.left_over.append(f"{what} of an earlier certify ({type(error).__name__})")
    return gone


async def _sessions(ground: Ground) -> Mapping[str, CleanUp]:
    """Of the newest hundred of the workspace. Without the API key no run made any."""
    if not ground.context.environ.get("ANTHROPIC_API_KEY", "").strip():
        return {}
    answer = await ground.claude("GET", "/v1/sessions", key="api", limit=100)
    if answer.status_code != 200:
        raise NotTried(f"sessions could not be listed: HTTP {answer.status_code}")
    return {
        str(row["id"]): partial(ground.end_session, str(row["id"]))
        for row in answer.json()["data"]
        if row.get("environment_id") == ground.environment.id and ground.is_over(row.get("metadata"))
    }


async def _pools(ground: Ground) -> Mapping[str, CleanUp]:
    """A pool that is there on both of two looks is no living run's."""
    first = await _marked_pools(ground)
    if not first:
        return {}
    await asyncio.sleep(0.5 if ground.context.offline else _POOL_CHECK)
    return {pool: partial(_end_pool, ground, pool) for pool in first & await _marked_pools(ground)}


async def _marked_pools(ground: Ground) -> set[str]:
    answer = await ground.lifecycle("GET", "/sandbox-pools")
    return {
        f"/sandbox-pools/{row.get('pool_id') or row.get('id')}"
        for row in (answer.json().get("pools", []) if answer.status_code == 200 else [])
        if pool_checks.is_ours(ground, row)
    }


async def _end_pool(ground: Ground, pool: str) -> None:
    """With the sandboxes that were claimed from it."""
    looked = await ground.lifecycle("GET", pool)
    for container in looked.json().get("containers") or [] if looked.status_code == 200 else []:
        if container.get("sandbox_id"):
            await ground.lifecycle("DELETE", f"/sandboxes/{container['sandbox_id']}")
    await pool_checks.end_pool(ground, pool)


async def _sandboxes(ground: Ground) -> Mapping[str, CleanUp]:
    """And their snapshots, which outlive them."""
    listing = await ground.host.list_sandboxes()
    if isinstance(listing, Doubtful):
        raise NotTried(f"sandboxes could not be listed: {listing.reason}")
    dead = {row.id: row for row in listing.rows if _is_left(ground, row)}
    found: dict[str, CleanUp] = {
        str(row.name): partial(ground.end_sandbox, row.id)
        for row in dead.values()
        if row.status is not SandboxStatus.TERMINATED
    }
    if dead:
        snapshots = await ground.host.list_snapshots()
        if isinstance(snapshots, Doubtful):
            raise NotTried(f"snapshots could not be listed: {snapshots.reason}")
        for row in snapshots.rows:
            if row.sandbox_id in dead and not row.id.startswith(ASLEEP):
                found[f"snapshot {row.id}"] = partial(_delete_snapshot, ground, row.id)
    return found


async def _delete_snapshot(ground: Ground, snapshot_id: str) -> Any:
    return await ground.host.delete_snapshot(snapshot_id)


def _is_left(ground: Ground, row: SandboxRecord) -> bool:
    name = names.parse(ground.context.settings.prefix, row.name)
    if not isinstance(name, names.RaceSandbox) or not names.belongs_to(name, ground.environment.id):
        return False
    return ground.is_dead(name.race_id, name.dead_man)
