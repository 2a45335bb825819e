"""A service in its own process for the tests of a module, and a fresh environment in it for each test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import httpx2
import pytest

from infra.local.claude.knobs import Knobs
from infra.local.process import RunningService
from tests.support.preloaded import forked_service
from tests.support.waiting import until

API_KEY = "sk-ant-api03-fake-for-tests"
BETA = {"anthropic-beta": "managed-agents-2026-04-01"}


@dataclass
class ClaudeStage:
    """One environment with its key and an agent, and a client for each kind of credential."""

    service: RunningService
    admin: httpx2.Client
    raw: httpx2.Client
    api: anthropic.Anthropic
    worker: anthropic.Anthropic
    environment_id: str
    environment_key: str
    agent_id: str

    def session(self, text: str | None = None, **more: Any) -> str:
        initial = {} if text is None else {"initial_events": [message(text)]}
        arguments = {"agent": self.agent_id, "environment_id": self.environment_id, **initial, **more}
        return self.api.beta.sessions.create(**arguments).id

    def send(self, session_id: str, *events: Any, client: anthropic.Anthropic | None = None) -> Any:
        return (client or self.api).beta.sessions.events.send(session_id, events=list(events))

    def poll(self, **more: Any) -> Any:
        return self.worker.beta.environments.work.poll(self.environment_id, **more)

    def claim(self) -> Any:
        """Poll and acknowledge; the poll's item, which has the secret."""
        item = self.poll()
        assert item is not None, "nothing to claim"
        self.worker.beta.environments.work.ack(item.id, environment_id=self.environment_id)
        return item

    def beat(self, work_id: str, expected: str = "NO_HEARTBEAT", client: anthropic.Anthropic | None = None) -> Any:
        work = (client or self.worker).beta.environments.work
        return work.heartbeat(work_id, environment_id=self.environment_id, expected_last_heartbeat=expected)

    def stop(self, work_id: str, *, force: bool = False) -> Any:
        return self.worker.beta.environments.work.stop(work_id, environment_id=self.environment_id, force=force)

    def items(self) -> list[Any]:
        return list(self.worker.beta.environments.work.list(self.environment_id))

    def events(self, session_id: str) -> list[Any]:
        return list(self.api.beta.sessions.events.list(session_id, limit=1000))

    def types(self, session_id: str) -> list[str]:
        return [event.type for event in self.events(session_id)]

    def said(self, session_id: str) -> list[str]:
        """The texts of the agent's messages."""
        return [event.content[0].text for event in self.events(session_id) if event.type == "agent.message"]

    def status(self, session_id: str) -> str:
        return self.api.beta.sessions.retrieve(session_id).status

    def idle_events(self, session_id: str) -> list[Any]:
        return [event for event in self.events(session_id) if event.type == "session.status_idle"]

    def until_idle(self, session_id: str, reason: str = "end_turn") -> Any:
        """Wait for the log to end with an idle event of that stop reason."""

        def ended() -> Any:
            last = self.events(session_id)[-1]
            return last if last.type == "session.status_idle" and last.stop_reason.type == reason else None

        return until(ended, f"{session_id} idle with {reason}")

    def answer(self, call_id: str, text: str = "ok", **more: Any) -> dict[str, Any]:
        content = [{"type": "text", "text": text}]
        return {"type": "user.tool_result", "tool_use_id": call_id, "content": content, **more}

    def settings(self, **changes: Any) -> None:
        answer = self.admin.patch("/_admin/settings", json=changes)
        assert answer.status_code == 200, answer.text

    def fault(self, **rule: Any) -> None:
        answer = self.admin.post("/_admin/faults", json=rule)
        assert answer.status_code == 201, answer.text

    def another_environment(self) -> tuple[str, str]:
        environment = self.api.beta.environments.create(name="other", config={"type": "self_hosted"})
        minted = self.admin.post("/_admin/keys/environment", json={"environment_id": environment.id})
        return environment.id, minted.json()["value"]

    def client(self, credential: str) -> anthropic.Anthropic:
        return self.worker.copy(auth_token=credential)


def message(text: str) -> Any:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with forked_service("infra.local.claude", [], {"LOCAL_CLAUDE_API_KEY": API_KEY}) as running:
        yield running
        assert "Traceback" not in running.stderr_tail()


@pytest.fixture(scope="module")
def admin(service: RunningService) -> Iterator[httpx2.Client]:
    headers = {"X-Admin-Token": service.admin_token}
    with httpx2.Client(base_url=service.url, headers=headers, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def raw(service: RunningService) -> Iterator[httpx2.Client]:
    """A client without any credential."""
    with httpx2.Client(base_url=service.url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def clients(service: RunningService) -> Iterator[tuple[anthropic.Anthropic, anthropic.Anthropic]]:
    """A client with the API key, and one whose copies take any bearer credential."""
    with (
        anthropic.Anthropic(api_key=API_KEY, base_url=service.url, max_retries=0) as api,
        anthropic.Anthropic(auth_token="none", base_url=service.url, max_retries=0) as bearer,
    ):
        yield api, bearer


@pytest.fixture
def stage(
    service: RunningService,
    admin: httpx2.Client,
    raw: httpx2.Client,
    clients: tuple[anthropic.Anthropic, anthropic.Anthropic],
) -> ClaudeStage:
    admin.delete("/_admin/faults")
    admin.patch("/_admin/settings", json=Knobs().model_dump())
    api, bearer = clients
    environment = api.beta.environments.create(name="test", config={"type": "self_hosted"})
    key = admin.post("/_admin/keys/environment", json={"environment_id": environment.id}).json()["value"]
    agent = api.beta.agents.create(name="coder", model="claude-opus-5", tools=[{"type": "agent_toolset_20260401"}])
    worker = bearer.copy(auth_token=key)
    return ClaudeStage(service, admin, raw, api, worker, environment.id, key, agent.id)
