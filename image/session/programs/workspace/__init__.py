"""What a promotion runs inside the sandboxes, as the agent's user, with the working directory as the tree.

The parts travel as one text (`program`), so each imports the standard library and other parts only, and keeps to what
Python 3.8 knows.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from image.session import programs

# Each after those that it imports; the last one runs.
PARTS: Final = ("entries", "tree", "removal", "verdicts", "contents", "applying", "listing", "operations")


@cache
def program() -> str:
    """The parts, for `python -I -S -c`."""
    return programs.python({f"{__name__}.{part}": programs.text(f"workspace/{part}.py") for part in PARTS})
