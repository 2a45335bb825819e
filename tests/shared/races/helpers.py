"""A race in memory, at the speed of virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from shared import names
from shared.races.events import OnEvent
from shared.races.race import run_race
from shared.races.report import BranchReport, RaceReport
from shared.races.request import RaceRequest
from shared.settings import Settings
from tests.support.fake_host import FakeHost
from tests.support.virtual_time import run_virtual

SESSION: Final = "sesn_0a1B2c3D"
ENVIRON: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
    "RACE_DEADLINE_SECONDS": "600",
}
SETTINGS: Final = Settings.from_environ(ENVIRON)
ENVIRONMENT: Final = SETTINGS.environments["env_1"]
SOURCE: Final = names.sandbox_name(SETTINGS.prefix, "env_1", SESSION)


def asked(**fields: Any) -> RaceRequest:
    """A request as it comes over the wire; the source is the session unless the test says otherwise."""
    return RaceRequest.model_validate_json(json.dumps({"source": {"session_id": SESSION}, **fields}))


async def race(
    host: FakeHost,
    request: RaceRequest,
    clock: Callable[[], float],
    settings: Settings = SETTINGS,
    on_event: OnEvent | None = None,
) -> RaceReport:
    return await run_race(
        request,
        host=host,
        settings=settings,
        environment=ENVIRONMENT,
        on_event=on_event,
        clock=clock,
        now=lambda: 1_800_000_000.0,
    )


def run(
    host: FakeHost,
    request: RaceRequest,
    *,
    cancel_after: float | None = None,
    settings: Settings = SETTINGS,
    on_event: OnEvent | None = None,
) -> RaceReport:
    """The report; CancelledError where the race was cancelled after so many seconds."""

    async def main(clock: Callable[[], float]) -> RaceReport | None:
        task = asyncio.create_task(race(host, request, clock, settings, on_event))
        if cancel_after is not None:
            await asyncio.sleep(cancel_after)
            task.cancel()
        await asyncio.wait({task})
        return None if task.cancelled() else task.result()

    report = run_virtual(main)
    if report is None:
        raise asyncio.CancelledError
    return report


def by_name(report: RaceReport) -> dict[str, BranchReport]:
    return {branch.name: branch for branch in report.branches}
