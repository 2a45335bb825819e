"""Commands about sessions. Each imports what it needs itself: `--help` stays quick."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from infra.cli.edge import edge, finish, load
from infra.cli.options import SESSIONS, AsJson, command

app = typer.Typer()


@command(
    app,
    "session",
    SESSIONS,
    "session 'list /workspace'",
    "session --prompt-file task.md --title 'nightly build' --meta repo=https://git.example/team/app --meta ref=v2",
    "session --session sesn_01H2...",
    "session --json 'run the tests' | jq -r .type",
)
def session(
    prompt: Annotated[str, typer.Argument(envvar="HANDS_PROMPT", help="the message; empty only watches")] = "",
    session_id: Annotated[str, typer.Option("--session", envvar="HANDS_SESSION", help="go on with this one")] = "",
    prompt_file: Annotated[
        str, typer.Option(envvar="HANDS_PROMPT_FILE", help="a file with the message, of any size; - is standard input")
    ] = "",
    title: Annotated[str, typer.Option(envvar="HANDS_TITLE", help="of a new session")] = "",
    meta: Annotated[list[str] | None, typer.Option(help="name=value for a new session's metadata; repeat it")] = None,
    agent: Annotated[
        str, typer.Option(envvar="HANDS_AGENT", help="id of a new session's agent; else ANTHROPIC_AGENT_ID")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Start a session, or go on with one, and watch it until its turn ends. Exit code 0 when it ended well.

    A tool that waits for a person's word is asked for at the terminal. With --json each event is one line, as the
    service sent it; remarks go to standard error.
    """
    from infra.cli.session.command import Request, run
    from infra.cli.session.prompt import read_metadata, read_prompt, read_title
    from infra.cli.session.screen import JsonScreen, Screen

    with edge():
        request = Request(
            read_prompt(prompt, prompt_file),
            session_id.strip(),
            read_title(title),
            read_metadata(meta or (), os.environ.get("HANDS_META", "")),
            agent.strip(),
        )
        finish(run(load(), request, JsonScreen() if as_json else Screen()))
