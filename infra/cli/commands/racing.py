"""The command that races candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infra.cli.edge import edge, finish, load
from infra.cli.options import SESSIONS, FunctionsUrl, command

app = typer.Typer()


@command(
    app,
    "fork",
    SESSIONS,
    "fork race.yaml --report race.html",
    "fork --session sesn_01H2... --try 'a=sh a.sh' --try 'b=sh b.sh' --score 'sh bench.sh' --accept 0.9",
)
def fork(
    file: Annotated[str, typer.Argument(envvar="HANDS_RACE_FILE", help="YAML or JSON; - is standard input")] = "",
    session: Annotated[str | None, typer.Option(envvar="HANDS_SESSION", help="start from a session's files")] = None,
    sandbox: Annotated[str | None, typer.Option(help="or from a sandbox, by id or name")] = None,
    snapshot: Annotated[str | None, typer.Option(help="or from a snapshot")] = None,
    image: Annotated[str | None, typer.Option(help="or from a registered image")] = None,
    tries: Annotated[list[str] | None, typer.Option("--try", help="a branch, 'name=command'; repeat it")] = None,
    score: Annotated[str | None, typer.Option(help="this command scores: $SCORE_FILE, or its last line")] = None,
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
    diff: Annotated[bool, typer.Option("--diff", help="report what each branch changed, as a patch")] = False,
    artifact: Annotated[list[str] | None, typer.Option(help="files to report, as a glob; repeat it")] = None,
    environment: Annotated[str | None, typer.Option(help="which, where several are served")] = None,
    dry_run: Annotated[bool, typer.Option(help="look at the source and begin nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="the report alone on standard output")] = False,
    report: Annotated[Path | None, typer.Option(help="write the report as a page of HTML")] = None,
    begin: Annotated[bool, typer.Option("--async", help="begin it there and print its id")] = False,
    wait_for: Annotated[str, typer.Option("--wait", metavar="ID", help="wait for a race that was begun so")] = "",
    cancel_one: Annotated[str, typer.Option("--cancel", metavar="ID", help="end a race that was begun so")] = "",
    key: Annotated[str, typer.Option(help="an Idempotency-Key: asked twice, there is one race")] = "",
    url: FunctionsUrl = "",
) -> None:
    """Race candidates from one state and keep the best. Flags win over the file. Exit code 0 only with a winner."""
    from infra.cli.fork.command import ForkOptions, cancel, run, wait
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
        diff=diff,
        dry_run=dry_run,
    )
    options = ForkOptions(url.strip(), as_json, report, key, begin)
    with edge():
        request = None if cancel_one or (wait_for and not file) else read_request(file, flags)
        loaded = load(served_elsewhere=bool(options.url))
        if cancel_one:
            finish(cancel(loaded, cancel_one, options))
        elif wait_for:
            finish(wait(loaded, wait_for, request, options))
        elif request is not None:
            finish(run(loaded, request, options))
