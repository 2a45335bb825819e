"""A server's own schedule, its eye on the clock, and its counters."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict

import pytest

from functions.server.lifecycle import ServerLifecycle
from functions.server.request_counter import RequestCounts
from functions.server.scheduler import Scheduler
from functions.server.suspend_detector import LONGEST_STALL, SuspendDetector
from functions.tick_remarks import remarks
from shared.reports import Act, ActionReport, ReconcileReport, TickReport
from shared.service import Service
from shared.settings import Settings

ENVIRON = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
}


class Ticks:
    """A tick that fails where it is told to."""

    def __init__(self, *fail: int) -> None:
        self.count = 0
        self._fail = fail

    async def __call__(self) -> TickReport:
        self.count += 1
        if self.count in self._fail:
            raise RuntimeError("a bug")
        return TickReport([], [], 0.0)

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.count < count:
                await asyncio.sleep(0.001)


def test_it_ticks_at_once_and_then_again_whatever_one_of_them_met() -> None:
    async def play() -> None:
        ticks = Ticks(2, 3)
        scheduler = Scheduler(ticks, every=0.001)
        task = asyncio.create_task(scheduler.run())
        await ticks.reach(5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert scheduler.failed == 2 and scheduler.done >= 2

    asyncio.run(play())


def test_soon_makes_the_next_tick_due_at_once() -> None:
    async def play() -> None:
        ticks = Ticks()
        scheduler = Scheduler(ticks, every=3600)
        task = asyncio.create_task(scheduler.run())
        await ticks.reach(1)
        await asyncio.sleep(0)
        scheduler.soon()
        await ticks.reach(2)
        task.cancel()

    asyncio.run(play())


def test_repairs_alarms_and_stuck_sessions_are_remarked() -> None:
    actions = [
        ActionReport(Act.RELEASE, "work_1", "stranded for 200 s", True),
        ActionReport(Act.SUSPEND, "hands-x", "idle", False, "the service answered 500"),
    ]
    report = TickReport([], [ReconcileReport("env_1", 3, 1, 0, actions, ["sesn_1"], ["look-ups fail"], 0, 0.1)], 0.2)
    lines = list(remarks(json.loads(json.dumps(asdict(report)))))
    assert lines[0] == "repair: release work_1 (stranded for 200 s)"
    assert lines[1].endswith("NOT DONE: the service answered 500")
    assert lines[2] == "ALARM: env_1: look-ups fail"
    assert lines[3].startswith("ALARM: sesn_1 is stuck")
    assert list(remarks({"drains": [], "reconciled": [], "seconds": 0.0})) == []


@pytest.mark.parametrize(
    ("by_wall", "by_monotonic", "missed"),
    [
        (2.0, 2.0, None),  # a beat
        (LONGEST_STALL - 1, LONGEST_STALL - 1, None),  # a slow machine
        (3600.0, 3600.0, 3600.0),  # frozen processes: both clocks went on
        (3600.0, 2.0, 3600.0),  # a suspended machine: its monotonic clock stood
        (-600.0, 2.0, 2.0),  # the clock was set back
    ],
)
def test_a_standstill_is_noticed_by_either_clock(by_wall: float, by_monotonic: float, missed: float | None) -> None:
    wall, monotonic = 1000.0, 50.0
    noticed: list[float] = []
    watch = SuspendDetector(noticed.append, wall=lambda: wall, monotonic=lambda: monotonic)
    wall, monotonic = wall + by_wall, monotonic + by_monotonic
    watch.look()
    watch.look()  # once for each
    assert noticed == ([] if missed is None else [missed])
    assert watch.count == len(noticed)


def test_renewed_clients_are_new_ones_and_the_old_are_closed_with_the_service() -> None:
    async def play() -> None:
        service = Service(Settings.from_environ(ENVIRON))
        environment = service.settings.environments["env_1"]
        host, queue = service.host, service.queue(environment)
        closed: list[object] = []

        def closes(client: object) -> None:
            async def aclose() -> None:
                closed.append(client)

            client.aclose = aclose  # type: ignore[attr-defined]  # a spy on the one method

        closes(host)
        closes(queue)
        service.renew_clients()
        service.renew_clients()
        assert service.host is not host and service.queue(environment) is not queue
        assert closed == []  # a drain may still use them
        await service.aclose()
        assert closed == [queue, host]

    asyncio.run(play())


def test_visits_tell_strangers_from_the_sender_and_from_who_has_a_token() -> None:
    request_counts = RequestCounts()
    for path, status in [
        ("/", 200),
        ("/on_run_started", 200),
        ("/", 401),
        ("/.git/config", 404),
        ("/status", 401),
        ("/status", 200),
        ("/healthz", 200),
        ("/poll_tick", 200),
        ("/fork_best_of_n", 200),
        ("/", 503),
    ]:
        request_counts.answered(path, status, 17.0)
    report = request_counts.report()
    assert {kind: row["count"] for kind, row in report.items()} == {
        "webhooks": 2,
        "strangers": 3,
        "ticks": 1,
        "calls": 1,
        "failures": 1,
    }
    assert report["strangers"]["last_at"] == 17.0


def test_a_server_that_stood_still_connects_anew_and_ticks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        ticks = Ticks()
        monkeypatch.setattr(Service, "tick", lambda _, patience: ticks())
        environ = {**ENVIRON, "SELF_TICK_SECONDS": "3600", "STANDSTILL_SECONDS": "1"}
        service = Service(Settings.from_environ(environ))
        serving = ServerLifecycle(service, asyncio.create_task(asyncio.sleep(0)))
        async with serving.running():
            await ticks.reach(1)
            host = service.host
            time.sleep(1.1)  # with the event loop, as a sleep does
            serving.suspend_detector.look()
            assert service.host is not host
            await ticks.reach(2)
        assert serving.report()["stood_still"] >= 1
        await service.aclose()

    asyncio.run(play())
