"""Hand over: start the worker in the sandbox and wait for its `ready` (docs/claim-protocol.md#step-3-hand-over).

The worker is a named process, its name unique per attempt. Its file is found by content: the path holds the digest, so
an old sandbox or image simply lacks the file, and it is written there before the next start. Its output is followed as
it comes.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from image.session import claim as wire
from image.session.archive import build_archive
from shared.backoff import pauses
from shared.claims import earlier_workers
from shared.claims.worker_notices import NotReady, Ready, proven_notice, shown
from shared.claims.worker_process import NOT_THE_ITEMS_FAULT, attempt_name, describe, not_as_root, worker_process
from shared.deadline import Deadline
from shared.ports import (
    Absent,
    Doubtful,
    OutputEnded,
    ProcessSpec,
    ProcessState,
    Refused,
    SandboxHost,
    WorkItem,
)

log = logging.getLogger(__name__)

_AT_ONCE: Final = 0.01  # seconds
_FIRST_LOOK: Final = 0.15
_LONGEST_PAUSE: Final = 1.0
_STARTS: Final = 4
_FRESH: Final = 3.0  # seconds; no worker is started on a look at the name that is older (docs/architecture.md#i2)


@dataclass(frozen=True, slots=True)
class LookedTooLong:
    """None of the item's workers serves it, as it seems; but while that was found out the sandbox may have been marked
    for its end. It is to be bound anew, and needs no second look."""


Outcome = Ready | NotReady | earlier_workers.Hopeless | LookedTooLong


@functools.cache
def bundle_sdk() -> str:
    """The version of the anthropic package that this bundle runs with."""
    return importlib.metadata.version("anthropic")


_Output = AsyncGenerator[str | OutputEnded | Absent | Doubtful, None]


async def hand_over(
    host: SandboxHost,
    sandbox_id: str,
    item: WorkItem,
    claim: wire.Claim,
    *,
    user: str | None,
    deadline: Deadline,
    look_first: bool = False,
    deaths: int | None = None,
    now: float | None = None,
) -> Outcome:
    """Start a worker with this claim. Errors of the service are outcomes; nothing here stops the item.

    An earlier worker of the item that lives and is ready is as good as a new one, also when the new one's time is up:
    on a slow machine each attempt would otherwise start another and watch that alone. Without `look_first` none can be
    there. deaths: with so many workers of this item that died without a call in hand, and none alive, no further one is
    started. now: Unix time, by default this machine's.
    """
    now = time.time() if now is None else now
    outcome: Outcome | None = None
    if look_first:
        asked = deadline.left()
        outcome = await earlier_workers.look(host, sandbox_id, item, claim, deaths, now)
        if outcome is None and asked - deadline.left() > _FRESH:
            outcome = LookedTooLong()
    if outcome is None:
        outcome = await _start_and_watch(host, sandbox_id, item, claim, user, deadline, now)
        if isinstance(outcome, NotReady) and not outcome.sandbox_gone:
            looked = await earlier_workers.look(host, sandbox_id, item, claim, deaths)
            if isinstance(looked, Ready | earlier_workers.Hopeless):
                outcome = looked
    return outcome


async def _start_and_watch(
    host: SandboxHost,
    sandbox_id: str,
    item: WorkItem,
    claim: wire.Claim,
    user: str | None,
    deadline: Deadline,
    now: float,
) -> Ready | NotReady:
    outcome: Ready | NotReady = NotReady("time ran out")
    as_root = True
    for _ in range(_STARTS):
        process = worker_process(attempt_name(item, now), claim, user)
        if not as_root:
            process = not_as_root(process) or process
        match await start_worker(host, sandbox_id, process, deadline):
            case NotReady() as failed:
                return failed
            case None:
                pass
        match await _watch(host, sandbox_id, process.name, item.id, claim, deadline):
            case _NoUser():  # the service may say better what is wrong with that user
                as_root = False
            case _Outdated(running=running):
                if running:
                    await host.kill(sandbox_id, process.name)
                written = await host.write_file(sandbox_id, wire.worker_path(claim.worker_digest), build_archive())
                if written is not None:
                    outcome = NotReady("the worker's file could not be written", sandbox_gone=written == Absent())
                    if outcome.sandbox_gone:
                        return outcome
            case (Ready() | NotReady()) as watched:
                return watched
        if deadline.passed:
            break
    return outcome


@dataclass(frozen=True, slots=True)
class _NoUser:
    """Started as root, the worker could not become the agent's user."""


@dataclass(frozen=True, slots=True)
class _Outdated:
    """The sandbox has no worker file of ours: an old sandbox or image, or a file that was cut or changed since."""

    running: bool


async def start_worker(host: SandboxHost, sandbox_id: str, process: ProcessSpec, deadline: Deadline) -> NotReady | None:
    """None once the process was started, or may have been and is there. Not every service lets a process be root: it is
    started as the agent's user then, where the image's interpreter alone hides the claim. An answer in doubt may be
    that refusal, so the two take turns."""
    waits = pauses(_FIRST_LOOK, _LONGEST_PAUSE)
    others: Iterator[ProcessSpec] = itertools.cycle([not_as_root(process) or process, process])
    while True:
        match await host.start(sandbox_id, process):
            case None:
                return None
            case Absent():
                return NotReady("the sandbox is gone", sandbox_gone=True)
            case Refused(reason=reason):
                plain = not_as_root(process)
                if plain is None:
                    return NotReady(f"start refused: {reason}")
                log.warning("worker.not_as_root sandbox=%s reason=%s", sandbox_id, reason)
                process, others = plain, itertools.repeat(plain)
                continue
            case Doubtful(reason=reason):
                if isinstance(await host.process_state(sandbox_id, process.name), ProcessState):
                    return None
                process = next(others)
                if deadline.passed:
                    return NotReady(f"start failed: {reason}")
        await asyncio.sleep(min(next(waits), deadline.left()))


async def _watch(
    host: SandboxHost, sandbox_id: str, name: str, work_id: str, claim: wire.Claim, deadline: Deadline
) -> Ready | NotReady | _Outdated | _NoUser:
    """Hear what the worker says as it says it: one call. Where the stream breaks, look again and again."""
    heard = _Heard(claim, work_id)
    try:
        async with asyncio.timeout(deadline.left()):
            over = await _listen(host, sandbox_id, name, heard, deadline)
    except TimeoutError:
        return heard.too_late()
    outcome = heard.outcome(over)
    return outcome or await _look_again(host, sandbox_id, name, heard, deadline)


async def _listen(
    host: SandboxHost, sandbox_id: str, name: str, heard: _Heard, deadline: Deadline
) -> ProcessState | None:
    """Until the worker is ready, or its output ends: then how the process ended. None where the stream broke."""
    stream = host.follow_output(sandbox_id, name, silence=deadline.left() + 1.0)
    async with aclosing(stream) as lines:
        last = await _heard_until_ready(lines, heard)
        if last is None:
            try:
                async with asyncio.timeout(_AT_ONCE):  # what it said in the same breath: that it ends, perhaps
                    async for line in lines:
                        last = heard.take(line)
            except TimeoutError:
                pass
    if not isinstance(last, OutputEnded):
        return None
    state = await host.process_state(sandbox_id, name)
    return state if isinstance(state, ProcessState) and not state.running else None


async def _heard_until_ready(lines: _Output, heard: _Heard) -> OutputEnded | Absent | Doubtful | None:
    """The stream's last item, if it came before the worker was ready."""
    async for line in lines:
        last = heard.take(line)
        if last is not None or heard.ready is not None:
            return last
    return None


async def _look_again(
    host: SandboxHost, sandbox_id: str, name: str, heard: _Heard, deadline: Deadline
) -> Ready | NotReady | _Outdated | _NoUser:
    waits = pauses(_FIRST_LOOK, _LONGEST_PAUSE)
    over: ProcessState | None = None
    while True:
        lines = await host.process_output(sandbox_id, name)
        if not isinstance(lines, Absent | Doubtful):
            heard.lines(lines)
            outcome = heard.outcome(over)  # its whole output has been read after its end
            if outcome is not None:
                return outcome
        if deadline.passed:
            return heard.too_late()
        await asyncio.sleep(min(next(waits), deadline.left()))
        state = await host.process_state(sandbox_id, name)
        over = state if isinstance(state, ProcessState) and not state.running else None


class _Heard:
    """What a worker has said so far, and what that means."""

    def __init__(self, claim: wire.Claim, work_id: str) -> None:
        self._claim = claim
        self._work_id = work_id
        self._notices: list[wire.Notice] = []
        self._last_line = ""

    def lines(self, lines: Sequence[str]) -> None:
        """All of them, from the first on."""
        self._notices, self._last_line = [], ""
        for line in lines:
            self.line(line)

    def take(self, item: str | OutputEnded | Absent | Doubtful) -> OutputEnded | Absent | Doubtful | None:
        """An item of the stream: a line is kept, whatever else there is comes back."""
        if not isinstance(item, str):
            return item
        self.line(item)
        return None

    def line(self, line: str) -> None:
        notice = proven_notice(line, self._claim.nonce)
        if notice is not None:
            self._notices.append(notice)
        elif line.strip():
            self._last_line = line

    @property
    def ready(self) -> wire.Notice | None:
        return self._first(wire.Word.READY)

    def _first(self, word: wire.Word) -> wire.Notice | None:
        return next((notice for notice in self._notices if notice.word is word), None)

    def outcome(self, over: ProcessState | None) -> Ready | NotReady | _Outdated | _NoUser | None:
        """`over`: the process as it was before its whole output was read, if it had ended. None: nothing is settled."""
        ready, ended = self.ready, self._first(wire.Word.ENDED)
        if ended is not None and (ready is None or not ready.on_behalf):
            # An ack now would leave nobody behind the item.
            return NotReady(f"the worker ended: {shown(ended.detail, self._claim)}")
        if ready is not None and ready.work_id == self._work_id:
            if over is not None and not ready.on_behalf:
                return NotReady(f"the worker died after its ready: {describe(over)}", died=True)
            if ready.worker != self._claim.worker_digest and not ready.on_behalf:
                return _Outdated(running=True)
            return Ready(ready.sdk, shown(ready.detail, self._claim))
        if over is None:
            return None
        if over.exit_code == wire.Exit.UNREADABLE:
            return _Outdated(running=False)
        if over.exit_code == wire.Exit.NO_USER:
            return _NoUser()
        died = over.exit_code not in NOT_THE_ITEMS_FAULT
        return NotReady(f"the worker ended: {describe(over)}{self._last_words()}", died=died)

    def too_late(self) -> NotReady:
        said = "nothing"
        if self._notices:
            last = self._notices[-1]
            said = f"{last.word.value} {shown(last.detail, self._claim)}".strip()
        return NotReady(f"no ready in time; the worker said {said}{self._last_words()}")

    def _last_words(self) -> str:
        """The last line that is no notice, for whoever has to find out what is wrong with the image."""
        return f"; its last line: {shown(self._last_line, self._claim)}" if self._last_line else ""
