"""What a session's workers wrote: notices on standard output; on standard error their log, with the set-up's steps and
lines of what its programs and the operator's tools said."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final

from infra.cli.environ import Loaded
from infra.cli.fleet.one import started
from infra.cli.fleet.target import AWAKE, NotCarriedOut, Target, done, target
from infra.cli.session.render import clean
from infra.cli.session.screen import Screen
from shared.claims.worker_process import WORKER_NAMES
from shared.ports import Absent, Doubtful, OutputEnded, ProcessState, SandboxRecord

_MOST: Final = 2_000_000  # bytes of one worker
_SILENCE: Final = 3600.0
_IDLE_PAUSE: Final = 2.0  # seconds between two looks for a new worker where none is followed
_BUSY_PAUSE: Final = 10.0
_FAILURES: Final = 5  # in a row; then it is given up
_LONG: Final = 60.0  # seconds that a stream was open, after which its end is no failure


async def logs(loaded: Loaded, session_id: str, *, follow: bool, wake: bool) -> int:
    """The output of the session's workers, oldest first. 1 where it has none, or sleeps and may not be woken."""
    try:
        async with target(loaded, session_id) as aim:
            box = await aim.need_sandbox()
            if box.status not in AWAKE:
                if not wake:
                    raise NotCarriedOut(
                        f"its sandbox sleeps. To read its log it must be woken: hands logs {session_id} --wake"
                    )
                done(await aim.host.resume(box.id), f"waking {box.id}")
            if follow:
                await _Following(aim).run()
            else:
                await _print_all(aim, box)
    except NotCarriedOut as error:
        print(error, file=sys.stderr)
        return 1
    return 0


class _Printer:
    """Lines on standard output; on standard error a heading wherever another worker speaks."""

    def __init__(self) -> None:
        self._screen = Screen()
        self._speaker = ""

    def head(self, worker: ProcessState) -> None:
        if worker.name != self._speaker:
            self._speaker = worker.name
            self.remark(f"── {worker.name}, {'runs' if worker.running else f'ended with {worker.exit_code}'}")

    def line(self, worker: ProcessState, text: str) -> None:
        self.head(worker)
        print(clean(text), flush=True)

    def remark(self, text: str) -> None:
        self._screen.remark(text)


async def _print_all(aim: Target, box: SandboxRecord) -> None:
    workers = await _workers(aim, box)
    if not workers:
        raise NotCarriedOut("no worker has run in its sandbox yet")
    printer = _Printer()
    for worker in workers:
        printer.head(worker)
        match await aim.host.process_output(box.id, worker.name, _MOST, both=True):
            case Absent():
                printer.remark("  (gone)")
            case Doubtful(reason):
                printer.remark(f"  (could not be read: {reason})")
            case lines:
                for line in lines:
                    printer.line(worker, line)


async def _workers(aim: Target, box: SandboxRecord) -> Sequence[ProcessState]:
    """The oldest first. Raises NotCarriedOut."""
    match await aim.host.process_names(box.id):
        case Absent():
            raise NotCarriedOut("its sandbox is not there any more: hands ps")
        case Doubtful(reason):
            raise NotCarriedOut(f"its workers could not be listed ({reason}); run the command again")
        case found:
            own = [each for each in found if each.name.startswith(WORKER_NAMES)]
            return sorted(own, key=lambda each: started(each.name))


class _Following:
    """Every worker's output as it is written, of workers that start later too. It wakes no sandbox that falls asleep
    meanwhile. A stream that breaks is opened again, and goes on after the last line that was shown."""

    def __init__(self, aim: Target) -> None:
        self._aim = aim
        self._printer = _Printer()
        self._shown: dict[str, int] = {}  # lines, by the worker's name
        self._over: set[str] = set()
        self._failures: dict[str, int] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._remarked = ""

    async def run(self) -> None:
        """Until it is cancelled. Raises NotCarriedOut where it cannot go on."""
        try:
            async with asyncio.TaskGroup() as group:
                failures = 0
                while True:
                    try:
                        await self._look(group)
                        failures = 0
                    except NotCarriedOut:
                        failures += 1
                        if failures >= _FAILURES:
                            raise
                    open_streams = [each for each in self._streams.values() if not each.done()]
                    if open_streams:
                        await asyncio.wait(open_streams, timeout=_BUSY_PAUSE, return_when=asyncio.FIRST_COMPLETED)
                    else:
                        await asyncio.sleep(_IDLE_PAUSE)
        except ExceptionGroup as raised:
            raise raised.exceptions[0] from None

    async def _look(self, group: asyncio.TaskGroup) -> None:
        box = await self._aim.sandbox()
        if box is None or box.status not in AWAKE:
            self._remark("(it has no sandbox now" if box is None else "(its sandbox sleeps")
            return
        workers = await _workers(self._aim, box)
        if not workers:
            self._remark("(no worker has run in its sandbox yet")
            return
        self._remarked = ""
        for worker in workers:
            stream = self._streams.get(worker.name)
            if worker.name in self._over or (stream is not None and not stream.done()):
                continue
            self._streams[worker.name] = group.create_task(self._follow(box.id, worker))
            if not worker.running:  # all of an earlier one before the next one's first line
                await asyncio.wait([self._streams[worker.name]])

    def _remark(self, text: str) -> None:
        """Once, until something else is the matter."""
        if text != self._remarked:
            self._remarked = text
            self._printer.remark(f"{text}; waiting for its next worker, ctrl-C ends this)")

    async def _follow(self, box: str, worker: ProcessState) -> None:
        """Raises NotCarriedOut where the stream has broken too often."""
        self._printer.head(worker)
        began, before, number = time.monotonic(), self._shown.get(worker.name, 0), 0
        stream = self._aim.host.follow_output(box, worker.name, silence=_SILENCE, limit=_MOST, both=True)
        async for line in stream:
            match line:
                case str():
                    number += 1
                    if number > self._shown.get(worker.name, 0):
                        self._shown[worker.name] = number
                        self._printer.line(worker, line)
                case OutputEnded():
                    self._over.add(worker.name)
                case Absent() | Doubtful():
                    reason = line.reason if isinstance(line, Doubtful) else "it is not there"
                    went_on = number > before or time.monotonic() - began > _LONG
                    failures = 0 if went_on else self._failures.get(worker.name, 0) + 1
                    self._failures[worker.name] = failures
                    if failures >= _FAILURES:
                        raise NotCarriedOut(f"the log of {worker.name} broke off ({reason}); run the command again")
                    await asyncio.sleep(_IDLE_PAUSE)
