"""Commands that prepare what a session needs, and that check it."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from infra.cli.edge import edge, finish, load, load_files
from infra.cli.options import CHECKING, AsJson, Watch, Yes, command

app = typer.Typer()


@command(app, "agent", CHECKING, "agent 'My agent'", "agent 'My agent' --model claude-sonnet-4-6")
def agent(
    name: Annotated[str, typer.Argument(envvar="HANDS_AGENT_NAME", help="its name")] = "Managed Agent",
    model: Annotated[str | None, typer.Option(help="model id")] = None,
    system: Annotated[str | None, typer.Option(help="system prompt")] = None,
    update: Annotated[bool, typer.Option("--update", help="declare your own tools on an agent that is there")] = False,
) -> None:
    """Create an agent with the sandbox tools and print its id; says what differs on one that is there."""
    from infra.cli.agents import create

    with edge():
        finish(create(load(), name, model=model, system=system, update=update))


@command(app, "tools", CHECKING, "tools")
def tools() -> None:
    """List the tools of your own: files and MCP servers, checked as `build` checks them."""
    from infra.cli.tools import say_tools

    with edge():
        raise typer.Exit(say_tools(load_files()))


@command(app, "tool-test", CHECKING, 'tool-test add --input \'{"a": 1, "b": 2}\'', "tool-test add --watch")
def tool_test(
    name: Annotated[str, typer.Argument(envvar="HANDS_TOOL", help="the tool's name")],
    given: Annotated[str, typer.Option("--input", envvar="HANDS_TOOL_INPUT", help="its input, a JSON object")] = "{}",
    watch: Watch = False,
) -> None:
    """Call a tool of your own on this machine, as a worker calls it; --watch calls it again after each change."""
    from infra.cli.tools import try_tool

    with edge():
        raise typer.Exit(try_tool(load_files(), name, given, watch=watch))


@command(app, "build", CHECKING, "build")
def build() -> None:
    """Build and register the image of the session sandboxes."""
    from infra.cli.build import build as build_image

    with edge():
        raise typer.Exit(build_image(load()))


@command(app, "prepare", CHECKING, "prepare", "prepare --fresh", "prepare --environment env_...")
def prepare(
    environment: Annotated[str, typer.Option(envvar="HANDS_ENVIRONMENT", help="which, where several are served")] = "",
    fresh: Annotated[bool, typer.Option(help="make it anew, after a new image for instance")] = False,
) -> None:
    """Run the set-up of each environment, or of one, once and keep it: new sessions start from there."""
    from infra.cli.prepare import run

    with edge():
        finish(run(load(), environment.strip(), fresh=fresh))


@command(app, "doctor", CHECKING, "doctor", "doctor --no-probe --json", "doctor --url https://functions.example.com")
def doctor(
    url: Annotated[str, typer.Option(help="the webhook's address; default WEBHOOK_URL, then FUNCTIONS_URL")] = "",
    as_json: AsJson = False,
    probe: Annotated[bool, typer.Option(help="make a sandbox and look at it from inside")] = True,
) -> None:
    """Check everything that a session needs; says what is wrong and how to mend it."""
    from infra.cli.doctor.command import DoctorOptions, run

    with edge():
        raise typer.Exit(run(os.environ, DoctorOptions(url.strip(), as_json, probe)))


@command(app, "certify", CHECKING, "certify", "certify --only queue --yes", "certify --rest --json")
def certify(
    only: Annotated[list[str] | None, typer.Option(help="a check's id or its beginning; may be given again")] = None,
    rest: Annotated[
        bool, typer.Option("--rest", help="what the report has not of this code, or was interrupted")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    write: Annotated[bool, typer.Option(help="write the report into docs/certified")] = True,
    quota: Annotated[int, typer.Option(help="how many sandboxes your account may have: see how one more fares")] = 0,
) -> None:
    """Try what this project assumes of both services against those of the settings; for cents, with your keys."""
    from infra.cli.certify.command import CertifyOptions, run

    with edge():
        raise typer.Exit(run(os.environ, CertifyOptions(tuple(only or ()), rest, quota, yes, as_json, write)))
