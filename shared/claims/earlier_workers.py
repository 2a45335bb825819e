"""An item that was offered before: what its earlier workers in the sandbox say, and the end of those that are overdue.

One that lives and is ready is used (docs/claim-protocol.md#step-3-hand-over). One that is overdue is asked to give up,
then killed (docs/claim-protocol.md#a-worker-that-is-overdue). Too many that died are the item's end
(docs/claim-protocol.md#poison).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from image.session import claim as wire
from shared.claims.worker_notices import NotReady, Ready, notices_in, waits_for_an_ack
from shared.claims.worker_process import attempt_prefix, describe, died, started_ago
from shared.ports import Absent, Doubtful, ProcessState, SandboxHost, WorkItem

log = logging.getLogger(__name__)

_LOOKED_AT: Final = 3  # living workers of one item whose output is read
_INTERPRETER: Final = 15.0  # seconds that a worker may take until its own limit on a start counts
_ANSWERS: Final = (0.1, 0.2, 0.4, 0.6, 0.7)  # pauses before the looks at a worker that was asked to give up
_DEATHS_READ: Final = 4  # times as many workers as may die are asked what the ones before them died of


@dataclass(frozen=True, slots=True)
class Hopeless:
    """None of the item's workers lives, and too many have died without a call in hand. Each death in words."""

    deaths: tuple[str, ...]


async def look(
    host: SandboxHost,
    sandbox_id: str,
    item: WorkItem,
    claim: wire.Claim,
    deaths: int | None,
    now: float | None = None,
) -> Ready | NotReady | Hopeless | None:
    """What this item's earlier workers say. None where they settle nothing. now: with it, those that are overdue are
    given up."""
    listed = await host.process_names(sandbox_id)
    if isinstance(listed, Absent):
        return NotReady("the sandbox is gone", sandbox_gone=True)
    if isinstance(listed, Doubtful):
        return None
    prefix = attempt_prefix(item)
    own = [process for process in listed if process.name.startswith(prefix)]
    living = [process for process in own if process.running]
    overdue: list[str] = []
    for process in living[:_LOOKED_AT]:
        lines = await host.process_output(sandbox_id, process.name)
        ready = waits_for_an_ack(lines, item, claim)
        if ready is not None:
            return ready
        age = None if now is None else started_ago(item, process.name, now)
        if age is not None and age > claim.start_limit + _INTERPRETER and _never_ready(lines, claim):
            overdue.append(process.name)
    given_up = await asyncio.gather(*(_give_up(host, sandbox_id, name, item, claim) for name in overdue))
    for ready in given_up:
        if ready is not None:
            return ready
    if deaths is None or living:
        return None
    dead = await _deaths(host, sandbox_id, own, claim, deaths)
    return Hopeless(dead) if len(dead) >= deaths else None


async def _deaths(
    host: SandboxHost, sandbox_id: str, own: Sequence[ProcessState], claim: wire.Claim, enough: int
) -> tuple[str, ...]:
    """How workers of an item died that had no call in hand; none where that cannot be known now. A worker says with its
    `ready` that the one before it died in a call, which has a bound of its own (image/session/worker/call_notes.py); of
    the latest one that had the lease nobody has said it yet."""
    own = sorted(own, key=lambda process: process.name)[-_DEATHS_READ * enough :]
    dead = [describe(process) for process in own if died(process)]
    if len(dead) < enough:
        return ()
    outputs = await asyncio.gather(*(host.process_output(sandbox_id, process.name) for process in own))
    if any(isinstance(lines, Doubtful) for lines in outputs):
        return ()
    said = [notices_in(lines, claim.nonce) for lines in outputs]
    in_calls = sum(any(_tells_of_a_call(notice) for notice in notices) for notices in said)
    untold = died(own[-1]) and any(notice.word is wire.Word.LEASED for notice in said[-1])
    return tuple(dead[in_calls + untold :])


def _tells_of_a_call(notice: wire.Notice) -> bool:
    return notice.word is wire.Word.READY and not notice.on_behalf and notice.detail.startswith(wire.LAST_DEATH)


def _never_ready(lines: Sequence[str] | Absent | Doubtful, claim: wire.Claim) -> bool:
    """False where the output could not be read."""
    if isinstance(lines, Absent | Doubtful):
        return False
    return all(notice.word is not wire.Word.READY for notice in notices_in(lines, claim.nonce))


async def _give_up(host: SandboxHost, sandbox_id: str, name: str, item: WorkItem, claim: wire.Claim) -> Ready | None:
    """A worker that should have started or ended long ago, and keeps others from the lock: it ends, unless it has
    started meanwhile, which it decides. One that does neither within two seconds stands still and is killed
    (docs/claim-protocol.md#a-worker-that-is-overdue)."""
    log.warning("worker.overdue work=%s session=%s process=%s", item.id, item.session_id, name)
    await host.signal(sandbox_id, name, wire.GIVE_UP_SIGNAL)
    stands_still = False
    for pause in _ANSWERS:
        await asyncio.sleep(pause)
        state = await host.process_state(sandbox_id, name)
        if isinstance(state, Absent) or (isinstance(state, ProcessState) and not state.running):
            return None
        lines = await host.process_output(sandbox_id, name)
        ready = waits_for_an_ack(lines, item, claim)
        if ready is not None:
            return ready
        stands_still = isinstance(state, ProcessState) and _never_ready(lines, claim)
    if stands_still:  # at the last look, which was answered
        log.warning("worker.killed work=%s session=%s process=%s", item.id, item.session_id, name)
        # The service's own kill is a SIGTERM first, which such a process does not hear.
        await host.signal(sandbox_id, name, signal.SIGKILL)
    return None
