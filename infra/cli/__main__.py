"""`python -m infra.cli COMMAND`: what `make` calls. Each command imports its SDKs itself: `--help` stays quick."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from infra.cli import environ
from shared.errors import HandsError

EXIT_NOT_CONFIGURED = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Drive and serve sessions."
)


@app.command()
def session(
    prompt: Annotated[str, typer.Argument(envvar="HANDS_PROMPT", help="the message; empty only watches")] = "",
    session_id: Annotated[str, typer.Option("--session", envvar="HANDS_SESSION", help="go on with this one")] = "",
) -> None:
    """Start a session, or go on with one, and watch it until its turn ends."""
    from infra.cli.session.command import Screen, run

    with _edge():
        _finish(run(_load(), prompt.strip(), session_id.strip(), Screen()))


@app.command()
def agent(
    name: Annotated[str, typer.Argument(envvar="HANDS_AGENT_NAME", help="its name")] = "Managed Agent",
    model: Annotated[str | None, typer.Option(help="model id")] = None,
    system: Annotated[str | None, typer.Option(help="system prompt")] = None,
) -> None:
    """Create an agent with the sandbox tools and print its id."""
    from infra.cli.agents import create

    with _edge():
        _finish(create(_load(), name, model=model, system=system))


@app.command()
def build() -> None:
    """Build and register the image of the session sandboxes."""
    from infra.cli.build import build as build_image

    with _edge():
        raise typer.Exit(build_image(_load()))


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 5051,
    host: Annotated[str | None, typer.Option(help="default: every address; offline 127.0.0.1")] = None,
) -> None:
    """Serve the functions: webhook, tick and fork."""
    from infra.cli.serve import serve as serve_functions

    with _edge():
        raise typer.Exit(serve_functions(_load(), host, port))


@app.command()
def poll() -> None:
    """Serve sessions from this machine by polling the queue; needs no public address."""
    from infra.cli.poll import run

    with _edge():
        _finish(run(_load()))


@app.command()
def tick(
    url: Annotated[str, typer.Option(envvar="FUNCTIONS_URL", help="served functions; without it: in process")] = "",
) -> None:
    """One pass of poll_tick; prints its report."""
    from infra.cli.tick import run

    with _edge():
        _finish(run(_load(), url))


@app.command()
def build_webhook() -> None:
    """Build and register the image of the server that lives in a sandbox."""
    from infra.cli.webhook_sandbox import build as build_server

    with _edge():
        raise typer.Exit(build_server(_load()))


@app.command()
def webhook_sandbox() -> None:
    """Get or create the server's sandbox and bring it to this checkout's code, settings and keys."""
    from infra.cli.webhook_sandbox import up

    with _edge():
        raise typer.Exit(up(_load()))


@app.command()
def webhook_sandbox_status(as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False) -> None:
    """How the server's sandbox fares; wakes nothing."""
    from infra.cli.webhook_sandbox import status

    with _edge():
        raise typer.Exit(status(_load(), as_json))


@app.command()
def webhook_sandbox_logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="until ctrl-C; keeps it awake")] = False,
    wake: Annotated[bool, typer.Option(help="wake it where it sleeps")] = False,
) -> None:
    """The server's log."""
    from infra.cli.webhook_sandbox import logs

    with _edge():
        raise typer.Exit(logs(_load(), follow, wake))


@app.command()
def webhook_sandbox_rm() -> None:
    """End the server's sandbox. Sessions and their sandboxes go on."""
    from infra.cli.webhook_sandbox import remove

    with _edge():
        raise typer.Exit(remove(_load()))


@app.command()
def fork(
    file: Annotated[str, typer.Argument(envvar="HANDS_RACE_FILE", help="YAML or JSON; - is standard input")] = "",
    session: Annotated[str | None, typer.Option(envvar="HANDS_SESSION", help="start from a session's files")] = None,
    sandbox: Annotated[str | None, typer.Option(help="or from a sandbox, by id or name")] = None,
    snapshot: Annotated[str | None, typer.Option(help="or from a snapshot")] = None,
    image: Annotated[str | None, typer.Option(help="or from a registered image")] = None,
    tries: Annotated[list[str] | None, typer.Option("--try", help="a branch, 'name=command'; repeat it")] = None,
    score: Annotated[str | None, typer.Option(help="the last number that this command prints is a score")] = None,
    lower: Annotated[bool, typer.Option("--lower", help="the lower score is the better one")] = False,
    accept: Annotated[float | None, typer.Option(help="a score that ends the race")] = None,
    min_score: Annotated[float | None, typer.Option(help="a worse score has failed")] = None,
    setup: Annotated[str | None, typer.Option(help="runs once, before the checkpoint")] = None,
    timeout: Annotated[float | None, typer.Option(help="of each branch, in seconds")] = None,
    deadline: Annotated[float | None, typer.Option(help="of the whole race, in seconds")] = None,
    parallel: Annotated[int | None, typer.Option(help="branches at once")] = None,
    promote: Annotated[str | None, typer.Option(help="none, workspace, snapshot or keep")] = None,
    on_conflict: Annotated[str | None, typer.Option(help="refuse, theirs or ours")] = None,
    keep: Annotated[str | None, typer.Option(help="keep the winner's sandbox, as keep-NAME")] = None,
    artifact: Annotated[list[str] | None, typer.Option(help="files to report, as a glob; repeat it")] = None,
    environment: Annotated[str | None, typer.Option(help="which, where several are served")] = None,
    dry_run: Annotated[bool, typer.Option(help="look at the source and begin nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the report alone on standard output")] = False,
    report: Annotated[Path | None, typer.Option(help="write the report as a page of HTML")] = None,
    url: Annotated[str, typer.Option(envvar="FUNCTIONS_URL", help="served functions; without it: in process")] = "",
) -> None:
    """Race candidates from one state and keep the best. Flags win over the file. Exit code 0 only with a winner."""
    from infra.cli.fork.command import Options, run
    from infra.cli.fork.request import Flags, read_request

    flags = Flags(
        session=session or None,
        sandbox=sandbox,
        snapshot=snapshot,
        image=image,
        environment=environment,
        setup=setup,
        tries=tries or (),
        score=score,
        lower=lower,
        accept=accept,
        min_score=min_score,
        timeout=timeout,
        deadline=deadline,
        parallel=parallel,
        promote=promote,
        on_conflict=on_conflict,
        keep=keep,
        artifacts=artifact or (),
        dry_run=dry_run,
    )
    with _edge():
        request = read_request(file, flags)
        _finish(run(_load(served_elsewhere=bool(url.strip())), request, Options(url.strip(), as_json, report)))


@app.command()
def repair() -> None:
    """One repair pass, with the API key for the events that the environment key may not send."""
    from infra.cli.repair import run

    with _edge():
        _finish(run(_load()))


@app.command()
def doctor(
    url: Annotated[str, typer.Option(help="the webhook's address; default WEBHOOK_URL, then FUNCTIONS_URL")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    probe: Annotated[bool, typer.Option(help="make a sandbox and look at it from inside")] = True,
) -> None:
    """Check everything that a session needs; says what is wrong and how to mend it."""
    from infra.cli.doctor.command import Options, run

    with _edge():
        raise typer.Exit(run(os.environ, Options(url.strip(), as_json, probe)))


def _load(*, served_elsewhere: bool = False) -> environ.Loaded:
    """`served_elsewhere`: the functions at an address have the services; here no key is needed."""
    try:
        loaded = environ.load(os.environ)
    except environ.NoServices:
        if not served_elsewhere:
            raise
        return environ.Loaded(dict(os.environ), None)
    environ.apply(loaded, os.environ)
    return loaded


def _finish(work: Coroutine[Any, Any, int]) -> None:
    raise typer.Exit(asyncio.run(work))


@contextlib.contextmanager
def _edge() -> Iterator[None]:
    """Errors that are meant for people become one text and an exit code; a bug keeps its traceback."""
    from infra.cli.session.follow import FeedBroken, FeedRefused

    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (FeedBroken, FeedRefused) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    except HandsError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(EXIT_NOT_CONFIGURED) from None


if __name__ == "__main__":
    app()
