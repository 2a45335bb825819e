"""One offline platform, and the commands of `make webhook-sandbox` against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import pytest

from image.server import definition
from image.server.code import source_files
from infra.cli import webhook_sandbox
from infra.cli.environ import Loaded
from infra.local.platform import Options, Platform
from infra.sandbox import plan, server
from infra.sandbox.account import Account
from infra.sandbox.look import ServerLook, look
from infra.sandbox.plan import PROCESS, plan_from
from tests.support.preloaded import forked_service, launcher
from tests.support.waiting import until

LOOKS = {"initial_delay_ms": 100, "interval_ms": 200, "timeout_ms": 2_000, "failure_threshold": 300}
"""The supervisor's health check: an early look at a start, and patience with a slow machine."""
TIMES = {"RUNNER_MAX_IDLE_SECONDS": "1", "WORKER_LIFETIME_SECONDS": "120"}


@dataclass
class SandboxStage:
    platform: Platform

    def loaded(self, **extra: str) -> Loaded:
        return Loaded({**self.platform.environ, **TIMES, **extra}, Path("offline.env"))

    def up(self, **extra: str) -> ServerLook:
        """`make webhook-sandbox`, then a look. A server that an earlier test left there is attached to."""
        loaded = self.loaded(**extra)
        assert webhook_sandbox.up(loaded) == 0
        return self.look(loaded)

    def look(self, loaded: Loaded | None = None) -> ServerLook:
        loaded = loaded or self.loaded()
        seen = look(Account.from_environ(loaded.environ), plan_from(loaded.environ))
        assert seen is not None
        return seen

    def box(self) -> Mapping[str, Any]:
        """The server's sandbox as the platform sees it: a look that is no traffic."""
        boxes = self.platform.tensorlake.get("state")["sandboxes"]
        (box,) = [each for each in boxes if "-server-" in (each["name"] or "") and each["status"] != "terminated"]
        return dict(box)

    def process(self) -> Mapping[str, Any]:
        """The server's process in it."""
        (process,) = [
            each
            for each in self.box()["processes"]
            if (each["managed"] or {}).get("name", "").startswith(PROCESS) and each["status"] == "running"
        ]
        return dict(process)

    def put_to_sleep(self) -> None:
        """As its idle time-out does."""
        self.platform.tensorlake.post(f"sandboxes/{self.box()['id']}/expire", {})
        until(lambda: self.box()["status"] == "suspended", "the server's sandbox does not fall asleep")

    def delivered(self) -> bool:
        """Whether every webhook so far was answered 200."""
        return {each["outcome"] for each in self.platform.claude.get("state")["deliveries"]} == {"delivered"}

    def run_session(self, prompt: str) -> str:
        """Start one; its id."""
        environ = self.platform.environ
        with anthropic.Anthropic(api_key=environ["ANTHROPIC_API_KEY"], base_url=environ["ANTHROPIC_BASE_URL"]) as api:
            made = api.beta.sessions.create(
                agent=environ["ANTHROPIC_AGENT_ID"],
                environment_id=environ["ANTHROPIC_ENVIRONMENT_ID"],
                initial_events=[{"type": "user.message", "content": [{"type": "text", "text": prompt}]}],
            )
        return made.id

    def answers(self, session_id: str) -> int:
        environ = self.platform.environ
        with anthropic.Anthropic(api_key=environ["ANTHROPIC_API_KEY"], base_url=environ["ANTHROPIC_BASE_URL"]) as api:
            return sum(1 for _ in api.beta.sessions.events.list(session_id, types=["agent.message"]))


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    files = source_files()  # once: all of it is one checkout, whatever is edited meanwhile
    options = Options(claude={"webhook_backoff_scale": 0.02}, tensorlake={"launcher": launcher()})
    with pytest.MonkeyPatch.context() as patch, Platform(options, forked_service) as platform:
        patch.setattr(plan, "source_files", lambda: files)
        patch.setattr(definition, "source_files", lambda: files)
        patch.setattr(server, "_CHECK", LOOKS)
        stage = SandboxStage(platform)
        assert webhook_sandbox.build(stage.loaded()) == 0
        yield platform
        assert webhook_sandbox.remove(stage.loaded()) == 0


@pytest.fixture
def stage(platform: Platform) -> Iterator[SandboxStage]:
    stage = SandboxStage(platform)
    yield stage
    platform.tensorlake.patch("settings", {"suspend_seconds": 0.0, "resume_seconds": 0.0})
