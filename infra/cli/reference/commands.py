"""docs/reference/cli.md, from the command line's own declarations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import typer.main

from infra.cli.options import PROGRAM
from infra.local.__main__ import FLAGS

_HEAD = """# Command line

`hands COMMAND` is in `.venv/bin` after `make setup`; `python -m infra.cli COMMAND` is the same. The targets of the
Makefile call it. A flag that reads a variable says which: [settings](settings.md).

This page is generated from the declarations in `infra/cli/commands/`.
"""


def page() -> str:
    from infra.cli.__main__ import app

    command = typer.main.get_command(app)
    parts = [_HEAD, _plain(command.epilog), ""]
    for name, each in _walk(command, PROGRAM):
        parts += _section(name, each)
    return "\n".join(parts).rstrip() + "\n"


def _walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Commands that can be run, in the order of the text; groups stand for what is in them."""
    for key, each in command.commands.items():
        full = f"{name} {key}"
        if getattr(each, "commands", None):
            yield from _walk(each, full)
        elif not each.hidden:
            yield full, each


def _section(name: str, command: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    usage = " ".join(command.get_usage(context).split()).removeprefix("Usage: ")
    yield f"## {name}\n"
    yield f"{_plain(command.help)}\n"
    yield f"```text\n{usage}\n```\n"
    rows = [row for each in command.params if (row := each.get_help_record(context)) is not None]
    if name == f"{PROGRAM} up":
        rows = [*map(_platform_flag, FLAGS.items())]
    if rows:
        yield "| | |\n|---|---|"
        for flags, meaning in rows:
            yield f"| `{_cell(flags)}` | {_cell(meaning)} |"
        yield ""
    examples = re.findall(r"^\s*\$ (.+)$", (command.epilog or "").replace("\\[", "["), re.MULTILINE)
    if examples:
        yield "```bash\n" + "\n".join(examples) + "\n```\n"


def _platform_flag(flag: tuple[str, Mapping[str, Any]]) -> tuple[str, str]:
    """One of the offline platform's own: `hands up` passes them on."""
    name, declared = flag
    kind = "|".join(declared.get("choices", ())) or declared["type"].__name__.lower()
    default = f" [default: {declared['default']}]" if declared.get("default") else ""
    return f"{name} <{kind}>", declared["help"] + default


def _plain(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|").replace("<", "‹").replace(">", "›")
