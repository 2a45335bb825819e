"""The composition root: deadlines are arguments, and nothing of one call stays for the next."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from datetime import UTC, datetime
from typing import Final

import pytest

from shared.adapters.call_budget import CallBudget, Priority
from shared.deadline import Deadline
from shared.ports import (
    CommandOutput,
    CreateOutcome,
    Doubtful,
    Empty,
    Listing,
    PollOutcome,
    SandboxRecord,
    SandboxSpec,
    WorkItem,
    WorkQueue,
)
from shared.races.request import RaceRequest
from shared.reports import DrainEnd, ItemEnd
from shared.service import Service
from shared.settings import Settings
from tests.fuzz.stage import NothingQueued
from tests.support.fake_host import FakeCall, FakeHost

ENVIRON: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "not-a-real-environment-key",
    "TENSORLAKE_API_KEY": "not-a-real-tensorlake-key",
}


async def never(_: FakeCall) -> CommandOutput:
    await asyncio.Event().wait()
    raise AssertionError


def test_the_start_tells_which_hosts_were_added_to_the_list_of_hosts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="shared.service"):
        for hosts in ("", "*", "pypi.org,api.anthropic.com", "pypi.org"):
            Service(Settings.from_environ(ENVIRON | {"SANDBOX_ALLOW_OUT": hosts}))
        token = "a-long-token-of-nobody-in-particular"
        forks = {"AGENT_FORK": "true", "FUNCTIONS_TOKEN": token, "FUNCTIONS_PUBLIC_URL": "https://f.example"}
        Service(Settings.from_environ(ENVIRON | forks | {"SANDBOX_ALLOW_OUT": "pypi.org"}))
    assert [record.getMessage() for record in caplog.records] == [
        f"egress.extended environment=env_1 setting=SANDBOX_ALLOW_OUT hosts={hosts}"
        for hosts in ("api.anthropic.com", "api.anthropic.com,f.example")
    ]


def test_a_race_is_over_before_the_deadline_of_its_caller_and_the_next_one_has_its_own() -> None:
    async def play() -> None:
        service = Service(Settings.from_environ(ENVIRON))
        service.host = FakeHost(program=never, latency=0.0)
        race = RaceRequest.model_validate({"source": {"image": "agent-cli"}, "n": 2, "command": ["true"]})
        until = Deadline.after(1.0)
        report = await service.race(race, until)
        assert report.deadline_passed and report.winner is None
        assert not report.leftovers
        began = time.monotonic()
        longer = await service.race(race, Deadline.after(3.0))
        assert longer.deadline_passed and time.monotonic() - began > 2.0
        await service.aclose()

    asyncio.run(play())


class Stuck(FakeHost):
    """Every create hangs."""

    async def create(self, spec: SandboxSpec) -> CreateOutcome:
        await asyncio.Event().wait()
        raise AssertionError


class OneItem(NothingQueued):
    """A queue with one item at its head."""

    def __init__(self) -> None:
        self._given = False

    async def poll(self) -> PollOutcome:
        if self._given:
            return Empty()
        self._given = True
        return WorkItem("work_1", "env_1", "session", "sesn_0123456789AbCdEf", datetime.now(UTC), "secret")


def with_a_stuck_item(**settings: str) -> Service:
    service = Service(Settings.from_environ(ENVIRON | settings))
    service.host = Stuck(latency=0.0)
    queue: WorkQueue = OneItem()
    service._queues = {"env_1": queue}
    return service


def test_a_caller_waits_no_longer_than_he_wants_and_the_item_goes_on() -> None:
    async def play() -> None:
        service = with_a_stuck_item()
        await service.preload()
        (report,) = await service.drain(patience=0.3)
        assert [item.end for item in report.items] == [ItemEnd.SERVING]
        (second,) = await asyncio.wait_for(service.poll(), 5.0)
        assert second.items == () and second.end is DrainEnd.EMPTY
        await service.aclose(grace=0.0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(play())


def test_a_ticks_repairs_wait_for_no_item() -> None:
    async def play() -> None:
        service = with_a_stuck_item()
        await service.preload()
        report = await asyncio.wait_for(service.tick(patience=0.0), 20.0)
        assert len(report.reconciled) == 1 and len(report.drains) == 1
        await service.aclose(grace=0.0)

    asyncio.run(play())


class Counted(FakeHost):
    """Each call is one that claims make as well: it takes its place in a budget that has two calls left."""

    def __init__(self) -> None:
        super().__init__(latency=0.0)
        self.budget = CallBudget(80, lambda: 0.0)  # no time passes: no call comes in addition
        self.created = asyncio.Event()
        self.listed = False

    async def create(self, spec: SandboxSpec) -> CreateOutcome:
        await self.budget.admit(Priority.CLAIM)
        self.created.set()
        return await super().create(spec)

    async def list_sandboxes(self) -> Listing[SandboxRecord] | Doubtful:
        await self.budget.admit(Priority.CLAIM)
        self.listed = True
        return await super().list_sandboxes()


def test_of_the_last_calls_that_a_minute_has_none_is_a_ticks_or_a_strangers() -> None:
    async def play() -> None:
        service = Service(Settings.from_environ(ENVIRON))
        service.host = host = Counted()
        service._queues = {"env_1": OneItem()}
        await service.preload()
        for number in range(6):
            service.end_session_later(f"sesn_0123456789Foreign{number}")
        for _ in range(18):
            await host.budget.admit(Priority.CLAIM)
        tick = asyncio.create_task(service.tick(patience=0.0))
        await asyncio.wait_for(host.created.wait(), 60.0)
        assert not host.listed
        tick.cancel()
        await asyncio.gather(tick, return_exceptions=True)
        await service.aclose(grace=0.0)

    asyncio.run(play())


def test_whoever_needs_the_sdks_waits_for_one_import_of_them() -> None:
    async def play() -> None:
        service = Service(Settings.from_environ(ENVIRON))
        await asyncio.gather(*(service.preload() for _ in range(5)))
        assert {"anthropic", "tensorlake.sandbox"} <= set(sys.modules)
        await service.aclose()

    asyncio.run(play())
