"""Programs of ours that run inside sandboxes. They travel as text: Python for `python -I -S -c`, shell for `sh -c`.

A shell program may count on what sweep.sh defines where it is sent together with it; each is checked by shellcheck
(tests/image/session/test_programs.py).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@cache
def text(*names: str) -> str:
    """The text of these programs, one after the other."""
    return "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)
