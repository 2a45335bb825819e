"""What a session has changed in its workspace, as its running sandbox tells it. The agent can make it tell anything: it
is bounded, printable, and a hint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from image.session import programs
from infra.cli.fleet.target import AWAKE, Target
from shared.ports import CommandOutput, SandboxRecord
from shared.texts import printable

MOST: Final = 200
_LONGEST_PATH: Final = 300
_SECONDS: Final = 3.0
_HOW: Final = {
    "A": "added",
    "M": "changed",
    "D": "deleted",
    "R": "renamed",
    "C": "copied",
    "T": "changed",
    "?": "added",
}


@dataclass(frozen=True, slots=True)
class FileChange:
    """`how`: added, changed, deleted, or written where only a file's time is known."""

    path: str
    how: str


@dataclass(frozen=True, slots=True)
class Changes:
    """`source`: git, or times: files written since the session began, those of its set-up among them. Not `complete`:
    there are more than MOST."""

    source: str
    files: tuple[FileChange, ...]
    complete: bool


async def changes(aim: Target, box: SandboxRecord | None) -> Changes | None:
    """None where nothing tells: no sandbox, one that sleeps and is left asleep, or no answer within seconds."""
    if box is None or box.status not in AWAKE:
        return None
    began = str(int(aim.session.created_at))
    found = await aim.host.run(
        box.id,
        "/bin/sh",
        ["-c", programs.text("changed_files.sh"), "sh", began, str(MOST + 1)],
        env={},
        user=aim.settings.sandbox_user or None,
        working_dir=aim.settings.workdir or None,
        timeout=_SECONDS,
        limit=4 * MOST * _LONGEST_PATH,
    )
    return read(found.stdout) if isinstance(found, CommandOutput) and found.exit_code == 0 else None


def read(told: str) -> Changes | None:
    """None for what is no such answer."""
    source, *lines = told.split("\n")
    if source not in ("git", "times"):
        return None
    files = []
    for line in lines:
        word, tab, path = line.partition("\t")
        if tab and path:
            how = _HOW.get(word[:1], "changed") if source == "git" else "written"
            files.append(FileChange(printable(path, _LONGEST_PATH), how))
    return Changes(source, tuple(files[:MOST]), len(files) <= MOST)
