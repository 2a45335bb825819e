"""A session's sandbox on the offline platform, and races on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from shared import names
from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.egress import EgressPolicy
from shared.ports import CommandOutput, Created, SandboxHost, SandboxSpec
from shared.races.events import OnEvent
from shared.races.race import run_race
from shared.races.report import BranchReport, RaceReport
from shared.races.request import RaceRequest
from tests.support.world import IMAGE, Place

SESSION: Final = "sesn_0123456789AbCdEf"
BIND_SECONDS: Final = 20.0
WORKSPACE: Final = "/workspace"


class RaceStage:
    """A session's sandbox, and races on it."""

    def __init__(self, place: Place, host: SandboxHost, source: str) -> None:
        self.place, self.host, self.source = place, host, source

    async def race(self, on_event: OnEvent | None = None, **fields: Any) -> RaceReport:
        asked = RaceRequest.model_validate_json(json.dumps({"source": {"session_id": SESSION}, **fields}))
        return await run_race(
            asked,
            host=self.host,
            settings=self.place.settings,
            environment=self.place.environment,
            on_event=on_event,
        )

    async def sh(self, script: str) -> str:
        """What a script prints in the session's own sandbox."""
        settings = self.place.settings
        output = await self.host.run(
            self.source, "sh", ["-c", script], env={}, user=settings.sandbox_user, working_dir=WORKSPACE, timeout=10
        )
        assert isinstance(output, CommandOutput), output
        assert output.exit_code == 0, output
        return output.stdout

    def check_nothing_is_left(self) -> None:
        """Of this environment only the session's sandbox, and no snapshot of it or of a race's sandbox."""
        assert [box["id"] for box in self.place.sandboxes()] == [self.source]
        state = self.place.sandbox_state()
        ours = {box["id"] for box in state["sandboxes"]}
        assert not [row for row in state["snapshots"] if row["sandbox_id"] in ours and row["status"] != "deleted"]


@asynccontextmanager
async def staged(place: Place, egress: EgressPolicy | None = None) -> AsyncIterator[RaceStage]:
    settings = place.settings
    host = TensorlakeSandboxes(
        api_url=settings.tensorlake_url, api_key=settings.tensorlake_key, bind_seconds=BIND_SECONDS
    )
    try:
        name = names.sandbox_name(settings.prefix, place.environment_id, SESSION)
        made = await host.create(SandboxSpec(name=name, image=IMAGE, egress=egress or place.environment.egress))
        assert isinstance(made, Created), made
        yield RaceStage(place, host, made.sandbox.id)
    finally:
        await host.aclose()


def on_a_session(place: Place, test: Callable[[RaceStage], Awaitable[None]]) -> None:
    async def main() -> None:
        async with staged(place) as stage:
            await test(stage)
            stage.check_nothing_is_left()

    asyncio.run(main())


def by_name(report: RaceReport) -> dict[str, BranchReport]:
    return {branch.name: branch for branch in report.branches}
