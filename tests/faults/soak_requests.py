"""How many requests both services get, in all and in the busiest minute of the soak."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from infra.local.admin_client import AdminError
from tests.support.beside import beside
from tests.support.world import OfflineWorld

EVERY: Final = 5.0
MINUTE: Final = 60.0


def so_far(world: OfflineWorld) -> int:
    """Raises AdminError where a service does not answer."""
    claude, tensorlake = world.claude_admin.get("requests"), world.tensorlake_admin.get("counts")
    return int(sum(claude["counts"].values()) + tensorlake["total"])


@contextlib.contextmanager
def busiest_minute(world: OfflineWorld, told: Callable[[int], None]) -> Iterator[None]:
    """`told` gets what the busiest minute had when the block is left; of a shorter block, all of it."""
    samples = deque([(time.monotonic(), so_far(world))])
    most = 0

    def sample(over: threading.Event) -> None:
        nonlocal most
        while not over.wait(EVERY):
            with contextlib.suppress(AdminError):  # it stands still, which is part of the weather
                most = max(most, _in_the_last_minute(samples, so_far(world)))

    with beside("requests", sample):
        yield
    told(max(most, _in_the_last_minute(samples, so_far(world))))


def _in_the_last_minute(samples: deque[tuple[float, int]], now: int) -> int:
    """A minute that is longer by one sample's distance at most, unless the service stood still."""
    samples.append((time.monotonic(), now))
    while len(samples) > 2 and samples[-1][0] - samples[1][0] >= MINUTE:
        samples.popleft()
    return samples[-1][1] - samples[0][1]
