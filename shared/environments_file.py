"""A TOML file that describes several environments, which ENVIRONMENTS_FILE names:

    [environments.env_01Ab]
    key = "file:/run/secrets/env_01Ab"      # or the key itself, or env:NAME
    image = "agent-cli"                      # the rest falls back to the plain variables
    cpus = 2.0
    memory_mb = 4096
    disk_mb = 25600
    timeout_seconds = 3600
    allow_out = ["api.anthropic.com", "pypi.org"]
    setup_repository = "https://git.example/team/app"
    setup_env = { REGION = "eu" }

A cold start with plain variables imports nothing of this.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from shared.errors import SettingsError


def tables(file: str) -> dict[str, dict[str, Any]]:
    """What the file says of each environment, by its id; the values are not checked. Raises SettingsError."""
    try:
        found = tomllib.loads(Path(file).read_text(encoding="utf-8")).get("environments")
    except OSError as error:
        raise SettingsError(f"ENVIRONMENTS_FILE cannot be read ({type(error).__name__})") from None
    except ValueError:
        raise SettingsError("ENVIRONMENTS_FILE is not TOML") from None
    if not isinstance(found, dict) or not found or not all(isinstance(table, dict) for table in found.values()):
        raise SettingsError("ENVIRONMENTS_FILE has no table [environments.<environment id>]")
    return found
