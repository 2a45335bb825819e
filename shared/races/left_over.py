"""What a lost race has left behind, ended at its caller's word and not with its dead-man time."""

from __future__ import annotations

import asyncio
from typing import Final

from shared import names
from shared.environment_settings import Environment
from shared.ports import ENDED, Absent, Listing, SandboxHost
from shared.races.cells import CellUnclear

_AT_ONCE: Final = 8
_ASLEEP: Final = "suspend-"  # what the service keeps of a sleeping sandbox (docs/wire/tensorlake.md#6-snapshots)


async def end_left_over(host: SandboxHost, prefix: str, environment: Environment, race_id: str) -> int:
    """Ends all sandboxes of this race but its record, and the snapshot that they were made of; how many there were. A
    kept sandbox has a name of its own by then. Raises CellUnclear where something may be left."""
    listing = await host.list_sandboxes()
    if not isinstance(listing, Listing) or not listing.complete:
        raise CellUnclear("it is not known what the race has left: ask again")
    kinds = {record.id: names.parse(prefix, record.name) for record in listing.rows}
    mine = {
        id: kind
        for id, kind in kinds.items()
        if isinstance(kind, names.RaceSandbox | names.KeptSnapshotSandbox)
        and kind.race_id == race_id
        and names.belongs_to(kind, environment.id)
    }
    alive = [record.id for record in listing.rows if record.id in mine and record.status not in ENDED]
    room = asyncio.Semaphore(_AT_ONCE)

    async def end(sandbox_id: str) -> bool:
        async with room:
            return await host.terminate(sandbox_id) in (None, Absent())

    if not all(await asyncio.gather(*map(end, alive))):
        raise CellUnclear("not all that the race has left could be ended: ask again")
    tags = {kind.snapshot_tag for kind in mine.values() if isinstance(kind, names.RaceSandbox) and kind.snapshot_tag}
    await _forget_snapshots(host, tags)
    return len(alive)


async def _forget_snapshots(host: SandboxHost, tags: set[str]) -> None:
    if not tags:
        return
    snapshots = await host.list_snapshots()
    if not isinstance(snapshots, Listing) or not snapshots.complete:
        raise CellUnclear("it is not known whether the race has left a snapshot: ask again")
    for snapshot in snapshots.rows:
        ours = names.snapshot_tag(snapshot.id) in tags and not snapshot.id.startswith(_ASLEEP)
        if ours and await host.delete_snapshot(snapshot.id) not in (None, Absent()):
            raise CellUnclear("the snapshot that the race has left could not be deleted: ask again")
