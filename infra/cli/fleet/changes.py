"""What a session has changed in its workspace, as its running sandbox tells it. The agent can make it tell anything: it
is bounded, printable, and a hint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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

# In a repository: against the last commit from before the session, with what no commit has. Elsewhere: by the times of
# files, the newest first. git asks no program that the repository names; a name with a control character is quoted.
_SCRIPT: Final = r"""
export GIT_CEILING_DIRECTORIES="${PWD%/*}"
g() { git -c core.fsmonitor=false -c core.quotePath=false --no-optional-locks "$@" 2>/dev/null; }
if g rev-parse --is-inside-work-tree >/dev/null && base=$(g rev-list -1 --before="@$1" HEAD) && [ -n "$base" ]; then
  echo git
  { g diff --no-ext-diff --no-textconv --no-renames --name-status --relative "$base" -- .
    g ls-files --others --exclude-standard | sed 's/^/?\t/'
  } | head -n "$2"
else
  echo times
  find . -xdev \( -name .git -o -name node_modules -o -name __pycache__ -o -name .venv \) -prune -o \
    -type f -newermt "@$1" -printf '%T@\t%P\n' 2>/dev/null | head -n 5000 | sort -rn | head -n "$2"
fi
"""


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
        ["-c", _SCRIPT, "sh", began, str(MOST + 1)],
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
