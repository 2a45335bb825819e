"""The project's sandboxes: how many there are, and what a tick should have ended and has not."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Final

from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.findings import Say, info, ok, warning
from shared import names
from shared.environment_settings import Environment
from shared.ports import Doubtful, SandboxRecord, SandboxStatus
from shared.prepared.recipe import prepared_names
from shared.reconcile.lookups import Lookups
from shared.reconcile.plan import due, snapshots_due, unclaimed
from shared.reconcile.prepared import prepared_due
from shared.reconcile.repairs import DeleteSnapshot, EndUndated
from shared.reconcile.world import World
from shared.reports import ENDS

_PATIENCE: Final = timedelta(minutes=5)  # a tick comes once a minute; what was due so long ago was forgotten
_SHOWN: Final = 4
_AWAKE: Final = (SandboxStatus.PENDING, SandboxStatus.RUNNING, SandboxStatus.SNAPSHOTTING, SandboxStatus.SUSPENDING)


async def check_remains(context: DoctorContext, say: Say) -> None:
    listing = await context.service.host.list_sandboxes()
    if isinstance(listing, Doubtful):
        return  # HANDS203 says so
    rows = [sandbox for sandbox in listing.rows if sandbox.status is not SandboxStatus.TERMINATED]
    counts = Counter("awake" if sandbox.status in _AWAKE else sandbox.status.value for sandbox in rows)
    told = ", ".join(f"{number} {status}" for status, number in sorted(counts.items())) or "none"
    say(
        info(
            "HANDS602",
            f"in the whole project: {told} (doctor's probe counts; plans allow 2, 100 or 1,000 awake at once)",
        )
    )
    snapshots = await context.service.host.list_snapshots()
    late = datetime.fromtimestamp(context.now(), UTC) - _PATIENCE
    left: list[str] = []
    unsure: list[str] = []
    for environment in context.settings.environments.values():
        view = World.of(late, context.settings.prefix, environment.id, listing.rows)
        repairs = due(view, Lookups(), context.settings)
        known = [repair for repair in repairs if repair.act in ENDS and not isinstance(repair, EndUndated)]
        left += [f"{repair.target} ({repair.why})" for repair in known]
        if not isinstance(snapshots, Doubtful):
            left += [
                f"{'snapshot ' if isinstance(repair, DeleteSnapshot) else ''}{repair.target} ({repair.why})"
                for repair in (
                    *snapshots_due(snapshots.rows, view, context.settings),
                    *prepared_due(snapshots.rows, view, context.settings, environment),
                )
            ]
            unsure += [each.id for each in unclaimed(snapshots.rows, view)]
    for environment in context.settings.environments.values():
        _say_prepared(environment, rows, context, say)
    if unsure:
        say(info("HANDS607", f"{len(unsure)} of a session's own sandbox, by a person or a race: {_some(unsure)}"))
    if renamed := _other_prefixes(rows, context):
        seen = f"{len(renamed)} have another prefix than SANDBOX_PREFIX={context.settings.prefix}: {_some(renamed)}"
        say(warning("HANDS608", seen))
    others = _other_servers(rows, context, late)
    if others:
        seen = f"{', '.join(others)}: left by a make webhook-sandbox that was cut off, serves nobody"
        say(warning("HANDS606", seen, "`make webhook-sandbox` ends it"))
    if left:
        say(warning("HANDS606", f"{len(left)} left over: {_some(left)}"))
        say(warning("HANDS304", "what is left over should have been ended by a tick minutes ago"))
    elif isinstance(snapshots, Doubtful):
        say(info("HANDS606", f"no sandbox is left over; snapshots could not be listed: {snapshots.reason}"))
    elif not others:
        say(ok("HANDS606", "nothing is left over"))


def _say_prepared(environment: Environment, rows: list[SandboxRecord], context: DoctorContext, say: Say) -> None:
    """Nothing where nobody has ever prepared this environment, and no tick is to."""
    prefix = context.settings.prefix
    kinds = {str(each.name): names.parse(prefix, each.name) for each in rows}
    there = [
        name
        for name, kind in kinds.items()
        if isinstance(kind, names.PreparedSandbox) and names.belongs_to(kind, environment.id)
    ]
    wanted = prepared_names(context.settings, environment, context.now())
    if not there and wanted and environment.prepared_by_ticks:
        say(warning("HANDS609", f"no tick has prepared {environment.id} yet (SETUP_PREPARED_BY_TICKS)"))
    if not there:
        return
    if wanted and wanted[0] in there:
        say(ok("HANDS609", f"sessions of {environment.id} start from {wanted[0]}"))
    elif wanted and wanted[1:] and wanted[-1] in there:
        say(info("HANDS609", f"sessions of {environment.id} start from {wanted[-1]}, which is older than it should be"))
    else:
        say(warning("HANDS609", f"sessions of {environment.id} start from none of {_some(there)}"))


def _other_servers(rows: list[SandboxRecord], context: DoctorContext, late: datetime) -> list[str]:
    """All but the first of a server's name; a young one may be somebody's who starts at this moment."""
    prefix = context.settings.prefix
    servers = [each for each in rows if isinstance(names.parse(prefix, each.name), names.ServerSandbox)]
    first = datetime.min.replace(tzinfo=UTC)
    servers.sort(key=lambda each: (each.created_at or first, each.name or ""))
    return [str(each.name) for each in servers[1:] if each.created_at is None or each.created_at < late]


def _other_prefixes(rows: list[SandboxRecord], context: DoctorContext) -> list[str]:
    """Sandboxes of our environments that no tick of this deployment finds: their prefix is another one."""
    environments = list(context.settings.environments.values())
    return [
        str(each.name)
        for each in rows
        if isinstance(names.parse(context.settings.prefix, each.name), names.ForeignName)
        if any(names.given_under(each.name, environment.id) for environment in environments)
    ]


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{', '.join(texts[:_SHOWN])}{more}"
