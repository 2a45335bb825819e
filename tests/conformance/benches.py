"""The two kinds of service that a port is held against: the model in virtual time, and the offline platform through
the real adapter over real sockets. A test that takes a bench says the same of both."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol
from unittest import mock

import anthropic
import httpx2

from infra.cli.fleet.lists import lists
from infra.cli.fleet.queue_looks import QueueLooks
from infra.cli.fork.client import RecordingHost
from infra.local.admin_client import AdminClient
from infra.local.process import RunningService
from shared import metrics
from shared.adapters.anthropic_queue import AnthropicQueue
from shared.adapters.observed import observed
from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.ports import ProcessSpec, SandboxHost, WorkLooks, WorkQueue
from shared.secret import Secret
from shared.settings import Settings
from tests.support.fake_host import FakeHost
from tests.support.model.claude import ModelClaude
from tests.support.model.lines import ModelLine
from tests.support.model.loop import VirtualLoop
from tests.support.model.ports import ModelHost, ModelQueue
from tests.support.model.sandboxes import Manner, ModelProcess, ModelSandboxes
from tests.support.model.truth import Truth

API_KEY = "sk-ant-api-of-no-real-account"


# ---------------------------------------------------------------------------------------------------- the sandboxes

TALKS = "echo hello; sleep 60"
EXITS = "exit 7"
HEEDS = 'trap "exit 5" TERM; echo hello; while :; do sleep 0.05; done'


def program(name: str, script: str) -> ProcessSpec:
    """One of the scripts above."""
    return ProcessSpec(name, "/bin/sh", ["-c", script])


class HostBench(Protocol):
    def play(self, scenario: Callable[[SandboxHost], Awaitable[None]]) -> None: ...


@dataclass(frozen=True, slots=True)
class OfflineHosts:
    service: RunningService

    def play(self, scenario: Callable[[SandboxHost], Awaitable[None]]) -> None:
        async def run() -> None:
            async with connected(self.service) as host:
                await scenario(host)

        asyncio.run(run())


class ModelHosts:
    def play(self, scenario: Callable[[SandboxHost], Awaitable[None]]) -> None:
        _virtually(lambda loop, truth: scenario(self._host(loop, truth)))

    def _host(self, loop: VirtualLoop, truth: Truth) -> SandboxHost:
        return ModelHost(ModelSandboxes(loop, truth, Manner(), _script), _line(loop), bind=10.0)


@dataclass(frozen=True, slots=True)
class RecordingHosts:
    """The command line's own: the adapter, with a list of what it has made."""

    service: RunningService

    def play(self, scenario: Callable[[SandboxHost], Awaitable[None]]) -> None:
        environ = {
            "ANTHROPIC_ENVIRONMENT_ID": "env_1",
            "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
            "TENSORLAKE_API_KEY": "no-key",
            "TENSORLAKE_API_URL": self.service.url,
            "BIND_SECONDS": "10",
        }

        async def run() -> None:
            host = RecordingHost(Settings.from_environ(environ))
            try:
                await scenario(host)
            finally:
                await host.aclose()

        asyncio.run(run())


class ObservedHosts:
    """The fake, with its calls measured."""

    def play(self, scenario: Callable[[SandboxHost], Awaitable[None]]) -> None:
        async def run() -> None:
            with mock.patch.object(metrics, "is_on", lambda: True):
                await scenario(observed(FakeHost(latency=0.0), "tensorlake"))

        asyncio.run(run())


class FakeHosts:
    """The fake of the races' tests: sandboxes, names, files and snapshots, and no processes that live on."""

    def play(self, scenario: Callable[[SandboxHost], Awaitable[None]]) -> None:
        async def run() -> None:
            await scenario(FakeHost(latency=0.0))

        asyncio.run(run())


@contextlib.asynccontextmanager
async def connected(service: RunningService, bind_seconds: float = 10.0) -> AsyncIterator[TensorlakeSandboxes]:
    host = TensorlakeSandboxes(api_url=service.url, api_key=Secret("key", "no-key"), bind_seconds=bind_seconds)
    try:
        yield host
    finally:
        await host.aclose()


async def _script(process: ModelProcess) -> int:
    """What the scripts do, for the model."""
    match process.spec.args[-1]:
        case "exit 7":
            return 7
        case script if script == TALKS:
            process.lines.append("hello")
            await process.sleep(60.0)
            return 0
        case _:
            process.lines.append("hello")
            await process.stop_asked.wait()
            await process.awake()
            return 5


# --------------------------------------------------------------------------------------------------- the work queue


class QueueStage(Protocol):
    """An empty environment, and what its users and workers do."""

    def queue(self, reclaim: float) -> WorkQueue: ...

    def looks(self) -> contextlib.AbstractAsyncContextManager[WorkLooks]:
        """The way that commands read the queue."""
        ...

    async def open(self, *rounds: int) -> str:
        """A session whose first turn has these rounds, each of so many tool calls at once; its id."""
        ...

    async def say(self, session_id: str, calls: int = 0) -> None: ...

    async def answer(self, session_id: str, call: str) -> None: ...

    async def archive(self, session_id: str) -> None: ...

    async def delete(self, session_id: str) -> None: ...

    async def healthcheck(self) -> None: ...

    async def lapse(self, work_id: str) -> None:
        """Let the item's lease end."""
        ...

    async def beat(self, work_id: str, expected: str) -> tuple[int, str | None, str]:
        """Status, last heartbeat and the item's state, as the answer tells them."""
        ...


class QueueBench(Protocol):
    def play(self, scenario: Callable[[QueueStage], Awaitable[None]]) -> None: ...


class ModelQueues:
    def play(self, scenario: Callable[[QueueStage], Awaitable[None]]) -> None:
        _virtually(lambda loop, truth: scenario(_ModelStage(loop, ModelClaude(loop, truth, lease=300.0))))


@dataclass(slots=True)
class _ModelStage:
    loop: VirtualLoop
    claude: ModelClaude
    opened: int = 0

    def queue(self, reclaim: float) -> WorkQueue:
        return ModelQueue(self.claude, _line(self.loop), reclaim=reclaim, environment_id="env_model")

    def looks(self) -> contextlib.AbstractAsyncContextManager[WorkLooks]:
        return contextlib.nullcontext(self.queue(60.0))

    async def open(self, *rounds: int) -> str:
        self.opened += 1
        return self.claude.open(f"sesn_{self.opened}", rounds if any(rounds) else (), 0.01).id

    async def say(self, session_id: str, calls: int = 0) -> None:
        self.claude.say(self.claude.sessions[session_id], (calls,) if calls else ())

    async def answer(self, session_id: str, call: str) -> None:
        assert self.claude.result(session_id, call)

    async def archive(self, session_id: str) -> None:
        assert self.claude.archive(self.claude.sessions[session_id])

    async def delete(self, session_id: str) -> None:
        assert self.claude.delete(self.claude.sessions[session_id])

    async def healthcheck(self) -> None:
        self.claude.enqueue_healthcheck()

    async def lapse(self, work_id: str) -> None:
        assert self.claude.expire(self.claude.items[work_id].session_id)

    async def beat(self, work_id: str, expected: str) -> tuple[int, str | None, str]:
        return _beat_answer(*self.claude.heartbeat(work_id, expected, "p1"))


@dataclass(frozen=True, slots=True)
class OfflineQueues:
    service: RunningService

    def play(self, scenario: Callable[[QueueStage], Awaitable[None]]) -> None:
        admin = AdminClient(self.service.url, self.service.admin_token)
        admin.post("keys/api", {"value": API_KEY})
        api = anthropic.Anthropic(api_key=API_KEY, base_url=self.service.url)
        agent = api.beta.agents.create(
            name="conformance", model="claude-offline", tools=[{"type": "agent_toolset_20260401"}]
        )
        environment = api.beta.environments.create(name="conformance", config={"type": "self_hosted"})
        key = admin.post("keys/environment", {"environment_id": environment.id})["value"]

        async def run() -> None:
            stage = _OfflineStage(self.service, admin, api, agent.id, environment.id, key, [])
            try:
                await scenario(stage)
            finally:
                for queue in stage.queues:
                    await queue.aclose()

        asyncio.run(run())


@dataclass(slots=True)
class _OfflineStage:
    service: RunningService
    admin: AdminClient
    api: anthropic.Anthropic
    agent_id: str
    environment_id: str
    key: str
    queues: list[WorkQueue]

    def queue(self, reclaim: float) -> WorkQueue:
        queue = AnthropicQueue(
            base_url=self.service.url,
            environment_id=self.environment_id,
            key=Secret("key", self.key),
            reclaim_seconds=reclaim,
        )
        self.queues.append(queue)
        return queue

    @contextlib.asynccontextmanager
    async def looks(self) -> AsyncIterator[WorkLooks]:
        async with lists(self.service.url, self.key) as plain:
            yield QueueLooks(plain, self.environment_id)

    async def open(self, *rounds: int) -> str:
        created = self.api.beta.sessions.create(
            agent=self.agent_id, environment_id=self.environment_id, initial_events=[_message(*rounds)]
        )
        return created.id

    async def say(self, session_id: str, calls: int = 0) -> None:
        self.api.beta.sessions.events.send(session_id, events=[_message(calls)])

    async def answer(self, session_id: str, call: str) -> None:
        result: Any = {"type": "user.tool_result", "tool_use_id": call, "content": [], "is_error": False}
        self.api.beta.sessions.events.send(session_id, events=[result])

    async def archive(self, session_id: str) -> None:
        self.api.beta.sessions.archive(session_id)

    async def delete(self, session_id: str) -> None:
        self.api.beta.sessions.delete(session_id)

    async def healthcheck(self) -> None:
        self.admin.post("healthchecks", {"environment_id": self.environment_id})

    async def lapse(self, work_id: str) -> None:
        self.admin.post(f"work/{work_id}/lapse")

    async def beat(self, work_id: str, expected: str) -> tuple[int, str | None, str]:
        answer = httpx2.post(
            f"{self.service.url}/v1/environments/{self.environment_id}/work/{work_id}/heartbeat",
            params={"expected_last_heartbeat": expected},
            headers={"authorization": f"Bearer {self.key}", "anthropic-beta": "managed-agents-2026-04-01"},
            trust_env=False,
        )
        return _beat_answer(answer.status_code, answer.json())


def _beat_answer(status: int, body: Any) -> tuple[int, str | None, str]:
    told = body["error"]["details"]["current_state"] if status == 412 else body
    return status, told["last_heartbeat"] or None, told["state"]


def _message(*rounds: int) -> Any:
    """To the scripted brain: rounds of so many calls each, none at all for 0."""
    call = "  - {tool: bash, input: {command: 'true'}}\n"
    text = "script:\n" + "".join(f"- calls:\n{call * calls}" for calls in rounds) if any(rounds) else "nothing to run"
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


def _line(loop: VirtualLoop) -> ModelLine:
    return ModelLine("test", loop, {}, random.Random("test"), 1.0, lambda who, what: None)


def _virtually(play: Callable[[VirtualLoop, Truth], Awaitable[None]]) -> None:
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)

    async def run() -> None:
        await play(loop, Truth())

    try:
        loop.run(run(), most_steps=100_000)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
