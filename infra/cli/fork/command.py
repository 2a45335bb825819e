"""`fork`: a race from a file or flags, watched as it runs.

Exit codes: 0 a branch won (or the race was begun, with --async, or ends, with --cancel), 1 none did, 2 the request or a
setting is wrong, 130 ctrl-C. Ctrl-C cancels the race and waits until what it made has ended; a second one leaves at
once. A race that was left, or died with its process, is ended by the reconciler (docs/races.md), because its sandboxes'
names say until when anybody may want them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from infra.cli.environ import Loaded
from infra.cli.fork import page
from infra.cli.fork.client import (
    NotServed,
    RecordingHost,
    cancel_there,
    is_askers_fault,
    race_here,
    race_there,
    wait_there,
)
from infra.cli.fork.display import RaceDisplay, conclusion, one_line, plain, summary
from infra.cli.fork.request import BadInput
from infra.cli.session.render import Line, LineStyle
from shared.errors import HandsError
from shared.races import events
from shared.races.errors import BadRace, RaceError
from shared.races.report import RaceReport
from shared.races.request import RaceRequest
from shared.secret import Secret
from shared.settings import Settings

EXIT_WON: Final = 0
EXIT_NOT_WON: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130
_PIPE_WIDTH: Final = 140
_LOOKS_A_SECOND: Final = 8
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class ForkOptions:
    """`url`: of served functions; empty runs the race in this process. `page`: where the report goes as HTML. `key` is
    an Idempotency-Key; `begin` does not wait for the race's end."""

    url: str = ""
    as_json: bool = False
    page: Path | None = None
    key: str = ""
    begin: bool = False


@dataclass
class RaceConsole:
    """Who looks on: a row a branch on a terminal, a line an event in a pipe."""

    console: Console
    display: RaceDisplay = field(default_factory=RaceDisplay)

    @property
    def is_live(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def tell(self, event: events.Event) -> None:
        lines = self.display.tell(event)
        if not self.is_live:
            for line in lines:
                self.say(line)

    def say(self, line: Line) -> None:
        self.console.print(Text(line.text, style=line.look.value), soft_wrap=True)

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[], None]]:
        """Shows the race inside the block; what it gives ends that early."""
        if not self.is_live:
            yield lambda: None
            return
        shown = Live(
            get_renderable=self.display.live, console=self.console, refresh_per_second=_LOOKS_A_SECOND, transient=True
        )
        with shown:
            yield shown.stop


async def run(loaded: Loaded, request: RaceRequest, options: ForkOptions, console: RaceConsole | None = None) -> int:
    """Runs the race and shows it; the exit code. Raises SettingsError, SecretUnavailable, BadInput."""
    if options.page is not None:
        _check_page(options.page)
    if (options.key or options.begin) and not options.url:
        raise BadInput("--async and --key are for served functions: set FUNCTIONS_URL, or --url")
    console = console or RaceConsole(console_for_people(on_error=options.as_json))
    host: RecordingHost | None = None
    begun: list[str] = []
    if options.url:
        token = _token(loaded)

        async def there() -> None:
            race_id = await race_there(request, options.url, token, console.tell, key=options.key, begin=options.begin)
            begun.extend([race_id] if race_id else [])

        race: Coroutine[Any, Any, None] = there()
    else:
        settings = Settings.from_environ(loaded.environ)
        host = RecordingHost(settings)
        race = race_here(request, settings, host, console.tell)
    code = await _seen_to_its_end(race, console, lambda: _account(console.display, host, kept=bool(options.key)))
    if code is not None:
        return code
    return _begun(begun[0], options) if begun else _conclude(request, options, console)


async def wait(loaded: Loaded, race_id: str, request: RaceRequest | None, options: ForkOptions) -> int:
    """Waits for a race that was begun with `begin`, and shows its report; the exit code. `request` is what was asked,
    where that is known: a page shows it. Raises SettingsError, SecretUnavailable, BadInput."""
    if not options.url:
        raise BadInput("--wait is for served functions: set FUNCTIONS_URL, or --url")
    if options.page is not None:
        if request is None:
            raise BadInput("--report: with --wait, name the race's file as well")
        _check_page(options.page)
    console = RaceConsole(console_for_people(on_error=options.as_json))
    waiting = wait_there(race_id, options.url, _token(loaded), console.tell)
    code = await _seen_to_its_end(waiting, console, lambda: _remark("stopped waiting; the race goes on"))
    return _conclude(request, options, console) if code is None else code


async def cancel(loaded: Loaded, race_id: str, options: ForkOptions) -> int:
    """Ends a race that was begun with `begin`; the exit code, 0 also where it was over. Raises BadInput."""
    if not options.url:
        raise BadInput("--cancel is for served functions: set FUNCTIONS_URL, or --url")
    try:
        status = await cancel_there(race_id, options.url, _token(loaded))
    except NotServed as error:
        return _not_run(str(error), EXIT_BAD_INPUT if error.asked_wrongly else EXIT_NOT_WON)
    if options.as_json:
        print(json.dumps({"race_id": race_id, "state": status.state}))
    if status.state == "running":
        _remark(f"the race ends; what had finished: hands fork --wait {race_id}")
    else:
        _remark(f"the race was over: {status.state}")
    return EXIT_WON


def _token(loaded: Loaded) -> Secret:
    return Secret("FUNCTIONS_TOKEN", loaded.need("FUNCTIONS_TOKEN", "the token that the served functions know"))


async def _seen_to_its_end(
    race: Coroutine[Any, Any, None], console: RaceConsole, interrupted: Callable[[], None]
) -> int | None:
    """The exit code of a race that has no end to show."""
    try:
        finished = await _watch(race, console)
    except NotServed as error:
        return _not_run(str(error), EXIT_BAD_INPUT if error.asked_wrongly else EXIT_NOT_WON)
    except RaceError as error:
        return _not_run(str(error), EXIT_BAD_INPUT if isinstance(error, BadRace) else EXIT_NOT_WON)
    except HandsError as error:
        return _not_run(str(error), EXIT_BAD_INPUT)
    if finished:
        return None
    interrupted()
    return EXIT_INTERRUPTED


def _begun(race_id: str, options: ForkOptions) -> int:
    print(json.dumps({"race_id": race_id}) if options.as_json else plain(race_id))
    _remark(f"the race goes on there: hands fork --wait {race_id}")
    return EXIT_WON


async def _watch(race: Coroutine[Any, Any, None], console: RaceConsole) -> bool:
    """Whether the race was left to its end."""
    asked, leave = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(race)

    def interrupt() -> None:
        if asked.is_set():
            leave.set()
            return
        asked.set()
        console.display.doing = "stopping: ending what the race made (ctrl-C again leaves at once)"
        task.cancel()
        if not console.is_live:
            _remark("stopping: ending what the race made; ctrl-C again leaves at once")

    with _on_signals(interrupt), console.open() as hide:
        leaving = asyncio.create_task(leave.wait())
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            hide()
            _leave(console.display)
        leaving.cancel()
        await asyncio.wait({leaving})
    if task.cancelled():
        return False
    task.result()
    return True


@contextlib.contextmanager
def _on_signals(act: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, act)
    try:
        yield
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _leave(display: RaceDisplay) -> None:
    """Ends this process where it stands: an orderly end would wait for the very reaping that is not waited for."""
    _remark(
        f"left race {display.race_id or '(not begun)'} in the middle of its end. The reconciler ends the rest once its "
        "dead-man time has passed: any tick does it (make tick, make serve)."
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


def _account(display: RaceDisplay, host: RecordingHost | None, *, kept: bool) -> None:
    """What became of what a cancelled race had made."""
    if kept:
        _remark("hung up: a race with a key goes on; ask again with the same one")
    elif not display.race_id and (host is None or not host.ended):
        _remark("stopped before the race began")
    elif host is None:
        _remark(f"hung up: the functions cancel race {display.race_id} and end what it made")
    else:
        ended = ", ".join(map(one_line, host.ended)) or "nothing had been made"
        _remark(f"race {display.race_id} was cancelled. Ended: {ended}")
        if host.living:
            left = ", ".join(map(one_line, host.living))
            _remark(f"not known to have ended, and left to the reconciler: {left}", LineStyle.WRONG)


def _conclude(request: RaceRequest | None, options: ForkOptions, console: RaceConsole) -> int:
    report, failed = console.display.report, console.display.failed
    if failed is not None:
        return _not_run(failed.message, EXIT_BAD_INPUT if is_askers_fault(failed.type) else EXIT_NOT_WON)
    if report is None:
        return _not_run("the race ended without a report", EXIT_NOT_WON)
    if options.as_json:
        print(_json(report))
    else:
        console.console.print(summary(report, higher_is_better=request is None or request.higher_is_better))
        for line in conclusion(report):
            console.say(line)
    if options.page is not None and request is not None:
        try:
            options.page.write_text(page.render(report, request), encoding="utf-8", errors="replace")
        except OSError as error:
            return _not_run(f"--report: the page could not be written ({error.strerror})", EXIT_NOT_WON)
        _remark(f"page: {options.page}")
    return EXIT_WON if report.winner is not None else EXIT_NOT_WON


def _json(report: RaceReport) -> str:
    """Printable ASCII alone, so that a terminal may see it: the model's own JSON leaves DEL and C1 as they are."""
    return json.dumps(report.model_dump(mode="json"), indent=2)


def _check_page(page: Path) -> None:
    """Before the race: nobody wants to run it twice for a wrong path. Raises BadInput."""
    if page.is_dir() or not page.parent.is_dir() or not os.access(page if page.exists() else page.parent, os.W_OK):
        raise BadInput(f"--report: {page} cannot be written")


def console_for_people(*, on_error: bool = False) -> Console:
    """Standard output, or standard error; wide in a pipe, where nobody has said how wide it is."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a star shows a question mark, and the race goes on.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # the suppress covers other streams
    console = Console(stderr=on_error, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    return console


def _not_run(text: str, code: int) -> int:
    _remark(plain(text), LineStyle.WRONG)
    return code


def _remark(text: str, look: LineStyle = LineStyle.QUIET) -> None:
    Console(stderr=True, highlight=False).print(Text(text, style=look.value), soft_wrap=True)
