"""How far a session's set-up has come, marked on disk for the worker after this one.

The agent's user owns the file and may have written anything: that harms its own session alone.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from image.session.claim import LAST_SETUP
from image.session.worker.state_directory import StateDirectory

MARK_NAME: Final = "setup"
RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
PREPARED: Final = "prepared"  # the environment's own part is done, in a sandbox that sessions are started from
GIVEN_UP: Final = "given up"  # it failed, and the session goes on without it

_LONGEST: Final = 65_536  # bytes
_LONGEST_REASON: Final = 1000  # characters


class SetupMark(NamedTuple):
    """`digest`: of what was asked for. `made`: what it has put into the workdir so far, by relative path. `reason`: of
    the last failure, in words for the operator."""

    digest: str = ""
    state: str = ""
    made: tuple[str, ...] = ()
    reason: str = ""

    @classmethod
    def read(cls, state: StateDirectory) -> SetupMark:
        """An empty one where there is none, or none that can be read."""
        try:
            raw: Any = json.loads(state.read(MARK_NAME, _LONGEST))
            made = tuple(str(each) for each in raw["made"])
            return cls(str(raw["digest"]), str(raw["state"]), made, str(raw["reason"])[:_LONGEST_REASON])
        except (ValueError, KeyError, TypeError, OSError):
            return cls()

    def write(self, state: StateDirectory) -> None:
        """Raises OSError, Ended."""
        state.replace(MARK_NAME, json.dumps(self._asdict()).encode())

    @property
    def remark(self) -> str:
        """For the operator, with the next hand-over; empty where all is well."""
        return f"{LAST_SETUP}{self.reason}" if self.reason else ""
