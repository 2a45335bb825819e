"""Each flag that more than one command has, written once; and how a command is declared."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

PROGRAM: Final = "hands"
SESSIONS: Final = "Sessions"
SEEING: Final = "Seeing and steering"
SERVING: Final = "Serving"
SERVER_SANDBOX: Final = "The server in a sandbox"
DEPLOYING: Final = "Deploying"
OFFLINE: Final = "On this machine, without keys"
CHECKING: Final = "Setting up and checking"


class IsolationLevel(StrEnum):
    """How the offline platform keeps its sandboxes apart (infra/local/tensorlake/isolation.py)."""

    AUTO = "auto"
    OVERLAY = "overlay"
    COPY = "copy"
    PLAIN = "plain"


AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, for programs")]
DryRun = Annotated[bool, typer.Option("--dry-run", envvar="DRY_RUN", help="print what would be done; do nothing")]
FunctionsUrl = Annotated[
    str, typer.Option("--url", envvar="FUNCTIONS_URL", help="served functions; without it: in this process")
]
IsolationOption = Annotated[IsolationLevel, typer.Option("--isolation", help="how sandboxes are kept apart")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="go on until ctrl-C")]

Watch = Annotated[bool, typer.Option("--watch", "-w", help="live, until ctrl-C")]
SessionArgument = Annotated[str, typer.Argument(metavar="SESSION", envvar="HANDS_SESSION", help="a session's id")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]

Command = Callable[..., Any]


def group(help_text: str) -> typer.Typer:
    return typer.Typer(no_args_is_help=True, help=help_text)


def command(app: typer.Typer, name: str, panel: str, *examples: str, **more: Any) -> Callable[[Command], Command]:
    """Declares a command. `examples`: command lines without the program's name, shown below its help."""
    shown = "\n\n".join(f"$ hands {example}".replace("[", "\\[") for example in examples)
    return app.command(name, rich_help_panel=panel, epilog=f"Examples:\n\n{shown}" if shown else None, **more)
