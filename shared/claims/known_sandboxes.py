"""Where this process served which session last: the session's next item is started there at once.

A create that finds the name taken and a look at who has it are two calls of seven, and the slowest ones. The name is
the record all the same (docs/architecture.md#the-name-is-the-record): what was seen under it is believed for minutes
only, and a start that fails leads back to the name. A sandbox that was renamed can still be started in, so whoever
takes one away from its session writes that down in it (`hands keep`, infra/cli/fleet/actions.py).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from shared.deadline import Clock
from shared.ports import SandboxRecord

LONGEST: Final = 300.0  # seconds
_MOST: Final = 4096


class KnownSandboxes:
    """One environment's. seconds: how long a sandbox that was seen under its name is believed to have it still."""

    def __init__(self, clock: Clock, seconds: float = LONGEST) -> None:
        self._clock = clock
        self._seconds = seconds
        self._known: OrderedDict[str, tuple[float, SandboxRecord]] = OrderedDict()

    def get(self, name: str) -> SandboxRecord | None:
        until, sandbox = self._known.get(name, (0.0, None))
        return sandbox if self._clock() < until else None

    def seen(self, name: str, sandbox: SandboxRecord) -> None:
        """The service has just said that the sandbox has this name."""
        self._known[name] = (self._clock() + self._seconds, sandbox)
        self._known.move_to_end(name)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)

    def forget(self, name: str) -> None:
        self._known.pop(name, None)
