"""What the sandboxes and snapshots of one race are called: their names say until when the race lives
(docs/races.md#where-it-runs)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from shared.deadline import Clock
from shared.names import kept_snapshot_name, race_sandbox_name

# A killed race's sandboxes are paid for until then; a race that lives renews it well before.
DEAD_MAN_SECONDS: Final = 180.0
RENEW_SECONDS: Final = 45.0


@dataclass(slots=True)
class RaceNames:
    """`now` is Unix time. `taken`: the snapshot that the race took of its source, once it knows it."""

    prefix: str
    environment_id: str
    race_id: str
    now: Clock
    taken: str | None = None
    _places: dict[str, tuple[int | None, str | None]] = field(default_factory=dict)

    def sandbox(self, index: int | None, taken: str | None = None) -> str:
        """The name to give a sandbox now. `taken`: the snapshot of the source, where the race does not know it yet."""
        taken = taken or self.taken
        name = race_sandbox_name(self.prefix, self.environment_id, self.race_id, index, self._dead_man(), taken)
        self._places[name] = index, taken
        return name

    def renewed(self, name: str) -> str:
        """A name with a later dead-man time for the sandbox that was made with this one."""
        return self.sandbox(*self._places[name])

    def kept_snapshot(self) -> str:
        return kept_snapshot_name(self.prefix, self.environment_id, self.race_id, self._dead_man())

    def _dead_man(self) -> int:
        return math.ceil(self.now() + DEAD_MAN_SECONDS)
