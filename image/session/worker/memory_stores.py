"""What a worker that was killed left behind, as far as it would keep the next one from starting.

The SDK refuses a session whose memory store's directory exists, since its first sync would upload whatever lies
there (docs/wire/anthropic.md#t17). A killed worker leaves just that. Nothing is deleted: the directory may hold
notes that were never uploaded.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)


def set_aside(session: bytes, workdir: str) -> list[Path]:
    """Renames the existing directories of a session's memory stores (`session` is its JSON) to `….left-<time>`
    beside themselves; returns the new names. What cannot be renamed stays, and the SDK says why it will not do."""
    moved: list[Path] = []
    for path in _store_directories(session, Path(workdir)):
        aside = path.with_name(f"{path.name}.left-{time.time_ns()}")
        try:
            if os.path.lexists(path):
                path.rename(aside)
                log.warning("memory.set_aside from=%s to=%s", path, aside)
                moved.append(aside)
        except OSError as error:
            log.warning("memory.not_set_aside path=%s error=%s", path, type(error).__name__)
    return moved


def _store_directories(session: bytes, workdir: Path) -> list[Path]:
    """Where the SDK will put the stores: their mount path, or beneath the workdir where they name none."""
    try:
        resources = json.loads(session).get("resources")
    except (ValueError, AttributeError):
        return []
    found: list[Path] = []
    for resource in resources if isinstance(resources, list) else []:
        if not isinstance(resource, dict) or resource.get("type") != "memory_store":
            continue
        mount, name = resource.get("mount_path"), resource.get("name") or resource.get("memory_store_id")
        if isinstance(mount, str) and mount:
            path = Path(mount)
        elif isinstance(name, str) and name:
            path = workdir / "memory" / name
        else:
            continue
        # Only a place below some directory, plainly spelt; anything else is left to the SDK's refusal.
        if path.is_absolute() and len(path.parts) > 2 and ".." not in path.parts:
            found.append(path)
    return found
