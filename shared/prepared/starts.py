"""The snapshot that new sessions of an environment are started from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from shared.deadline import Clock
from shared.environment_settings import Environment
from shared.ports import ENDED, Doubtful, SandboxHost, SandboxRecord, SnapshotRecord
from shared.prepared.recipe import prepared_names
from shared.settings import Settings

_REMEMBERED: Final = 60.0  # seconds
ASLEEP: Final = "suspend-"  # how the id of a sleeper's own snapshot begins
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


class PreparedStarts:
    """Looks the mapping up, which lives on the service, and remembers it for a minute: at most four calls a minute and
    process, none where the environment has no set-up of its own."""

    def __init__(
        self,
        settings: Settings,
        environment: Environment,
        host: SandboxHost,
        now: Callable[[], datetime],
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._host = host
        self._now = now
        self._clock = clock
        self._known: tuple[float, str | None] | None = None
        self._turn = asyncio.Lock()

    async def snapshot(self) -> str | None:
        """None where there is none, and where that cannot be told now: sessions then start without."""
        names = prepared_names(self._settings, self._environment, self._now().timestamp())
        if not names:
            return None
        async with self._turn:
            if self._known is not None and self._clock() - self._known[0] < _REMEMBERED:
                return self._known[1]
            for name in names:
                found = await self._host.find(name)
                if isinstance(found, Doubtful):
                    return None
                if isinstance(found, SandboxRecord) and found.status not in ENDED and found.name == name:
                    listed = await self._host.list_snapshots(found.id)
                    if isinstance(listed, Doubtful):
                        return None
                    if (newest := newest_ready(listed.rows)) is not None:
                        self._known = (self._clock(), newest)
                        return newest
            self._known = (self._clock(), None)
            return None

    def gone(self, snapshot_id: str) -> None:
        """It could not be restored: for a while nobody tries it again."""
        if self._known is not None and self._known[1] == snapshot_id:
            self._known = (self._clock(), None)


def newest_ready(snapshots: Sequence[SnapshotRecord]) -> str | None:
    """The id of the newest one that can be restored; what the service keeps of a sleeper is none
    (docs/wire/tensorlake.md#6-snapshots)."""
    ready = [
        each for each in snapshots if each.ready and each.filesystem is not False and not each.id.startswith(ASLEEP)
    ]
    ready.sort(key=lambda each: each.created_at or _LONG_AGO)
    return ready[-1].id if ready else None
