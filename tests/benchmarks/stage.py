"""The world that benchmarks run in: both offline services with the round trips of a distant one.

Unlike in the tests, every time of the claim protocol is the product's own default.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx2

from tests.support.waiting import until
from tests.support.world import SCALED, OfflineWorld, Place, offline_world

ROUND_TRIP: Final = 0.05  # seconds, of each API call on either service
CREATE: Final = 0.3
START: Final = 0.1
SETTING: Final = (
    f"API round trips {ROUND_TRIP * 1000:.0f} ms, create {CREATE * 1000:.0f} ms, start {START * 1000:.0f} ms"
)

PROMPT: Final = "$ true"
_LEASE: Final = 300.0


@contextlib.contextmanager
def stage() -> Iterator[OfflineWorld]:
    with offline_world() as world:
        world.claude_admin.patch("settings", {"lease_ttl": _LEASE})
        delays(world, on=True)
        yield world


def delays(world: OfflineWorld, *, on: bool) -> None:
    """The delays of `SETTING`, or none at all."""
    for admin in (world.claude_admin, world.tensorlake_admin):
        admin.put("latency", {"seconds": ROUND_TRIP if on else 0.0})
    changes = {"create_seconds": CREATE if on else 0.0, "process_start_seconds": START if on else 0.0}
    world.tensorlake_admin.patch("settings", changes)


def production_place(world: OfflineWorld, **extra: str) -> Place:
    """An environment whose settings are the defaults; its workers end soon after their turn."""
    defaults = dict.fromkeys(SCALED, "")
    return world.place(**{**defaults, "RUNNER_MAX_IDLE_SECONDS": "0.5", **extra})


def crowd(place: Place, more: int) -> None:
    """So many more sandboxes that stay pending: they are on every list and hold a name, and no process runs for
    them."""
    world = place.world
    fault = {"outcome": "stuck_pending", "name_pattern": "^crowd-", "times": None}
    world.tensorlake_admin.patch("settings", {"start_faults": [fault]})
    delays(world, on=False)
    present = world.tensorlake_admin.get("state")["sandboxes"]
    headers = {"authorization": f"Bearer {place.environ['TENSORLAKE_API_KEY']}"}
    image = place.environment.image
    with (
        httpx2.Client(base_url=world.tensorlake.url, headers=headers, trust_env=False, timeout=30) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        bodies = [{"name": f"crowd-{len(present) + n}", "image": image, "wait": False} for n in range(more)]
        for answer in pool.map(lambda body: client.post("/sandboxes", json=body), bodies):
            answer.raise_for_status()
    delays(world, on=True)


def wait_ready(url: str) -> None:
    """The server has its SDKs imported."""
    until(lambda: httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200, "the server did not become ready")


def end_sandboxes(place: Place, but: str = "") -> None:
    """End them with whatever runs in them, at no delay; `but`: none whose name has this part."""
    headers = {"authorization": f"Bearer {place.environ['TENSORLAKE_API_KEY']}"}
    url = place.environ["TENSORLAKE_API_URL"]
    with (
        httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=30) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        ended = [box for box in place.sandboxes() if not but or but not in box["name"]]
        for answer in pool.map(lambda box: client.delete(f"/sandboxes/{box['id']}"), ended):
            answer.raise_for_status()
