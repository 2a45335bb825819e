"""One Lambda process with services that do nothing, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from functions import lambda_http
from functions.aws_lambda import LambdaProcess
from functions.poll_tick import poll_tick
from shared.deadline import Deadline
from shared.reports import DrainEnd, DrainReport, ReconcileReport, TickReport
from shared.service import Service
from shared.settings import Settings
from tests.support.lambda_events import LambdaContext
from tests.support.signing import KEY

TOKEN = "an-operators-token-of-nobody-at-all"
ENVIRON = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "not-a-real-environment-key",
    "TENSORLAKE_API_KEY": "not-a-real-tensorlake-key",
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY,
    "FUNCTIONS_TOKEN": TOKEN,
}
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}


class Recorder(Service):
    """Does nothing and remembers what it was asked."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.until: Deadline | None = None
        self.done: list[str] = []
        self.end = DrainEnd.EMPTY
        self.work_seconds = 0.0
        self.closed = False

    async def drain(self, deadline: Deadline | None = None, *, patience: float | None = None) -> Sequence[DrainReport]:
        self.until = deadline
        self.done.append("drain")
        await asyncio.sleep(self.work_seconds)
        return [DrainReport("env_1", self.end, 0.0, 1)]

    async def tick(self, deadline: Deadline | None = None, *, patience: float | None = None) -> TickReport:
        self.until = deadline
        self.done.append("tick")
        return TickReport([], [], 0.0)

    async def end_session(
        self, session_id: str, deadline: Deadline | None = None, *, patience: float | None = None
    ) -> Sequence[ReconcileReport]:
        if session_id == "sesn_bug":
            raise RuntimeError("a bug")
        self.done.append(session_id)
        return []

    async def aclose(self, grace: float | None = None) -> None:
        self.closed = True
        await super().aclose(grace)


class LambdaBench:
    """One Lambda process with recorders for services."""

    def __init__(self, **extra: str) -> None:
        self.services: list[Recorder] = []
        self.process = LambdaProcess({**ENVIRON, **extra}, self._make)

    def _make(self, settings: Settings) -> Service:
        self.services.append(Recorder(settings))
        return self.services[-1]

    def __call__(self, event: Any, handler: lambda_http.Handler = poll_tick, seconds: float = 60.0) -> Any:
        return self.process.invoke(event, LambdaContext(seconds), handler)

    @property
    def done(self) -> list[str]:
        return [what for service in self.services for what in service.done]
