"""What a branch leaves in files, for the report: small ones as base64, all others listed with their sizes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from image.session.programs import pack_artifacts
from shared.races.report import Artifact
from shared.races.shell import NotRun, SandboxShell

MOST_FILES: Final = 100  # of one branch
_SECONDS: Final = 30.0
_LISTING: Final = 262_144  # bytes: of paths, sizes and reasons


async def collect(
    globs: Sequence[str], *, shell: SandboxShell, sandbox_id: str, budget: int
) -> tuple[tuple[Artifact, ...], str | None]:
    """The files that fit the globs, by path, with at most `budget` bytes of content in all; and why there are none,
    or not all."""
    args = (json.dumps(list(globs)), str(budget), str(MOST_FILES))
    printed = await shell.python(sandbox_id, _program(), args, _SECONDS, limit=budget * 4 // 3 + _LISTING)
    if isinstance(printed, NotRun):
        return (), f"artifacts: {printed.reason}"
    try:
        answer = json.loads(printed.text.replace("\n", ""))
        files = tuple(
            Artifact(path=path, size=size, base64=content, truncated=reason)
            for path, size, content, reason in answer["files"]
        )
        more = bool(answer["more"])
    except (ValueError, KeyError, TypeError, ValidationError):
        return (), "artifacts: the sandbox gave no clear answer"
    return files, f"artifacts: only the first {MOST_FILES} files are listed" if more else None


@cache
def _program() -> str:
    return Path(pack_artifacts.__file__).read_text(encoding="utf-8")
