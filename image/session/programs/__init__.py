"""Programs of ours that run inside sandboxes. They travel as text: Python for `python -I -S -c`, shell for `sh -c`.

A shell program may count on what sweep.sh defines where it is sent together with it; each is checked by shellcheck
(tests/image/session/test_programs.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
# An import finds what is in sys.modules before it looks for a package.
_IMPORTS = """\
import sys

modules = {modules!r}
main = modules.pop()
for name, text in modules:
    sys.modules[name] = type(sys)(name)
    exec(compile(text, name, "exec"), sys.modules[name].__dict__)
exec(compile(main[1], main[0], "exec"), {{"__name__": "__main__"}})
"""


@cache
def text(*names: str) -> str:
    """The text of these programs, one after the other."""
    return "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


def python(modules: Mapping[str, str]) -> str:
    """One Python program of these modules, name to text, each after those that it imports. The last one is run as
    `__main__`; the ones before are imported by their names."""
    return _IMPORTS.format(modules=list(modules.items()))
