"""Commands that need no key: the demos and the offline platform."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from infra.cli.edge import edge
from infra.cli.options import OFFLINE, IsolationLevel, IsolationOption, command, group

app = typer.Typer()
_demo = group("Show what this is, on this machine alone: nothing is set up before, nothing is left behind.")
app.add_typer(_demo, name="demo", rich_help_panel=OFFLINE)


@command(_demo, "session", OFFLINE, "demo session")
def demo_session(isolation: IsolationOption = IsolationLevel.AUTO) -> None:
    """A whole session from start to end, in seconds."""
    from infra.cli.demos.session import run

    with edge():
        raise typer.Exit(run(isolation.value))


@command(_demo, "sandbox", OFFLINE, "demo sandbox")
def demo_sandbox(isolation: IsolationOption = IsolationLevel.AUTO) -> None:
    """The same with the functions in a sandbox that sleeps, wakes and sleeps again."""
    from infra.cli.demos.sandbox import run

    with edge():
        raise typer.Exit(run(isolation.value))


@command(_demo, "race", OFFLINE, "demo race --report race.html")
def demo_race(
    isolation: IsolationOption = IsolationLevel.AUTO,
    report: Annotated[Path | None, typer.Option(help="write the race's report as a page of HTML")] = None,
) -> None:
    """Five fixes of a failing test race in copies of a session's sandbox; the best goes back."""
    from infra.cli.demos.race import run

    with edge():
        raise typer.Exit(run(isolation.value, report))


@command(_demo, "two", OFFLINE, "demo two")
def demo_two(isolation: IsolationOption = IsolationLevel.AUTO) -> None:
    """Two environments under one copy of the functions; one is in trouble, the other does not notice."""
    from infra.cli.demos.two import run

    with edge():
        raise typer.Exit(run(isolation.value))


@command(
    app,
    "up",
    OFFLINE,
    "up",
    "up --claude-port 8700 --tensorlake-port 8701",
    # The platform's own flags are declared where it is (infra/local/__main__.py), `--help` among them.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def up(context: typer.Context) -> None:
    """The offline platform, until ctrl-C."""
    from infra.cli import network
    from infra.local.__main__ import main

    with edge():
        network.prepare(os.environ, ())  # all of it is on this machine
        raise typer.Exit(main(context.args))
