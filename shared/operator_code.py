"""Functions of the operator's own, as settings name them: `module:function`, or `entry-point:NAME` of a package."""

from __future__ import annotations

import importlib
from typing import Any, Final

NAMED: Final = r"(?:entry-point:[\w.-]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*)"
"""A pattern for `re.ASCII`."""
_ENTRY_POINT: Final = "entry-point:"


def function_of(target: str, group: str) -> Any:
    """Whatever the operator's code raises at its import; ValueError for an entry point that no package has, or two."""
    if not target.startswith(_ENTRY_POINT):
        module, _, function = target.partition(":")
        return getattr(importlib.import_module(module), function)
    from importlib import metadata

    (entry,) = metadata.entry_points(group=group, name=target.removeprefix(_ENTRY_POINT))
    return entry.load()
