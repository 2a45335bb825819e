"""`alarms`: what a tick raises now, and what it would do. A tick keeps no record, so the world is looked at again, with
nothing changed by it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from infra.cli.environ import Loaded
from shared.reports import ReconcileReport
from shared.service import Service
from shared.settings import Settings
from shared.texts import printable


async def run(loaded: Loaded, *, as_json: bool) -> int:
    """0 where nothing is wrong, 1 where something is. Raises SettingsError."""
    reports = await read(loaded)
    if as_json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        lines = in_lines(reports)
        print("\n".join(lines) if lines else "Nothing is wrong, and a tick would have nothing to repair.")
    return 1 if any(report.alarms or report.needs_interrupt for report in reports) else 0


async def read(loaded: Loaded) -> Sequence[ReconcileReport]:
    """A report for each environment, of a pass that changes nothing. Raises SettingsError."""
    settings = replace(Settings.from_environ(loaded.environ), dry_run=True)
    service = Service(settings)
    try:
        return await asyncio.gather(*(service.reconciler(each).reconcile() for each in settings.environments.values()))
    finally:
        await service.aclose()


def in_lines(reports: Sequence[ReconcileReport]) -> list[str]:
    found = []
    for report in reports:
        found += [f"ALARM   {report.environment_id}: {printable(alarm)}" for alarm in report.alarms]
        found += [f"STUCK   {session}: it waits for a lost result: make repair" for session in report.needs_interrupt]
        found += [
            f"repair  {action.act.value} {printable(action.target)}: {printable(action.why)}; the next tick does it: "
            "make tick"
            for action in report.actions
        ]
        if report.undone:
            found.append(f"repair  {report.undone} more of {report.environment_id} have to wait for a later tick")
    return found
