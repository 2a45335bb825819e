"""The operator's Python files with tools in them: modules whose top level holds what the SDK's decorators make.

    from anthropic import beta_tool

    @beta_tool
    def order_status(order_id: str) -> str:
        \"\"\"Says where an order is.\"\"\"

Each file is a module of its own; one whose name begins with an underscore is only for others to import. `python -m
image.session.worker.tool_files FOLDER` prints what a folder's files declare.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

_MODULE: Final = "operator_tools_"


def tool_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.glob("*.py") if not path.name.startswith("_")))


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """What is imported inside stays: to collect among what the SDK is made of is a fifth of its import."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def load(path: Path) -> dict[str, Any]:
    """The tools of one file by name, in the order of the text. Raises whatever the file raises, and ValueError for two
    tools of one name."""
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # a helper module beside it
    name = _MODULE + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with uncollected():
        spec.loader.exec_module(module)
    tools: dict[str, Any] = {}
    for each in vars(module).values():
        if _is_tool(each) and _home(each) == name:
            if tools.get(each.name, each) is not each:
                raise ValueError(f"it has two tools named {each.name!r}")
            tools[each.name] = each
    return tools


def describe(folder: Path) -> list[dict[str, Any]]:
    """For each tool its name, description, schema and file; for a file that cannot be loaded, why."""
    found: list[dict[str, Any]] = []
    for path in tool_files(folder):
        try:
            tools = load(path)
            found += [{"file": path.name, **_described(tool)} for tool in tools.values()]
        except BaseException as error:  # an operator's module may raise anything, SystemExit too
            found.append({"file": path.name, "error": f"{type(error).__name__}: {error}"})
    return found


def _described(tool: Any) -> dict[str, Any]:
    made = dict(tool.to_dict())
    return {"name": made.get("name"), "description": made.get("description"), "input_schema": made.get("input_schema")}


def _is_tool(value: object) -> bool:
    from anthropic.lib.tools import (
        BetaAsyncBuiltinFunctionTool,
        BetaAsyncFunctionTool,
        BetaBuiltinFunctionTool,
        BetaFunctionTool,
    )

    kinds = (BetaFunctionTool, BetaAsyncFunctionTool, BetaBuiltinFunctionTool, BetaAsyncBuiltinFunctionTool)
    return isinstance(value, kinds)


def _home(tool: Any) -> str | None:
    """The module that made it, and not one that imports it."""
    made_of = getattr(tool, "func", None) or type(tool)
    return getattr(made_of, "__module__", None)


def main(arguments: Sequence[str]) -> None:
    # What a module prints while it is loaded must not end up in the answer.
    answer, sys.stdout = sys.stdout, sys.stderr
    gc.disable()
    json.dump(describe(Path(arguments[0])), answer, default=str)
    gc.freeze()  # to take all down once more at the end is another fifth


if __name__ == "__main__":
    main(sys.argv[1:])
