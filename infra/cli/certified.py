"""Certifications that are committed: docs/certified, written by `make certify` and read by doctor."""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from image.server.code import code_digest, files_below
from infra.cli.environ import CHECKOUT

FOLDER: Final = CHECKOUT / "docs" / "certified"
OFFLINE: Final = "the offline platform"
"""What a report calls the place, beside addresses and `the real services`."""


def own_version() -> str:
    return version("serverless-hands")


@cache
def own_code() -> str:
    """Twelve digits that stand for the state of the code, since a version is many of them: the same ones in a checkout
    and where it is installed, with git or without."""
    return code_digest(files_below(("functions", "shared", "image", "infra")))[:12]


def last_certification(folder: Path = FOLDER, of: str | None = None) -> dict[str, Any] | None:
    """The newest report on this version (`of`: another one), one on anything but the offline platform first; None
    where there is none. Files that cannot be read are passed over."""
    found: list[tuple[bool, str, dict[str, Any]]] = []
    for file in folder.glob("*.json"):
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data["version"] == (of or own_version()):
                found.append((data["where"] != OFFLINE, str(data["at"]), {**data, "checks": list(data["checks"])}))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found, key=lambda each: each[:2])[2] if found else None
