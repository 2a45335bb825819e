"""A new session's sandbox, created and claimed from a warm pool: from the decision to make it to its name.

Both ways take turns, with the product's own binding. The delay of a create is that of a cold start; a claim of a warm
container has none but its round trip.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import httpx2

from shared import names
from shared.claims.binding import Binding, Bound
from shared.claims.capacity import Capacity
from shared.claims.dispatcher import spec_of
from shared.claims.warm_pool import WarmPool
from shared.deadline import Deadline
from shared.service import Service
from tests.benchmarks.report import BenchmarkResult, FigureTable, median, milliseconds, percentile
from tests.benchmarks.stage import SETTING, delays, production_place, stage
from tests.support.world import Place, pool_like

RUNS: Final = 15


def run() -> BenchmarkResult:
    with stage() as world:
        place = production_place(world)
        created, claimed = asyncio.run(_in_turns(place, _pool_of(place)))
        delays(world, on=False)
    rows = [
        (name, milliseconds(median(found)), milliseconds(percentile(found, 95)))
        for name, found in (("created", created), ("claimed from a warm pool", claimed))
    ]
    return BenchmarkResult(
        tables=(
            FigureTable(
                f"A new session's sandbox, {RUNS} runs each, in turns; {SETTING}", ("", "p50 ms", "p95 ms"), rows
            ),
        ),
        meaning=(
            f"a session's sandbox is there {milliseconds(median(created) - median(claimed))} ms sooner from a pool, "
            "by three round trips (name, claim, rename) instead of one and a cold start."
        ),
        aims=(),
    )


def _pool_of(place: Place) -> str:
    """A pool of what the environment wants, with enough warm for all runs."""
    headers = {"authorization": f"Bearer {place.environ['TENSORLAKE_API_KEY']}"}
    url = f"{place.world.tensorlake.url}/sandbox-pools"
    return str(
        httpx2.post(url, json=pool_like(place.environment), headers=headers, timeout=30)
        .raise_for_status()
        .json()["pool_id"]
    )


async def _in_turns(place: Place, pool_id: str) -> tuple[Sequence[float], Sequence[float]]:
    service = Service(place.settings)
    pool = WarmPool(pool_id, place.environment_id)
    created: list[float] = []
    claimed: list[float] = []
    try:
        for number in range(RUNS + 1):
            for found, warm in ((created, None), (claimed, pool)):
                seconds = await _bound(place, service, warm, f"sesn_bench{number}{warm is None}")
                if number:  # the first opens the connections, and compares the pool
                    found.append(seconds)
    finally:
        await service.aclose()
    return created, claimed


async def _bound(place: Place, service: Service, pool: WarmPool | None, session_id: str) -> float:
    name = names.sandbox_name(place.settings.prefix, place.environment_id, session_id)
    way = Binding(
        service.host,
        spec_of(place.environment, name),
        prefix=place.settings.prefix,
        resume_suspended=True,
        capacity=Capacity(place.environment_id),
        now=lambda: datetime.now(UTC),
        pool=pool,
    )
    began = time.perf_counter()
    bound = await way.bind(Deadline.after(60.0))
    seconds = time.perf_counter() - began
    assert isinstance(bound, Bound) and bound.made and not bound.remark, bound
    await service.host.terminate(bound.sandbox.id)
    return seconds
