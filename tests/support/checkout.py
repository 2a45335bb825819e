"""A checkout of a test's own: commands read `.env` and `.hands` beside their code, and must not meet a developer's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_FOLDERS: Final = ("functions", "shared", "image", "infra", "requirements")


def copy_checkout(target: Path) -> Path:
    """The program with its byte code, without tests and settings."""
    for folder in _FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns("*.pyc.*"))
    return target
