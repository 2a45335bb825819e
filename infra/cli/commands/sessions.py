"""Commands about sessions. Each imports what it needs itself: `--help` stays quick."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.cli.edge import edge, finish, load
from infra.cli.options import SESSIONS, command

app = typer.Typer()


@command(app, "session", SESSIONS, "session 'list /workspace'", "session --session sesn_01H2...")
def session(
    prompt: Annotated[str, typer.Argument(envvar="HANDS_PROMPT", help="the message; empty only watches")] = "",
    session_id: Annotated[str, typer.Option("--session", envvar="HANDS_SESSION", help="go on with this one")] = "",
) -> None:
    """Start a session, or go on with one, and watch it until its turn ends."""
    from infra.cli.session.command import Screen, run

    with edge():
        finish(run(load(), prompt.strip(), session_id.strip(), Screen()))
