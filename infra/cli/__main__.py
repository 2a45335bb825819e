"""`hands COMMAND`, which is `python -m infra.cli COMMAND`: the one command line, and what `make` calls.

Names, flags and help are declared in infra/cli/commands/; each command imports its SDKs itself, so `--help` is quick
(tests/infra/cli/test_command_line.py).
"""

from __future__ import annotations

import atexit
import gc

import typer

from infra.cli.commands import checking, deploying, fleet, offline, racing, server_sandbox, serving, sessions
from infra.cli.edge import EXIT_CODES

PROGRAM = "hands"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serverless hands for Claude Managed Agents: drive sessions, serve them, and look after their sandboxes.",
    epilog=f"{EXIT_CODES}\n\nStart here: make demo (everything on this machine, no key).",
)
for part in (sessions, racing, fleet, serving, server_sandbox, deploying, checking, offline):
    app.add_typer(part.app)


def main() -> None:
    """The entry point; ends the process."""
    # At its end an interpreter collects once more: of the SDKs' objects that is 0.4 s of a core, for nothing.
    atexit.register(gc.freeze)
    app(prog_name=PROGRAM)


if __name__ == "__main__":
    main()
