"""Commands that look at what runs and steer it. They need the two services alone, no server of ours."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from infra.cli.edge import edge, finish, load
from infra.cli.options import SEEING, AsJson, Follow, SessionArgument, Watch, Yes, command

app = typer.Typer()


class By(StrEnum):
    """What `cost` sums up."""

    SESSION = "session"
    ENVIRONMENT = "environment"
    DAY = "day"


@command(app, "ps", SEEING, "ps", "ps -a --json | jq '.sessions[] | select(.problem != \"\")'", "ps -w")
def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="archived and terminated ones, too")] = False,
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    """Every session: what it does, its work item, its sandbox, what is wrong. Exit code 1: not all could be seen."""
    from infra.cli.fleet.ps import run

    with edge():
        finish(run(load(), everything=everything, as_json=as_json, watch=watch))


@command(app, "show", SEEING, "show sesn_01H2...", "show sesn_01H2... --json")
def show(session: SessionArgument, as_json: AsJson = False) -> None:
    """All that is known of a session: calls, work items, sandbox, workers, races, files, alarms. Wakes nothing."""
    from infra.cli.fleet.one import show as show_session

    with edge():
        finish(show_session(load(), session, as_json=as_json))


@command(app, "logs", SEEING, "logs sesn_01H2...", "logs sesn_01H2... -f")
def logs(
    session: SessionArgument,
    follow: Follow = False,
    wake: Annotated[bool, typer.Option(help="wake it where it sleeps")] = False,
) -> None:
    """What the session's workers wrote, the earlier ones first: log, set-up, what tools said.

    The first 2 MB of each worker. -f goes on with workers that start later, and wakes no sandbox that falls asleep.
    """
    from infra.cli.fleet.logs import logs as show_logs

    with edge():
        finish(show_logs(load(), session, follow=follow, wake=wake))


@command(
    app,
    "run",
    SEEING,
    "run sesn_01H2... -- ls -l /workspace",
    "run sesn_01H2... --timeout 600 -- sh -c 'make test 2>&1 | tail'",
)
def run_command(
    session: SessionArgument,
    words: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="the program and its arguments")],
    timeout: Annotated[float, typer.Option(min=1.0, help="in seconds; then it is ended")] = 120.0,
) -> None:
    """Run a command in the session's sandbox, as the agent's user. Wakes a sleeper and keeps it awake meanwhile.

    ctrl-C ends it with all that it started; a second ctrl-C does not wait for that.
    Exit code: the command's own, 128 + n after signal n; 1 where it did not run, 130 after ctrl-C.
    """
    from infra.cli.fleet.run import run

    with edge():
        finish(run(load(), session, words, timeout=timeout))


@command(
    app,
    "cp",
    SEEING,
    "cp sesn_01H2...:out/report.csv .",
    "cp data/ sesn_01H2...:/workspace/data",
    "cp - sesn_01H2...:shop.sql < shop.sql",
)
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", envvar="HANDS_FROM", help="a path, or sesn_...:/path")],
    sink: Annotated[str, typer.Argument(metavar="TO", envvar="HANDS_TO", help="a path, or sesn_...:/path")],
) -> None:
    """Copy files and folders between this machine and a session's sandbox. Wakes a sleeper, keeps it awake meanwhile.

    A path without / begins in the workspace; - is standard input or output. A folder's copy is TO itself, or lies in TO
    where that ends with a slash. The same command again goes on where it was broken off.
    """
    from infra.cli.fleet.copy import copy as copy_files

    with edge():
        finish(copy_files(load(), source, sink))


@command(app, "ls", SEEING, "ls sesn_01H2...:", "ls sesn_01H2...:/workspace/out --json")
def list_files(
    place: Annotated[str, typer.Argument(metavar="SESSION:PATH", envvar="HANDS_FROM", help="sesn_...:/path")],
    as_json: AsJson = False,
) -> None:
    """What a folder in a session's sandbox holds; without a path the workspace. Wakes a sleeper."""
    from infra.cli.fleet.copy import entries

    with edge():
        finish(entries(load(), place, as_json=as_json))


@command(app, "cat", SEEING, "cat sesn_01H2...:out/report.csv")
def cat(
    place: Annotated[str, typer.Argument(metavar="SESSION:PATH", envvar="HANDS_FROM", help="sesn_...:/path")],
) -> None:
    """Print a file of a session's sandbox. Wakes a sleeper."""
    from infra.cli.fleet.copy import show as show_file

    with edge():
        finish(show_file(load(), place))


@command(app, "shell", SEEING, "shell sesn_01H2...")
def shell(session: SessionArgument) -> None:
    """A terminal in the session's sandbox, as the agent's user. Wakes a sleeper and keeps it awake while you are in.

    Exit code: the shell's own, 128 + n after signal n; 1 where there was none.
    """
    from infra.cli.fleet.shell import run

    with edge():
        finish(run(load(), session))


@command(app, "stop", SEEING, "stop sesn_01H2...", "stop sesn_01H2... --yes")
def stop(session: SessionArgument, yes: Yes = False) -> None:
    """Stop the session's work: the worker winds down, a running command is ended, its result may be lost.

    What the agent has left running in the background goes on.
    """
    from infra.cli.fleet import actions

    with edge():
        finish(actions.run(load(), session, actions.stop, yes=yes))


@command(app, "interrupt", SEEING, "interrupt sesn_01H2...")
def interrupt(session: SessionArgument) -> None:
    """End the session's turn, and a command that runs. It keeps its sandbox and waits for a message.

    What the agent has left running in the background goes on. A tool of your own goes on for TOOL_SECONDS at most.
    """
    from infra.cli.fleet import actions

    with edge():
        finish(actions.run(load(), session, actions.interrupt, yes=True))


@command(app, "archive", SEEING, "archive sesn_01H2...", "archive sesn_01H2... --yes")
def archive(session: SessionArgument, yes: Yes = False) -> None:
    """Archive the session: no message any more; the next tick ends its sandbox with the files in it."""
    from infra.cli.fleet import actions

    with edge():
        finish(actions.run(load(), session, actions.archive, yes=yes))


@command(app, "rm", SEEING, "rm sesn_01H2...", "rm sesn_01H2... --yes")
def remove(session: SessionArgument, yes: Yes = False) -> None:
    """Delete the session with its history, and end its sandbox with the files in it."""
    from infra.cli.fleet import actions

    with edge():
        finish(actions.run(load(), session, actions.remove, yes=yes))


@command(app, "keep", SEEING, "keep sesn_01H2...")
def keep(session: SessionArgument, yes: Yes = False) -> None:
    """Keep the session's sandbox for yourself: nothing here ends it; the session's next turn gets a fresh one."""
    from infra.cli.fleet import actions

    with edge():
        finish(actions.run(load(), session, actions.keep, yes=yes))


@command(app, "suspend", SEEING, "suspend sesn_01H2...")
def suspend(session: SessionArgument) -> None:
    """Put the session's sandbox to sleep, with its files and programs. The next message wakes it."""
    from infra.cli.fleet import actions

    with edge():
        finish(actions.run(load(), session, actions.suspend, yes=True))


@command(app, "resume", SEEING, "resume sesn_01H2...")
def resume(session: SessionArgument) -> None:
    """Wake the session's sandbox. It costs until a tick finds nobody in it, or its idle time-out is over."""
    from infra.cli.fleet import actions

    with edge():
        finish(actions.run(load(), session, actions.resume, yes=True))


@command(
    app,
    "confirm",
    SEEING,
    "confirm sesn_01H2...",
    "confirm sesn_01H2... --allow",
    "confirm sesn_01H2... sevt_01... --deny 'not on prod'",
)
def confirm(
    session: SessionArgument,
    call: Annotated[str, typer.Argument(help="one call's id; without it each that waits")] = "",
    allow: Annotated[bool, typer.Option("--allow", help="let it run")] = False,
    deny: Annotated[
        str | None, typer.Option(envvar="HANDS_DENY", help="refuse it, with the reason for the agent")
    ] = None,
) -> None:
    """Answer the tool calls that wait for a person: asked at the terminal, or by a flag."""
    from infra.cli.fleet.confirm import run
    from infra.cli.session.confirmations import ConfirmationAnswer
    from shared.errors import SettingsError

    with edge():
        if allow and deny is not None:
            raise SettingsError("say --allow or --deny, not both")
        answer = ConfirmationAnswer(True) if allow else ConfirmationAnswer(False, deny) if deny is not None else None
        finish(run(load(), session, call, answer))


@command(app, "alarms", SEEING, "alarms", "alarms --json")
def alarms(as_json: AsJson = False) -> None:
    """What a tick would raise and repair now, with the way out. Changes nothing. Exit code 1: something is wrong."""
    from infra.cli.fleet.alarms import run

    with edge():
        finish(run(load(), as_json=as_json))


@command(app, "top", SEEING, "top", "top --once", "top --json")
def top(
    as_json: AsJson = False,
    once: Annotated[bool, typer.Option("--once", help="once, and not live")] = False,
) -> None:
    """Queues, sandboxes and problems, live on a terminal."""
    from infra.cli.fleet.top import run

    with edge():
        finish(run(load(), as_json=as_json, once=once))


@command(app, "cost", SEEING, "cost", "cost --by day --json")
def cost(
    by: Annotated[By, typer.Option(help="what is summed up")] = By.SESSION,
    as_json: AsJson = False,
) -> None:
    """Tokens, running time and list price of sessions, and what their sandboxes used and cost where it may be read."""
    from infra.cli.fleet.cost import run

    with edge():
        finish(run(load(), by=by.value, as_json=as_json))


@command(app, "ui", SEEING, "ui", "ui --act", "ui --ui-host 0.0.0.0 --ui-port 8080")
def ui(
    port: Annotated[int, typer.Option("--ui-port", help="0 takes a free one")] = 5061,
    host: Annotated[
        str, typer.Option("--ui-host", help="another than this machine's own asks for FUNCTIONS_TOKEN")
    ] = "127.0.0.1",
    act: Annotated[bool, typer.Option("--act", help="with buttons; without it the page only reads")] = False,
) -> None:
    """The same as a page: sessions, one session's timeline, queues, races and alarms, live, until ctrl-C."""
    from infra.cli.ui.command import run

    with edge():
        raise typer.Exit(run(load(), host=host, port=port, act=act))
