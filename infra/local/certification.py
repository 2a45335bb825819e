"""How a certified service behaves: a report of `make certify` makes the offline platform behave so.

What it has: docs/certified/index.md. A difference that one person found is so a test for everybody.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.local.process import ServiceStartError


def behaviour_in(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The knobs of the Claude side, and the settings of the Tensorlake side. Raises ServiceStartError."""
    try:
        behaviour = json.loads(file.read_text(encoding="utf-8"))["behaviour"]
        return dict(behaviour["claude"]), dict(behaviour["tensorlake"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServiceStartError(
            f"{file} is no certification ({type(error).__name__}): name the JSON file that make certify wrote"
        ) from None
