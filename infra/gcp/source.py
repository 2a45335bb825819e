"""What is uploaded: our own modules, a `main.py` where the buildpack looks for it, and locked requirements.

functions-framework is no run-time dependency elsewhere, so its part of the lock is cut out of the users' lock: uv notes
below each package which others asked for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from image.server.code import source_files

CHECKOUT: Final = Path(__file__).resolve().parents[2]
FRAMEWORK: Final = "functions-framework"
_NOT_NEEDED: Final = frozenset({"functions/asgi.py", "functions/aws_lambda.py", "functions/lambda_http.py"})
_MAIN: Final = '''"""The buildpack and functions-framework look for the targets here."""

from functions.main import bundle, fork_best_of_n, on_run_started, poll_tick

__all__ = ["bundle", "fork_best_of_n", "on_run_started", "poll_tick"]
'''


@dataclass(frozen=True, slots=True)
class _Pinned:
    """One package of a lock: its lines, and who asked for it."""

    text: str
    via: frozenset[str]


def stage(folder: Path) -> Path:
    """Fills an empty folder with everything that is uploaded, and returns it."""
    files = {name: content for name, content in source_files().items() if name not in _NOT_NEEDED}
    files["main.py"] = _MAIN.encode()
    files["requirements.txt"] = requirements().encode()
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def requirements(root: Path = CHECKOUT) -> str:
    """The run-time lock, and the framework with all that it needs: names, versions and hashes."""
    runtime = _read(root / "requirements" / "runtime.lock")
    users = _read(root / "requirements" / "user.lock")
    wanted = {FRAMEWORK}
    while True:
        more = {name for name, pinned in users.items() if pinned.via & wanted} - wanted
        if not more:
            break
        wanted |= more
    chosen = {**{name: users[name] for name in wanted}, **runtime}
    return "".join(chosen[name].text for name in sorted(chosen))


def _read(path: Path) -> Mapping[str, _Pinned]:
    blocks = re.split(r"^(?=[A-Za-z0-9])", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {block.partition("==")[0]: _pinned(block) for block in blocks if "==" in block.partition("\n")[0]}


def _pinned(block: str) -> _Pinned:
    notes = [line.strip().lstrip("#").strip() for line in block.splitlines() if line.strip().startswith("#")]
    via = frozenset(note.removeprefix("via").strip() for note in notes)
    text = "".join(f"{line}\n" for line in block.splitlines() if line.strip() and not line.strip().startswith("#"))
    return _Pinned(text, via)
