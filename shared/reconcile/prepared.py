"""Prepared starts that are due to go (left by a killed preparation, of another recipe, too old), and the one that ticks
make where they are asked to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from shared import names
from shared.environment_settings import Environment
from shared.ports import BROKEN, SandboxStatus, SnapshotRecord
from shared.prepared.recipe import making_seconds, prepared_names
from shared.prepared.starts import ASLEEP, newest_ready
from shared.reconcile.repairs import DeleteSnapshot, EndPrepared, Prepare
from shared.reconcile.world import World
from shared.settings import Settings

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
            why = "its preparation was cut off or has failed"
        elif sandbox.name not in wanted and age > _OTHER_RECIPE:
            why = "sessions are started from another one, or from none"
        if why:
            yield EndPrepared(sandbox, why, tuple(each.id for each in own if not each.id.startswith(ASLEEP)))
    for snapshot in snapshots:
        record = world.project.get(snapshot.sandbox_id)
        if record is None or record.status is not SandboxStatus.TERMINATED:
            continue
        ours = isinstance(world.kinds.get(record.id), names.PreparedSandbox)
        if ours and not snapshot.id.startswith(ASLEEP):
            yield DeleteSnapshot(snapshot, "of a prepared sandbox that has ended")


def preparing_due(
    snapshots: Sequence[SnapshotRecord], world: World, settings: Settings, environment: Environment
) -> Iterator[Prepare]:
    """A sandbox that sleeps without a snapshot is of a set-up that failed: it is ended, and tried anew, when nobody can
    be making it any more. So a set-up that fails is tried about three times an hour."""
    now = world.now.timestamp()
    wanted = prepared_names(settings, environment, now) if environment.prepared_by_ticks and world.listed else ()
    if not wanted:
        return
    there = next((each for each in world.sandboxes if each.name == wanted[0]), None)
    if there is None:
        yield Prepare(wanted[0], "there is none of this set-up and time")
        return
    created = there.record.created_at
    young = created is None or now - created.timestamp() <= making_seconds(settings, environment)
    if there.status is SandboxStatus.RUNNING and young and all(each.sandbox_id != there.id for each in snapshots):
        yield Prepare(wanted[0], "it is in the making")
