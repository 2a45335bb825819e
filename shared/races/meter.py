"""How long a race's sandboxes have lived, all together: what the race costs, and what `max_sandbox_seconds` bounds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from shared.deadline import Clock

LONGEST_PAUSE: Final = 1.0  # seconds between two looks: sandboxes may be made meanwhile


@dataclass(slots=True)
class SandboxMeter:
    """Counts from the call that made a sandbox to the answer that it has ended, by the sandbox's id."""

    clock: Clock
    _began: dict[str, float] = field(default_factory=dict)
    _over: float = 0.0

    def began(self, sandbox_id: str, at: float) -> None:
        self._began.setdefault(sandbox_id, at)

    def ended(self, sandbox_id: str) -> None:
        began = self._began.pop(sandbox_id, None)
        if began is not None:
            self._over += self.clock() - began

    def seconds(self) -> float:
        """Up to now, those that live included."""
        now = self.clock()
        return self._over + sum(now - began for began in self._began.values())

    async def spent(self, most: float) -> None:
        """Comes back when so many seconds are spent, at most `LONGEST_PAUSE` late."""
        while True:
            left = most - self.seconds()
            if left <= 0:
                return
            await asyncio.sleep(min(LONGEST_PAUSE, max(0.01, left / max(1, len(self._began)))))
