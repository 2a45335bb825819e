"""What a bundle installs: the run-time lock, and from the users' lock what it needs beside it.

The users' lock holds every extra. uv notes below each package which others asked for it, so a part can be cut out with
names, versions and hashes, without resolving anything.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TELEMETRY: Final = "otel"
"""The extra of pyproject.toml with OpenTelemetry's SDK and exporters."""
S3: Final = "aws"
"""The one with what OUTPUTS_TO=s3:// needs."""
CLOUD_STORAGE: Final = "gcp"
"""The one with what gs:// needs."""
CHECKOUT: Final = Path(__file__).resolve().parents[1]
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class _Pinned:
    """One package of a lock: its lines, and who asked for it."""

    text: str
    via: frozenset[str]


def requirements(*packages: str, extras: Collection[str] = (), root: Path = CHECKOUT) -> str:
    """The run-time lock, and from the users' lock packages and extras with all that these need. Raises KeyError."""
    runtime = _read(root / "requirements" / "runtime.lock")
    users = _read(root / "requirements" / "user.lock")
    wanted = {*packages, *(package for extra in extras for package in of_extra(extra, root))}
    while True:
        more = {name for name, pinned in users.items() if pinned.via & wanted} - wanted
        if not more:
            break
        wanted |= more
    chosen = {**{name: users[name] for name in wanted}, **runtime}
    return "".join(chosen[name].text for name in sorted(chosen))


def of_extra(name: str, root: Path = CHECKOUT) -> tuple[str, ...]:
    """The packages that an extra of pyproject.toml asks for by name."""
    declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    lines = declared["project"]["optional-dependencies"][name]
    return tuple(found[0] for line in lines if (found := _NAME.match(line)))


def _read(path: Path) -> Mapping[str, _Pinned]:
    blocks = re.split(r"^(?=[A-Za-z0-9])", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {block.partition("==")[0]: _pinned(block) for block in blocks if "==" in block.partition("\n")[0]}


def _pinned(block: str) -> _Pinned:
    notes = [line.strip().lstrip("#").strip() for line in block.splitlines() if line.strip().startswith("#")]
    via = frozenset(note.removeprefix("via").strip() for note in notes)
    text = "".join(f"{line}\n" for line in block.splitlines() if line.strip() and not line.strip().startswith("#"))
    return _Pinned(text, via)
