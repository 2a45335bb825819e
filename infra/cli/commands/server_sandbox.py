"""Commands for the server that lives in a sandbox of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.cli.edge import edge, load
from infra.cli.options import SERVER_SANDBOX, AsJson, Follow, command

app = typer.Typer()


@command(app, "build-webhook", SERVER_SANDBOX, "build-webhook")
def build_webhook() -> None:
    """Build and register the image of the server that lives in a sandbox."""
    from infra.cli.webhook_sandbox import build

    with edge():
        raise typer.Exit(build(load()))


@command(app, "webhook-sandbox", SERVER_SANDBOX, "webhook-sandbox")
def webhook_sandbox() -> None:
    """Get or create the server's sandbox and bring it to this checkout's code, settings and keys."""
    from infra.cli.webhook_sandbox import up

    with edge():
        raise typer.Exit(up(load()))


@command(app, "webhook-sandbox-status", SERVER_SANDBOX, "webhook-sandbox-status --json")
def webhook_sandbox_status(as_json: AsJson = False) -> None:
    """How the server's sandbox fares; wakes nothing."""
    from infra.cli.webhook_sandbox import status

    with edge():
        raise typer.Exit(status(load(), as_json))


@command(app, "webhook-sandbox-logs", SERVER_SANDBOX, "webhook-sandbox-logs --follow --wake")
def webhook_sandbox_logs(
    follow: Follow = False,
    wake: Annotated[bool, typer.Option(help="wake it where it sleeps")] = False,
) -> None:
    """The server's log. Following keeps it awake."""
    from infra.cli.webhook_sandbox import logs

    with edge():
        raise typer.Exit(logs(load(), follow, wake))


@command(app, "webhook-sandbox-rm", SERVER_SANDBOX, "webhook-sandbox-rm")
def webhook_sandbox_rm() -> None:
    """End the server's sandbox. Sessions and their sandboxes go on."""
    from infra.cli.webhook_sandbox import remove

    with edge():
        raise typer.Exit(remove(load()))
