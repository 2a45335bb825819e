"""A warm pool over real sockets: sessions served from it, by several copies, and whatever a claim or a rename meets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import httpx2
import pytest

from shared.claims.dispatcher import utc_now
from shared.deadline import Deadline
from shared.reports import Act, ItemEnd, ItemReport, ReconcileReport
from shared.service import Service
from tests.support.admin import fault
from tests.support.waiting import until
from tests.support.world import OfflineWorld, Place, pool_like

PROMPT: Final = "$ echo ran >> /workspace/runs"
CLAIM: Final = {"method": "POST", "path": r"/sandbox-pools/[^/]+/sandboxes$"}
RENAME: Final = {"method": "PATCH", "path": r"/sandboxes/[^/]+$"}
ONCE: Final[Mapping[str, Mapping[str, Any]]] = {
    "claim fails": CLAIM | {"action": "status", "status": 500},
    "claim is over quota": CLAIM | {"action": "status", "status": 402},
    "claim's answer is lost": CLAIM | {"action": "drop_after"},
    "claim's answer is garbage": CLAIM | {"action": "garbage"},
    "claim hangs": CLAIM | {"action": "delay_after", "seconds": 12},
    "rename fails": RENAME | {"action": "status", "status": 400},
    "rename's answer is lost": RENAME | {"action": "drop_after"},
    "rename never arrives": RENAME | {"action": "drop_before"},
}


@pytest.fixture
def pooled(place: Place) -> Iterator[Place]:
    """The place with a pool of what its environment wants, two warm."""
    with httpx2.Client(
        base_url=place.world.tensorlake.url,
        headers={"authorization": f"Bearer {place.environ['TENSORLAKE_API_KEY']}"},
        trust_env=False,
        timeout=30,
    ) as client:
        wanted = pool_like(place.environment)
        pool = client.post("/sandbox-pools", json=wanted).raise_for_status().json()["pool_id"]
        yield place.adjusted(SANDBOX_POOL=pool)
        for box in of_pool(place.world, pool):
            client.delete(f"/sandboxes/{box['id']}")
        until(lambda: client.delete(f"/sandbox-pools/{pool}").status_code in (204, 404))


def of_pool(world: OfflineWorld, pool: str) -> list[Mapping[str, Any]]:
    """Its sandboxes that live, claimed ones alone."""
    boxes = world.tensorlake_admin.get("state")["sandboxes"]
    return [box for box in boxes if box.get("pool_id") == pool and box["status"] != "terminated"]


def drained(place: Place, copies: int = 1) -> list[ItemReport]:
    async def play() -> list[ItemReport]:
        services = [Service(place.settings) for _ in range(copies)]
        try:
            found = await asyncio.gather(*(service.drain() for service in services))
        finally:
            for service in services:
                await service.aclose()
        return [item for reports in found for report in reports for item in report.items]

    return asyncio.run(play())


def reconciled(place: Place) -> ReconcileReport:
    """A pass when no claim is good any more."""
    later = timedelta(seconds=place.settings.times.reclaim + 1)

    async def play() -> ReconcileReport:
        service = Service(place.settings)
        try:
            reconciler = replace(service.reconciler(place.environment), now=lambda: utc_now() + later)
            return await reconciler.reconcile(Deadline.after(60.0))
        finally:
            await service.aclose()

    return asyncio.run(play())


def test_a_session_is_served_from_the_pool_and_its_next_turn_in_the_same_sandbox(pooled: Place) -> None:
    pool = pooled.environment.pool
    session = pooled.session(PROMPT)
    (item,) = drained(pooled)
    assert (item.end, item.reason) == (ItemEnd.HANDED_OVER, "")
    pooled.wait_done(session)
    (box,) = of_pool(pooled.world, pool)
    assert box["name"] == pooled.sandbox(session)
    until(lambda: pooled.item(session)["state"] == "stopped")
    pooled.say(session, PROMPT)
    until(lambda: len(pooled.items(session)) == 2)
    assert [each.end for each in drained(pooled)] == [ItemEnd.HANDED_OVER]
    pooled.wait_done(session, 2)
    assert [each["id"] for each in of_pool(pooled.world, pool)] == [box["id"]]


@pytest.mark.parametrize("meets", ONCE)
def test_i1_whatever_a_claim_or_a_rename_meets_the_session_is_served_once_and_what_is_left_is_ended(
    pooled: Place, meets: str
) -> None:
    session = pooled.session(PROMPT)
    with fault(pooled.world.tensorlake_admin, {"times": 1, **ONCE[meets]}):
        (item,) = drained(pooled)
    assert item.end is ItemEnd.HANDED_OVER
    pooled.wait_done(session)
    assert [box["name"] for box in pooled.sandboxes()] == [pooled.sandbox(session)]
    assert len(pooled.items(session)) == 1
    nameless = [box["id"] for box in of_pool(pooled.world, pooled.environment.pool) if not box.get("name")]
    assert len(nameless) <= 1
    ended: list[str] = []

    def all_ended() -> bool:
        ended.extend(each.target for each in reconciled(pooled).actions if each.act is Act.END_NAMELESS and each.done)
        return not [box for box in of_pool(pooled.world, pooled.environment.pool) if not box.get("name")]

    until(all_ended)
    assert set(ended) == set(nameless)
    assert [box["name"] for box in pooled.sandboxes()] == [pooled.sandbox(session)]
