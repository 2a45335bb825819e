"""The offline sandbox service in its own process, once for each isolation level that works here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from tensorlake.sandbox import Sandbox

from infra.local.admin_client import AdminClient
from infra.local.process import RunningService, ServiceStartError
from tests.support.memory import in_memory
from tests.support.preloaded import forked_service

KEY = "tl-key-of-no-real-account"
_names = itertools.count(1)


@dataclass
class TensorlakeStage:
    """One running service, the real SDK pointed at it, and a bare client for what the SDK does not show."""

    service: RunningService
    admin: AdminClient
    raw: httpx2.Client
    made: list[Sandbox] = field(default_factory=list)

    @property
    def level(self) -> str:
        level: str = self.service.ready["isolation"]["level"]
        return level

    @property
    def sdk(self) -> dict[str, Any]:
        """Passed to each classmethod: the SDK binds its environment at import
        (docs/wire/tensorlake.md#25-environment-variables)."""
        return {"api_url": self.service.url, "api_key": KEY, "request_timeout": 20.0}

    def name(self, prefix: str = "t") -> str:
        return f"{prefix}-{next(_names)}"

    def create(self, **options: Any) -> Sandbox:
        sandbox = Sandbox.create(**{**self.sdk, **options})
        self.made.append(sandbox)
        return sandbox

    def named(self, **options: Any) -> Sandbox:
        return self.create(name=self.name(), **options)

    def post(self, path: str, body: object | None = None) -> httpx2.Response:
        return self.raw.post(path, json=body)

    def inside(self, sandbox: Sandbox, method: str, path: str, **more: Any) -> httpx2.Response:
        """A data-plane request as the SDK makes it, by Host label."""
        headers = {"host": f"{sandbox.sandbox_id}.local", **more.pop("headers", {})}
        return self.raw.request(method, path, headers=headers, **more)

    def settings(self, **knobs: Any) -> None:
        self.admin.patch("settings", knobs)


def out(sandbox: Sandbox, script: str, **more: Any) -> str:
    """What a shell script prints; it must succeed."""
    result = sandbox.run("sh", ["-c", script], **more)
    assert result.exit_code == 0, (result.stdout, result.stderr)
    printed: str = result.stdout
    return printed


Services = Callable[[str], RunningService]


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """Starts the service of a level when a test first asks for it."""
    running: dict[str, RunningService] = {}
    with ExitStack() as stack:

        def service(level: str) -> RunningService:
            if level not in running:
                started = forked_service("infra.local.tensorlake", ["--isolation", level, *in_memory()])
                running[level] = stack.enter_context(started)
            return running[level]

        yield service


def service_of(services: Services, level: str) -> RunningService:
    """Skips the test where this level does not work here."""
    try:
        return services(level)
    except ServiceStartError as error:
        if f"isolation level '{level}' does not work here" not in str(error):
            raise
        pytest.skip(str(error))


def _stage(service: RunningService) -> Iterator[TensorlakeStage]:
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=service.url, headers=headers, timeout=20.0, trust_env=False) as raw:
        stage = TensorlakeStage(service, AdminClient(service.url, service.admin_token), raw)
        yield stage
        stage.admin.post("reset")


@pytest.fixture
def stage(services: Services) -> Iterator[TensorlakeStage]:
    """The best level that works here."""
    yield from _stage(services("auto"))


@pytest.fixture(params=["overlay", "copy", "plain"])
def each_level(request: pytest.FixtureRequest, services: Services) -> Iterator[TensorlakeStage]:
    yield from _stage(service_of(services, request.param))
