"""Both offline services, an environment of its own for each test, and what a test wants to know of them.

The limits R, T and so on are so long that a busy machine keeps them. No test waits for them to pass: `Place.age` lets
them pass for one item. A test that needs a limit to be reached in earnest takes shorter ones (`HURRIED`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anthropic

from image.session.definition import Recipe, build
from infra.local.admin_client import AdminClient
from infra.local.process import RunningService, start_service
from shared import names
from shared.claims.dispatcher import Dispatcher
from shared.environment_settings import Environment
from shared.ports import SandboxRecord
from shared.service import Service
from shared.settings import Settings
from tests.support.memory import in_memory
from tests.support.preloaded import forked_service, launcher
from tests.support.waiting import PATIENCE, until

ROOT: Final = Path(__file__).resolve().parents[2]
API_KEY: Final = "sk-ant-api-of-no-real-account"
IMAGE: Final = "agent-cli"
SCALED: Final = {
    "RECLAIM_SECONDS": "60",
    "BIND_SECONDS": "20",
    "HANDOVER_SECONDS": "30",
    "STRANDED_SECONDS": "70",
    "DRAIN_DEADLINE_SECONDS": "180",
    "RUNNER_MAX_IDLE_SECONDS": "1",
    "WORKER_LIFETIME_SECONDS": "120",
}

HURRIED: Final = {"RECLAIM_SECONDS": "10", "BIND_SECONDS": "2.5", "HANDOVER_SECONDS": "4", "STRANDED_SECONDS": "12"}
"""For drains that cannot succeed: how fast the machine is makes no difference to them."""
LEASE: Final = 9.0
"""Seconds that a lease lasts after a heartbeat."""


@dataclass
class OfflineWorld:
    """The two services of a test run."""

    claude: RunningService
    tensorlake: RunningService
    claude_admin: AdminClient
    tensorlake_admin: AdminClient
    api: anthropic.Anthropic
    agent_id: str

    def place(self, **extra: str) -> Place:
        """A fresh environment with its key; `extra` are further settings."""
        environment = self.api.beta.environments.create(name="test", config={"type": "self_hosted"})
        key = self.claude_admin.post("keys/environment", {"environment_id": environment.id})["value"]
        environ = SCALED | {
            "ANTHROPIC_BASE_URL": self.claude.url,
            "ANTHROPIC_ENVIRONMENT_ID": environment.id,
            "ANTHROPIC_ENVIRONMENT_KEY": key,
            "TENSORLAKE_API_URL": self.tensorlake.url,
            "TENSORLAKE_API_KEY": "tl-key-of-no-real-account",
            "SANDBOX_IMAGE_NAME": IMAGE,
            **extra,
        }
        return Place(self, environment.id, environ, Settings.from_environ(environ))


def pool_like(environment: Environment) -> dict[str, Any]:
    """The body that makes a pool of what this environment wants, two warm."""
    return {
        "image": environment.image,
        "resources": {"cpus": environment.cpus, "memory_mb": environment.memory_mb, "disk_mb": environment.disk_mb},
        "timeout_secs": environment.timeout_seconds,
        "warm_containers": 2,
        "network": {
            "allow_internet_access": environment.egress.internet,
            "allow_out": list(environment.egress.allow),
            "deny_out": list(environment.egress.deny),
        },
    }


@dataclass
class Place:
    """One environment: its settings, its sessions, its sandboxes."""

    world: OfflineWorld
    environment_id: str
    environ: Mapping[str, str] = field(repr=False)
    settings: Settings = field(repr=False)

    def adjusted(self, **extra: str) -> Place:
        """The same environment under other settings."""
        environ = {**self.environ, **extra}
        return Place(self.world, self.environment_id, environ, Settings.from_environ(environ))

    @property
    def environment(self) -> Environment:
        return self.settings.environments[self.environment_id]

    @contextlib.asynccontextmanager
    async def dispatcher(self) -> AsyncIterator[Dispatcher]:
        """A copy of the bundle's dispatcher, with clients of its own."""
        service = Service(self.settings)
        try:
            yield service.dispatcher(self.environment)
        finally:
            await service.aclose()

    def session(self, *prompts: str) -> str:
        """A session that begins to run at once, its id."""
        events: list[Any] = [{"type": "user.message", "content": [{"type": "text", "text": text}]} for text in prompts]
        created = self.world.api.beta.sessions.create(
            agent=self.world.agent_id, environment_id=self.environment_id, initial_events=events
        )
        return created.id

    def say(self, session_id: str, text: str) -> None:
        """A follow-up message."""
        self.world.api.beta.sessions.events.send(
            session_id, events=[{"type": "user.message", "content": [{"type": "text", "text": text}]}]
        )

    def sandbox(self, session_id: str) -> str:
        return names.sandbox_name(self.settings.prefix, self.environment_id, session_id)

    def answers(self, session_id: str) -> list[str]:
        """What the brain said, a text for each finished turn."""
        texts = []
        for event in self.world.api.beta.sessions.events.list(session_id, types=["agent.message"]):
            if event.type == "agent.message":
                texts.append("".join(block.text for block in event.content if block.type == "text"))
        return texts

    def done(self, session_id: str, turns: int = 1) -> bool:
        return len(self.answers(session_id)) >= turns

    def wait_done(self, session_id: str, turns: int = 1) -> None:
        until(lambda: self.done(session_id, turns), f"session {session_id} did not finish its turn")

    def item(self, session_id: str) -> Mapping[str, Any]:
        """The newest work item of a session, with its history, as the service's admin side sees it."""
        return self.items(session_id)[-1]

    def items(self, session_id: str) -> list[Mapping[str, Any]]:
        """Oldest first."""
        items: list[Mapping[str, Any]] = self.world.claude_admin.get(f"state?session={session_id}")["items"]
        return items

    def age(self, session_id: str) -> None:
        """R, T and the lease pass for the session's newest item: what waits for one of them goes on now. Only for an
        item whose worker and dispatcher are gone; for others the same time must pass too."""
        seconds = {"seconds": self.settings.times.stranded + 2 * PATIENCE}
        self.world.claude_admin.post(f"work/{self.item(session_id)['id']}/age", seconds)

    def sandboxes(self) -> list[Mapping[str, Any]]:
        """The sandboxes of this environment that were not ended."""
        prefix = f"{self.settings.prefix}-{names.environment_tag(self.environment_id)}-"
        boxes = self.sandbox_state()["sandboxes"]
        return [box for box in boxes if box["name"].startswith(prefix) and box["status"] != "terminated"]

    def sandbox_state(self) -> Mapping[str, Any]:
        """What the sandbox service says of itself, but of sandboxes only this environment's: ended and marked ones
        too."""
        state: Mapping[str, Any] = self.world.tensorlake_admin.get(
            f"state?named=-{names.environment_tag(self.environment_id)}-"
        )
        return state


def running(record: object) -> SandboxRecord:
    assert isinstance(record, SandboxRecord), record
    return record


@contextlib.contextmanager
def offline_world(*, forked: bool = False) -> Iterator[OfflineWorld]:
    """Start both services and register the session image as `make build` does. `forked`: they and the workers are
    forked (preloaded.py), which costs a fraction and measures nothing."""
    start = forked_service if forked else start_service
    secrets = {"LOCAL_CLAUDE_API_KEY": API_KEY}
    knobs = json.dumps({"launcher": launcher() if forked else None})
    with (
        start("infra.local.tensorlake", ["--port", "0", "--settings", knobs, *in_memory()]) as tensorlake,
        start("infra.local.claude", ["--port", "0", "--lease-ttl", f"{LEASE:g}"], secrets) as claude,
        anthropic.Anthropic(api_key=API_KEY, base_url=claude.url) as api,
    ):
        build(Recipe(IMAGE), api_key="tl-key-of-no-real-account", api_url=tensorlake.url)
        agent = api.beta.agents.create(name="tester", model="claude-opus-5", tools=[{"type": "agent_toolset_20260401"}])
        yield OfflineWorld(
            claude,
            tensorlake,
            AdminClient(claude.url, claude.admin_token),
            AdminClient(tensorlake.url, tensorlake.admin_token),
            api,
            agent.id,
        )
