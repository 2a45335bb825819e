"""What the soak does to its copies and to both services besides single faults, one kind after the other.

Each kind is a context manager of a `Scene`: it begins something bad, and ends it when its block is left. `weather`
takes them in a seeded order, a few seconds each, for as long as sessions run.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from infra.local.admin_client import AdminClient
from tests.support.beside import beside
from tests.support.footprint import children
from tests.support.world import OfflineWorld

SPELL: Final = (2.0, 8.0)
"""Seconds that one kind lasts, from and to."""
CALM: Final = (1.0, 5.0)
"""Seconds between two kinds: a user's patience is for several turns, not for one long outage."""
JUMP: Final = 600.0
"""Seconds that a wrong clock is ahead or behind."""


@dataclass(frozen=True, slots=True)
class Scene:
    """pids: the copies' process ids by name; chance: the soak's own, seeded; lease: seconds that one lasts."""

    world: OfflineWorld
    pids: Mapping[str, int]
    chance: random.Random
    lease: float


Kind = Callable[[Scene], AbstractContextManager[None]]


@contextlib.contextmanager
def frozen_copy(scene: Scene) -> Iterator[None]:
    """One copy stands still with all its children, as a machine that swaps: SIGSTOP, then SIGCONT."""
    pid = scene.chance.choice(sorted(scene.pids.values()))
    with _stopped([pid, *children(pid)]):
        yield


@contextlib.contextmanager
def frozen_services(scene: Scene) -> Iterator[None]:
    """Both services stand still: connections are taken by the kernel, and nobody answers."""
    with _stopped([scene.world.claude.pid, scene.world.tensorlake.pid]):
        yield


@contextlib.contextmanager
def silent_data_plane(scene: Scene) -> Iterator[None]:
    """A third of the answers from sandboxes stop after their headers."""
    with _rule(scene.world.tensorlake_admin, path=r"/api/v1/", action="stall", probability=0.3):
        yield


@contextlib.contextmanager
def half_open(scene: Scene) -> Iterator[None]:
    """A tenth of all requests happen, and no byte of their answer comes on a connection that stays open."""
    with (
        _rule(scene.world.tensorlake_admin, action="hang", probability=0.1),
        _rule(scene.world.claude_admin, action="hang", probability=0.1, host=r"^127\.0\.0\.1"),
    ):
        yield


@contextlib.contextmanager
def unreachable_service(scene: Scene) -> Iterator[None]:
    """Every connection to one of the services ends without an answer."""
    world = scene.world
    admin = scene.chance.choice([world.claude_admin, world.tensorlake_admin])
    host = {"host": r"^127\.0\.0\.1"} if admin is world.claude_admin else {}
    with _rule(admin, action="drop_before", **host):
        yield


@contextlib.contextmanager
def buffering_proxy(scene: Scene) -> Iterator[None]:
    """Followed output comes when its process has ended, as through a proxy that buffers."""
    scene.world.tensorlake_admin.patch("settings", {"follow_waits": True})
    try:
        yield
    finally:
        scene.world.tensorlake_admin.patch("settings", {"follow_waits": False})


@contextlib.contextmanager
def service_clock_jumps(scene: Scene) -> Iterator[None]:
    """For the queue a quarter of a lease passes at once, for every item that lives. The list stays in order: no service
    has one that is not, and of such a list that is not read to its end nothing is believed."""
    for item in scene.world.claude_admin.get("state")["items"]:
        if item["state"] != "stopped":
            scene.world.claude_admin.post(f"work/{item['id']}/age", {"seconds": scene.lease / 4, "created": False})
    yield


@contextlib.contextmanager
def service_dates_jump(scene: Scene) -> Iterator[None]:
    """The Claude API's answers carry a date that is ten minutes ahead, or ten behind. Then they are right again."""
    admin = scene.world.claude_admin
    admin.patch("settings", {"date_offset": scene.chance.choice([-JUMP, JUMP])})
    try:
        yield
    finally:
        admin.patch("settings", {"date_offset": 0.0})


KINDS: Final[Mapping[str, Kind]] = {
    kind.__name__.replace("_", " "): kind
    for kind in (
        frozen_copy,
        frozen_services,
        silent_data_plane,
        half_open,
        unreachable_service,
        buffering_proxy,
        service_clock_jumps,
        service_dates_jump,
    )
}


@contextlib.contextmanager
def weather(scene: Scene, seen: Counter[str], problems: list[str]) -> Iterator[None]:
    """All kinds in turn, in a new order each time round, until the block is left. `seen` counts them; what a kind
    itself failed with is a problem."""

    def blow(over: threading.Event) -> None:
        try:
            while not over.is_set():
                for name in scene.chance.sample(sorted(KINDS), len(KINDS)):
                    if over.wait(scene.chance.uniform(*CALM)):
                        return
                    with KINDS[name](scene):
                        seen[name] += 1
                        over.wait(scene.chance.uniform(*SPELL))
        except Exception as error:  # the thread's edge
            problems.append(f"the weather broke: {error!r}")

    with beside("weather", blow):
        yield


@contextlib.contextmanager
def _rule(admin: AdminClient, **rule: Any) -> Iterator[None]:
    armed = admin.post("faults", rule)["data"][0]["id"]
    try:
        yield
    finally:
        admin.delete(f"faults/{armed}")


@contextlib.contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    _signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(pids, signal.SIGCONT)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
