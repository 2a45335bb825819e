"""`alarms`: what a tick raises now, and what it would do. A tick keeps no record, so the world is looked at again, with
nothing changed by it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from typing import Final

from infra.cli.environ import Loaded
from infra.cli.fleet.lists import lists
from infra.cli.fleet.queue_looks import queue_looks
from infra.cli.session.follow import FeedBroken, FeedRefused
from shared.environment_settings import Environment
from shared.errors import SecretUnavailable
from shared.reports import Act, ReconcileReport
from shared.service import Service
from shared.settings import Settings
from shared.texts import printable

_SECONDS: Final = 5.0  # that `show` waits for its session's lines
_QUIET: Final = logging.NullHandler()  # what a pass logs is in its report, too


async def run(loaded: Loaded, *, as_json: bool) -> int:
    """0 where nothing is wrong, 1 where something is. Raises SettingsError."""
    reports = await read(loaded)
    if as_json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        lines = [*in_lines(reports), *await _unserved(Settings.from_environ(loaded.environ))]
        print("\n".join(lines) if lines else "Nothing is wrong, and a tick would have nothing to repair.")
    return 1 if any(report.alarms or report.needs_interrupt for report in reports) else 0


async def read(loaded: Loaded) -> Sequence[ReconcileReport]:
    """A report for each environment, of a pass that changes nothing. Raises SettingsError."""
    logging.getLogger("shared").addHandler(_QUIET)
    settings = Settings.from_environ(loaded.environ)
    service = Service(settings)
    try:
        return await asyncio.gather(*(_dry_pass(service, each) for each in settings.environments.values()))
    finally:
        await service.aclose()


async def _unserved(settings: Settings) -> list[str]:
    """A note for each environment whose work waits while nobody polls. It is no alarm yet: a webhook's functions poll
    when they are called. What cannot be read has its alarm in the report."""

    async def one(environment: Environment) -> list[str]:
        try:
            async with lists(settings.anthropic_url, await environment.key.areveal()) as queue:
                stats = await queue.stats(environment.id)
        except (FeedBroken, FeedRefused, SecretUnavailable):
            return []
        waiting = stats.depth + stats.pending
        if not waiting or stats.workers_polling:
            return []
        return [
            f"note    {environment.id}: {waiting} wait and nobody polls: start make serve or make poll where none runs"
        ]

    notes = await asyncio.gather(*(one(each) for each in settings.environments.values()))
    return [note for each in notes for note in each]


async def _dry_pass(service: Service, environment: Environment) -> ReconcileReport:
    async with queue_looks(service.settings, environment) as looks:
        settings = service.settings._replace(dry_run=True)
        return await replace(service.reconciler(environment), settings=settings, looks=looks).reconcile()


async def of_session(service: Service, environment_id: str, marks: Collection[str]) -> list[str] | None:
    """The lines about one session, of a pass over its environment that changes nothing. `marks`: the ids and names by
    which a report means it. None where the pass could not see everything in time: then there may be some."""
    logging.getLogger("shared").addHandler(_QUIET)
    try:
        async with asyncio.timeout(_SECONDS):
            report = await _dry_pass(service, service.settings.environments[environment_id])
    except TimeoutError:
        return None
    lines = in_lines([about(report, marks)])
    return lines if lines or (report.sandboxes is not None and report.items is not None) else None


def about(report: ReconcileReport, marks: Collection[str]) -> ReconcileReport:
    """What of a report concerns these ids and names, without the touches, which are every working session's."""
    meant = re.compile("|".join(rf"(?<![\w-]){re.escape(mark)}(?![\w-])" for mark in marks))
    return replace(
        report,
        actions=[action for action in report.actions if action.act is not Act.TOUCH and meant.search(action.target)],
        needs_interrupt=[session for session in report.needs_interrupt if meant.search(session)],
        alarms=[alarm for alarm in report.alarms if meant.search(alarm)],
        undone=0,
    )


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
