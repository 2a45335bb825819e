"""What a branch changed in its working directory, for the report: a patch in git's format.

It is taken in the branch's own sandbox, as root where the sandbox has one, so that the branch cannot rewrite what it is
compared with. It is for reading: nothing is decided or promoted by it (docs/races.md).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Final

from image.session import programs
from shared.ports import CommandOutput
from shared.races.shell import NotDone, SandboxShell, as_base64, new_mark, why

MOST_BYTES: Final = 262_144  # of one branch's patch
_SECONDS: Final = 60.0
_NO_GIT: Final = 3
_TOO_MANY: Final = 5
LEFT_OUT: Final = "diff: of the repositories in folders of the working directory only 20 are looked at"


@dataclass(frozen=True, slots=True)
class DiffBase:
    """What the working directory is compared with: kept in `folder` of the sandbox by `user`. `too_many`: it holds more
    repositories in folders than are looked at."""

    folder: str
    user: str
    too_many: bool


@dataclass(frozen=True, slots=True)
class Patch:
    """`text` ends at a whole line; it is a part of the patch where `cut`."""

    text: str
    cut: bool


async def keep_base(shell: SandboxShell, sandbox_id: str) -> DiffBase | NotDone:
    """Remembers the working directory as it is now."""
    outcome: object = None
    for user in ("root", shell.user):  # not every sandbox lets anybody be root
        folder = f"/tmp/race-{new_mark()}-base"
        outcome = await _run(shell, sandbox_id, ("base", folder), user)
        if isinstance(outcome, CommandOutput) and outcome.exit_code in (0, _TOO_MANY) and not outcome.timed_out:
            return DiffBase(folder, user, too_many=outcome.exit_code == _TOO_MANY)
    return outcome if isinstance(outcome, NotDone) else NotDone("the working directory could not be read")


async def take(shell: SandboxShell, sandbox_id: str, base: DiffBase, budget: int) -> Patch | NotDone:
    """What has changed since, in at most `budget` bytes. Nothing of the branch may run any more."""
    outcome = await _run(shell, sandbox_id, ("patch", base.folder, str(budget + 1)), base.user, as_base64(budget + 1))
    match outcome:
        case NotDone():
            return outcome
        case CommandOutput(exit_code=0, timed_out=False, stdout=said):
            try:
                found = base64.b64decode(said)
            except ValueError:
                return NotDone("the sandbox gave no clear answer")
            cut = len(found) > budget
            whole = found[: found[:budget].rfind(b"\n") + 1] if cut else found
            return Patch(whole.decode(errors="replace"), cut)
        case _:
            return NotDone("the working directory could not be compared")


async def _run(
    shell: SandboxShell, sandbox_id: str, args: tuple[str, ...], user: str, limit: int = 0
) -> CommandOutput | NotDone:
    text = programs.text("workspace_patch.sh")
    outcome = await shell.program(sandbox_id, text, args, user=user, timeout=_SECONDS, limit=limit)
    match outcome:
        case CommandOutput(exit_code=code) if code == _NO_GIT:
            return NotDone("there is no git in the sandbox")
        case CommandOutput(timed_out=True):
            return NotDone(f"did not end within {_SECONDS:g} s")
        case CommandOutput():
            return outcome
        case _:
            return NotDone(why(outcome))
