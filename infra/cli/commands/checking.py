"""Commands that prepare what a session needs, and that check it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from infra.cli.edge import edge, finish, load
from infra.cli.options import CHECKING, AsJson, command

app = typer.Typer()


@command(app, "agent", CHECKING, "agent 'My agent'", "agent 'My agent' --model claude-sonnet-4-6")
def agent(
    name: Annotated[str, typer.Argument(envvar="HANDS_AGENT_NAME", help="its name")] = "Managed Agent",
    model: Annotated[str | None, typer.Option(help="model id")] = None,
    system: Annotated[str | None, typer.Option(help="system prompt")] = None,
) -> None:
    """Create an agent with the sandbox tools and print its id."""
    from infra.cli.agents import create

    with edge():
        finish(create(load(), name, model=model, system=system))


@command(app, "build", CHECKING, "build")
def build() -> None:
    """Build and register the image of the session sandboxes."""
    from infra.cli.build import build as build_image

    with edge():
        raise typer.Exit(build_image(load()))


@command(app, "doctor", CHECKING, "doctor", "doctor --no-probe --json", "doctor --url https://functions.example.com")
def doctor(
    url: Annotated[str, typer.Option(help="the webhook's address; default WEBHOOK_URL, then FUNCTIONS_URL")] = "",
    as_json: AsJson = False,
    probe: Annotated[bool, typer.Option(help="make a sandbox and look at it from inside")] = True,
) -> None:
    """Check everything that a session needs; says what is wrong and how to mend it."""
    from infra.cli.doctor.command import Options, run

    with edge():
        raise typer.Exit(run(os.environ, Options(url.strip(), as_json, probe)))
