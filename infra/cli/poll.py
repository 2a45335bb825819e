"""`poll`: drain the queue again and again from this machine, and repair once a minute; no address to be reached at.

The same core as `poll_tick`. A round of polls costs one call where the queue is empty, and never waits for what earlier
rounds claimed. SIGTERM and ctrl-C let that be handed over, or left to be offered again. The second one does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from functions.server.scheduler import EVERY_SECONDS
from functions.tick_remarks import remarks
from infra.cli.environ import Loaded
from shared.backoff import pause_before
from shared.errors import HandsError
from shared.reports import DrainEnd, DrainReport, ItemReport
from shared.settings import Settings
from shared.tasks import drop
from shared.telemetry import configure_logging

if TYPE_CHECKING:
    from shared.service import Service

IDLE_PAUSE: Final = 1.0
REFUSALS: Final = 3
"""So many passes in a row must be refused before it is the key: a service in trouble may say 401, too."""
_LONGEST_PAUSE: Final = 60.0
EXIT_REFUSED: Final = 3
EXIT_CUT_SHORT: Final = 130


@dataclass
class Poller:
    """The loop. `drain` is one pass over all environments; `pause` is the time between two passes in seconds."""

    drain: Callable[[], Awaitable[Sequence[DrainReport]]]
    say: Callable[[str], None]
    pause: float = IDLE_PAUSE
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _in_trouble: bool = False

    async def run(self) -> int:
        """Until `stopping` is set: 0. Until every environment has refused its key REFUSALS times: EXIT_REFUSED."""
        failures = refusals = 0
        while not self.stopping.is_set():
            reports = await self._pass()
            refused = bool(reports) and all(report.end is DrainEnd.REFUSED for report in reports or ())
            refusals = refusals + 1 if refused else 0
            if refusals == REFUSALS:
                self.say("The queue refuses the environment key. Check ANTHROPIC_ENVIRONMENT_KEY and _ID.")
                for report in reports or ():
                    self.say(f"  {report.environment_id}: {report.reason}")
                return EXIT_REFUSED
            troubled = reports is None or any(report.end in _TROUBLE for report in reports)
            failures = failures + 1 if troubled else 0
            self._tell(troubled, reports)
            wait = pause_before(failures + 1, self.pause, _LONGEST_PAUSE)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), wait)
        return 0

    async def _pass(self) -> Sequence[DrainReport] | None:
        """One drain; None for a bug in it, which must not end the loop: the queue goes on filling."""
        try:
            return await self.drain()
        except Exception as error:  # the edge of the loop
            self.say(f"A drain failed ({_in_words(error)}); trying again, ever slower.")
            return None

    def _tell(self, troubled: bool, reports: Sequence[DrainReport] | None) -> None:
        for report in reports or ():
            if report.end in _TROUBLE and not self._in_trouble:
                self.say(f"{report.environment_id}: {report.end.value}: {report.reason}; trying again, ever slower")
        if self._in_trouble and not troubled:
            self.say("The queue answers again.")
        self._in_trouble = troubled


def _in_words(error: BaseException) -> str:
    """Our own errors speak for people and hold no secret; of any other only the kind is said."""
    while isinstance(error, BaseExceptionGroup):  # several environments are drained side by side
        error = error.exceptions[0]
    return str(error) if isinstance(error, HandsError) else type(error).__name__


_TROUBLE: Final = (DrainEnd.UNAVAILABLE, DrainEnd.REFUSED)


async def run(loaded: Loaded) -> int:
    from shared.service import Service

    configure_logging({"LOG_LEVEL": "WARNING", **loaded.environ})
    service = Service(Settings.from_environ(loaded.environ), on_item=lambda item: _say(item_line(item)))
    poller = Poller(service.poll, _say)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, poller, asyncio.current_task())
    environments = ", ".join(service.settings.environments)
    _say(f"Polling {environments} on {loaded.where}; ctrl-C stops after what is claimed. (process {os.getpid()})")
    ticks = asyncio.create_task(_tick(service, poller.stopping))
    try:
        code = await poller.run()
        poller.stopping.set()
        await ticks
        await service.aclose()
        return code
    except asyncio.CancelledError:
        await drop(ticks)
        await service.aclose(grace=0.0)
        return EXIT_CUT_SHORT
    finally:
        _say("Stopped. Sandboxes and their workers go on by themselves.")


def _stop(poller: Poller, running: asyncio.Task[int] | None) -> None:
    """The first signal lets what is claimed be handed over, the second does not."""
    if poller.stopping.is_set() and running is not None:
        running.cancel()
    poller.stopping.set()


async def _tick(service: Service, stopping: asyncio.Event) -> None:
    """The repairs, every `EVERY_SECONDS`, beside the polls: neither waits for the other."""
    while not stopping.is_set():
        try:
            for line in remarks(asdict(await service.tick(patience=0.0))):
                _say(line)
        except Exception as error:  # the edge of the loop
            _say(f"A tick failed ({_in_words(error)}); the next one comes in a minute.")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), EVERY_SECONDS)


def item_line(item: ItemReport) -> str:
    reason = f": {item.reason}" if item.reason else ""
    alarm = "ALARM: " if item.alarm else ""
    return f"{alarm}{item.session_id}  {item.end.value}  {item.sandbox or '-'}  {item.seconds:.1f} s{reason}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
