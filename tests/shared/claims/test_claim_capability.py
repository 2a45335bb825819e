"""What the dispatcher puts into a claim for an agent that may fork, and what it leaves out for one that may not."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from image.session.claim import CLAIM_VARIABLE, Claim
from shared.capability import FORK, Capability, read, signing_key
from shared.claims.dispatcher import Dispatcher
from shared.deadline import Deadline
from shared.ports import ProcessSpec, Refused, WorkItem
from shared.settings import Settings
from tests.fuzz.stage import NothingQueued
from tests.support.fake_host import FakeHost

TOKEN: Final = "an-operators-token-of-nobody-at-all"
NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
ENVIRON: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
    "FUNCTIONS_TOKEN": TOKEN,
    "FUNCTIONS_PUBLIC_URL": "https://functions.example",
    "AGENT_FORK": "true",
    "WORKER_LIFETIME_SECONDS": "1000",
}


class Started(FakeHost):
    """Keeps the claims of the workers that it is told to start, and starts none."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: list[Claim] = []

    async def start(self, sandbox_id: str, process: ProcessSpec) -> Refused:
        self.claims.append(Claim.from_json(process.env[CLAIM_VARIABLE]))
        return Refused(400, "no")


def claim(**changes: str) -> Claim:
    settings = Settings.from_environ({**ENVIRON, **changes})
    host = Started()
    item = WorkItem("work_1", "env_1", "session", "sesn_0a1B2c3D", NOW, "a-secret-of-nobody")
    queue: Any = NothingQueued()
    dispatcher = Dispatcher(settings, settings.environments["env_1"], queue, host, now=lambda: NOW)
    asyncio.run(dispatcher.serve(item, time.monotonic(), Deadline.after(30.0)))
    return host.claims[0]


def test_a_claim_carries_the_capability_of_its_own_session_and_item() -> None:
    made = claim(RACE_AGENT_MAX_BRANCHES="5", RACE_AGENT_SECONDS="30")
    assert made.fork_url == "https://functions.example/fork_best_of_n"
    assert made.capability_token is not None
    now = NOW.timestamp()
    expires = int(now + 240 + 1000)
    assert read(made.capability_token.encode(), [signing_key(TOKEN)], now) == Capability(
        FORK, "env_1", "sesn_0a1B2c3D", "work_1", 5, 30.0, expires
    )
    assert made.capability_token not in repr(made) and TOKEN not in made.to_json()


def test_the_limits_of_all_races_hold_for_agents_too() -> None:
    made = claim(RACE_MAX_BRANCHES="2", RACE_DEADLINE_SECONDS="10")
    found = read((made.capability_token or "").encode(), [signing_key(TOKEN)], NOW.timestamp())
    assert (found.branches, found.seconds) == (2, 10.0)


def test_without_agent_fork_a_claim_has_neither_token_nor_address() -> None:
    made = claim(AGENT_FORK="false")
    assert (made.capability_token, made.fork_url) == (None, None)


def test_a_token_that_cannot_be_derived_now_costs_the_extra_and_not_the_hand_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = claim(FUNCTIONS_TOKEN=f"file:{tmp_path}/gone")
    assert (made.capability_token, made.fork_url) == (None, None)
    assert "capability.not_issued work=work_1" in caplog.text


def test_a_worker_of_before_reads_a_claim_of_now_and_the_other_way_round() -> None:
    now = json.loads(claim().to_json())
    before = {name: value for name, value in now.items() if name != "fork_url"}
    assert Claim.from_json(json.dumps(before)).fork_url is None
    assert Claim.from_json(json.dumps({**now, "of_tomorrow": 1})).work_id == "work_1"
