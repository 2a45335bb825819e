"""Commands that serve sessions, or do one pass of what a server does by itself."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.cli.edge import edge, finish, load
from infra.cli.options import SERVING, FunctionsUrl, command

app = typer.Typer()


@command(app, "serve", SERVING, "serve", "serve --port 8080 --host ::1", "serve --ui")
def serve(
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 5051,
    host: Annotated[
        str, typer.Option(envvar="HANDS_HOST", help="default: every address; offline this machine alone")
    ] = "",
    ui: Annotated[
        bool, typer.Option("--ui", envvar="HANDS_UI", help="the page as well, at /ui/ and under FUNCTIONS_TOKEN")
    ] = False,
) -> None:
    """Serve the functions: webhook, tick and fork."""
    from infra.cli.serve import serve as serve_functions

    with edge():
        raise typer.Exit(serve_functions(load(), host.strip() or None, port, page=ui))


@command(app, "poll", SERVING, "poll")
def poll() -> None:
    """Serve sessions from this machine by polling the queue; needs no public address."""
    from infra.cli.poll import run

    with edge():
        finish(run(load()))


@command(app, "tick", SERVING, "tick", "tick --url https://functions.example.com")
def tick(url: FunctionsUrl = "") -> None:
    """One pass of poll_tick; prints its report."""
    from infra.cli.tick import run

    with edge():
        finish(run(load(), url))


@command(app, "repair", SERVING, "repair")
def repair() -> None:
    """One repair pass, with the API key for the events that the environment key may not send."""
    from infra.cli.repair import run

    with edge():
        finish(run(load()))
