"""Judges of the operator's own.

A plug-in is `async def judge(context: JudgeContext) -> float`. It is configured by name (RACE_JUDGES, see settings.py);
a request can name only what is configured, never a module. It judges each branch whose program has ended, whatever
its exit code; what it raises, and what takes longer than the judge's `timeout`, is that branch's failure. It shares the
event loop with everything else, so it must not block.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from shared.errors import SettingsError
from shared.operator_code import function_of
from shared.races.shell import NotDone, NotRun, Ran, SandboxShell

GROUP: Final = "serverless_hands.judges"
LARGEST_FILE: Final = 1_048_576


class JudgeFailed(Exception):
    """What `run` and `read_file` raise; a plug-in may raise it too. The text becomes the branch's reason."""


@dataclass(frozen=True, slots=True)
class JudgeContext:
    """What a plug-in sees of one branch.

    `exit_code`, `stdout` and `stderr` (the last 65,536 bytes of each) are the branch's; `options` are the request's,
    and so are not to be trusted.
    """

    branch: str
    exit_code: int
    stdout: str
    stderr: str
    options: Mapping[str, Any]
    _shell: SandboxShell
    _sandbox_id: str
    _env: Mapping[str, str]
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, argv: Sequence[str], *, timeout: float = 30.0, stdin: str | None = None) -> Ran:
        """Runs a program in the branch's sandbox, as the agent's user, in the working directory. Raises JudgeFailed
        where its end is not known; a time-out (seconds) is in the result. When it ends, so does whatever else runs
        there: calls at the same time wait for each other."""
        async with self._turn:
            ran = await self._shell.run(self._sandbox_id, tuple(argv), env=self._env, timeout=timeout, stdin=stdin)
        if isinstance(ran, NotRun):
            raise JudgeFailed(ran.reason)
        return ran

    async def read_file(self, path: str, limit: int = LARGEST_FILE) -> bytes:
        """A file below the branch's working directory, of at most `limit` bytes. Raises JudgeFailed."""
        async with self._turn:
            read = await self._shell.read(self._sandbox_id, path, min(limit, LARGEST_FILE))
        if isinstance(read, NotDone):
            raise JudgeFailed(read.reason)
        return read.data


Plugin = Callable[[JudgeContext], Awaitable[float]]


def load(name: str, target: str) -> Plugin:
    """The function of a configured judge (settings.RaceLimits.judges). Raises SettingsError, which names the judge."""
    try:
        found = function_of(target, GROUP)
    except Exception as error:  # an import runs the operator's code: whatever it raises is a wrong setting
        raise SettingsError(f"RACE_JUDGES: {name} cannot be loaded ({type(error).__name__})") from error
    if not inspect.iscoroutinefunction(found):
        raise SettingsError(f"RACE_JUDGES: {name} is not an async function")
    plugin: Plugin = found
    return plugin
