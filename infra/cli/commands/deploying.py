"""`deploy` and `undeploy`, one command a cloud."""

from __future__ import annotations

import os

import typer

from infra.cli.edge import edge
from infra.cli.options import DEPLOYING, DryRun, command, group

app = typer.Typer()
_deploy = group("Put the functions into a cloud account of yours.")
_undeploy = group("Remove what deploy made.")
app.add_typer(_deploy, name="deploy", rich_help_panel=DEPLOYING)
app.add_typer(_undeploy, name="undeploy", rich_help_panel=DEPLOYING)


@command(_deploy, "aws", DEPLOYING, "deploy aws --dry-run")
def deploy_aws(dry_run: DryRun = False) -> None:
    """To AWS Lambda (docs/deploy/aws.md)."""
    from infra.cli.deploy.aws import run

    with edge():
        raise typer.Exit(run("deploy", os.environ, dry_run=dry_run))


@command(_undeploy, "aws", DEPLOYING, "undeploy aws")
def undeploy_aws(dry_run: DryRun = False) -> None:
    """From AWS Lambda."""
    from infra.cli.deploy.aws import run

    with edge():
        raise typer.Exit(run("undeploy", os.environ, dry_run=dry_run))


@command(_deploy, "gcp", DEPLOYING, "deploy gcp --dry-run")
def deploy_gcp(dry_run: DryRun = False) -> None:
    """To Cloud Run functions (docs/deploy/gcp.md)."""
    from infra.cli.deploy.gcp import run

    with edge():
        raise typer.Exit(run("deploy", os.environ, dry_run=dry_run))


@command(_undeploy, "gcp", DEPLOYING, "undeploy gcp")
def undeploy_gcp(dry_run: DryRun = False) -> None:
    """From Cloud Run functions."""
    from infra.cli.deploy.gcp import run

    with edge():
        raise typer.Exit(run("undeploy", os.environ, dry_run=dry_run))
