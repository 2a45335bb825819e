"""`hands COMMAND`, which is `python -m infra.cli COMMAND`: the one command line, and what `make` calls.

Names, flags and help are declared in infra/cli/commands/; each command imports its SDKs itself, so `--help` is quick
(tests/infra/cli/test_command_line.py).
"""

from __future__ import annotations

import atexit
import gc
import sys
from typing import Annotated, Any, Final

import typer

from infra.cli.commands import checking, deploying, fleet, offline, racing, server_sandbox, serving, sessions
from infra.cli.edge import EXIT_CODES
from infra.cli.options import PROGRAM

PARTS: Final = (sessions, racing, fleet, serving, server_sandbox, deploying, checking, offline)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serverless hands for Claude Managed Agents: drive sessions, serve them, and look after their sandboxes.",
    epilog=f"{EXIT_CODES}\n\nStart here: make demo (everything on this machine, no key).",
)
for part in PARTS:
    app.add_typer(part.app)


def _say_version(wanted: bool) -> None:
    if wanted:
        from infra.cli.certified import own_version

        print(PROGRAM, own_version())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="say which this is, and end")
    ] = False,
) -> None: ...


def keep_only(name: str) -> None:
    """Forget the other commands where this is the name of one: to make all is a third of what a short one takes."""

    def named(found: list[Any]) -> list[Any]:
        return [each for each in found if each.name == name]

    kept = [(part.app, named(part.app.registered_commands), named(part.app.registered_groups)) for part in PARTS]
    if any(commands or groups for _, commands, groups in kept):
        for each, commands, groups in kept:
            each.registered_commands, each.registered_groups = commands, groups


def main() -> None:
    """The entry point; ends the process."""
    # At its end an interpreter collects once more: of the SDKs' objects that is 0.4 s of a core, for nothing.
    atexit.register(gc.freeze)
    keep_only(sys.argv[1] if len(sys.argv) > 1 else "")
    app(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
