"""What the image has of the operator's own tools: written by `make build`, read by the worker and by what runs them.

    /opt/hands/tools/tools.json     names, descriptions and schemas; the agent may read it, as it knows them anyway
    /opt/hands/tools/public/        files whose tools run as the agent's user
    /opt/hands/tools/private/       files that only the user `hands-tools` may read, and whose tools run as that user

Everything below is root's and nobody else can write it (docs/tools.md). Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

TOOLS_DIRECTORY: Final = Path("/opt/hands/tools")
TOOLS_PACKAGES: Final = "/opt/hands/tools-packages"
"""Python packages that the operator's tools need beside the worker's own."""

TOOLS_USER: Final = "hands-tools"
TOOLS_HOME: Final = "/var/lib/hands-tools"
"""Private tools keep their files here: the user's own, closed to everybody else."""

MANIFEST: Final = "tools.json"
SERVERS: Final = "mcp.json"
"""In a kind's folder: its MCP servers, in the usual form, and with references instead of secrets."""

_LONGEST: Final = 4 << 20  # bytes


class ToolKind(StrEnum):
    """Who runs a tool."""

    PUBLIC = "public"  # the agent's user
    PRIVATE = "private"  # a user of its own


@dataclass(frozen=True, slots=True)
class ToolEntry:
    """One tool. `source` is a file in the kind's folder or, with a `server`, the tool's name at that MCP server."""

    name: str
    description: str
    input_schema: Mapping[str, Any]
    kind: ToolKind
    source: str
    server: str = ""

    def definition(self) -> dict[str, Any]:
        """As the agents API takes it (docs/wire/anthropic.md#7-agents-api)."""
        return {
            "type": "custom",
            "name": self.name,
            "description": self.description,
            "input_schema": dict(self.input_schema),
        }


def to_json(entries: tuple[ToolEntry, ...]) -> str:
    return json.dumps([asdict(entry) for entry in entries], indent=1)


def read(directory: Path) -> tuple[ToolEntry, ...]:
    """Nothing where there is no manifest. Raises ValueError for one that `make build` did not write."""
    try:
        with (directory / MANIFEST).open("rb") as file:
            listed = json.loads(file.read(_LONGEST))
        return tuple(ToolEntry(**{**one, "kind": ToolKind(one["kind"])}) for one in listed)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{directory / MANIFEST} cannot be read: {type(error).__name__}: {error}") from None
