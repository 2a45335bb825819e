"""The composition root: deadlines are arguments, and nothing of one call stays for the next."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from shared.deadline import Deadline
from shared.ports import CommandOutput
from shared.races.request import RaceRequest
from shared.service import Service
from shared.settings import Settings
from tests.support.fake_host import Call, FakeHost

ENVIRON: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "not-a-real-environment-key",
    "TENSORLAKE_API_KEY": "not-a-real-tensorlake-key",
}


async def never(_: Call) -> CommandOutput:
    await asyncio.Event().wait()
    raise AssertionError


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
