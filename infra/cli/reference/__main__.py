"""`make docs-reference` writes each reference page anew; with --check it only says which differ, and ends with 1."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from infra.cli.environ import CHECKOUT
from infra.cli.reference import commands, doctor, http_api, settings

FOLDER: Final = CHECKOUT / "docs" / "reference"
PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "settings.md": settings.page,
    "doctor.md": doctor.page,
    "cli.md": commands.page,
    "http-api.md": http_api.page,
    "openapi.json": http_api.openapi,
}


def outdated(folder: Path = FOLDER) -> list[str]:
    """The names of pages that differ from what the code says, or are not there."""
    return [
        name
        for name, page in PAGES.items()
        if not (folder / name).exists() or (folder / name).read_text(encoding="utf-8") != page()
    ]


def write(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


def main(arguments: list[str]) -> int:
    if "--check" not in arguments:
        write()
        return 0
    for name in outdated():
        print(f"docs/reference/{name} is out of date: make docs-reference", file=sys.stderr)
    return 1 if outdated() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
