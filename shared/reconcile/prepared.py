"""Prepared starts that are due to go: what a killed `make prepare` left, what another recipe made, what is too old."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from shared import names
from shared.ports import BROKEN, SandboxStatus, SnapshotRecord
from shared.prepared.recipe import making_seconds, prepared_names
from shared.prepared.starts import ASLEEP, newest_ready
from shared.reconcile.repairs import DeleteSnapshot, EndPrepared
from shared.reconcile.world import World
from shared.settings import Environment, Settings

_OTHER_RECIPE: Final = 3600.0  # seconds; while a deployment rolls out, two recipes are right


def prepared_due(
    snapshots: Sequence[SnapshotRecord], world: World, settings: Settings, environment: Environment
) -> Iterator[EndPrepared | DeleteSnapshot]:
    """`snapshots`: all of the project. What a person took of another sandbox is never among what is ended: a prepared
    sandbox's name proves whose it is, and its snapshots are those that were taken of it."""
    now = world.now.timestamp()
    wanted = prepared_names(settings, environment, now)
    for sandbox in world.sandboxes:
        if not isinstance(sandbox.kind, names.PreparedSandbox) or sandbox.record.created_at is None:
            continue
        own = [each for each in snapshots if each.sandbox_id == sandbox.id]
        age = now - sandbox.record.created_at.timestamp()
        why = ""
        if age <= making_seconds(settings, environment):
            continue  # it may be in the making
        if sandbox.status in BROKEN:
            why = f"it is {sandbox.status.value}"
        elif newest_ready(own) is None:
            why = "left by a make prepare that was cut off"
        elif sandbox.name not in wanted and age > _OTHER_RECIPE:
            why = "sessions are started from another one, or from none"
        if why:
            yield EndPrepared(sandbox, why, tuple(each.id for each in own if not each.id.startswith(ASLEEP)))
    for snapshot in snapshots:
        record = world.project.get(snapshot.sandbox_id)
        if record is None or record.status is not SandboxStatus.TERMINATED:
            continue
        kind = names.parse(settings.prefix, record.name)
        ours = isinstance(kind, names.PreparedSandbox) and names.belongs_to(kind, environment.id)
        if ours and not snapshot.id.startswith(ASLEEP):
            yield DeleteSnapshot(snapshot, "of a prepared sandbox that has ended")
