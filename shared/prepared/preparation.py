"""An environment's set-up is run once in a fresh sandbox, which is then checkpointed (docs/setup.md#prepared-starts).

Whoever creates the sandbox of the name prepares; anybody else waits for it. It is done when a snapshot of the sandbox
is there, which is never before the whole set-up is. So what is cut off at any step is whole, or has no snapshot and is
ended by the reconciler (shared/reconcile/prepared.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from image.session import claim as wire
from image.session.archive import build_archive, digest
from shared.backoff import pauses
from shared.claims import handover, worker_notices, worker_process
from shared.claims.dispatcher import spec_of
from shared.claims.setup_access import access_for
from shared.deadline import Deadline
from shared.environment_settings import Environment
from shared.ports import (
    BROKEN,
    Absent,
    Created,
    Doubtful,
    NameTaken,
    OutputEnded,
    ProcessState,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxStatus,
    Snapshot,
    SnapshotRecord,
)
from shared.prepared.recipe import making_seconds, prepared_names
from shared.prepared.starts import ASLEEP, newest_ready
from shared.settings import Settings

_STARTS: Final = 3
_PROCESSES: Final = f"{worker_process.WORKER_NAMES}prepare-"
_TRIED_AGAIN: Final = frozenset({wire.Exit.NO_USER, wire.Exit.UNREADABLE, wire.Exit.LOCKED_OUT})
"""Ends of attempts that are followed by another one."""
_OUTPUT: Final = 1 << 20  # bytes of progress lines

_TELLS: Final = tuple(f"{each.name}: " for each in wire.Exit if each not in (wire.Exit.SERVED, wire.Exit.LOCKED_OUT))
"""How the last words begin that say why a set-up failed."""

log = logging.getLogger(__name__)


class PreparationFailed(Exception):
    """Why there is no prepared start, in words for the operator. The sandbox is ended."""


class SetUpFailed(PreparationFailed):
    """The operator's own set-up did: the same one will fail again."""


class _Busy(PreparationFailed):
    """The sandbox is somebody else's, and goes on."""


class PreparationStep(StrEnum):
    """What a tick came to."""

    BEGUN = "begun"
    GOES_ON = "goes on"
    PREPARED = "prepared"


@dataclass(frozen=True, slots=True)
class PreparationResult:
    """`made`: by this call, in `seconds`; else it was there, or somebody else made it."""

    name: str
    snapshot: str
    made: bool
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Preparation:
    """One environment's. `say` is told each step. Progress lines are cut and printable; they come from a sandbox."""

    settings: Settings
    environment: Environment
    host: SandboxHost
    now: Callable[[], datetime]
    say: Callable[[str], object] = field(default=lambda _: None)

    async def run(self, *, fresh: bool = False) -> PreparationResult:
        """The environment's prepared start, made where there is none of this recipe and time. `fresh`: ends the one
        that is there first. Raises PreparationFailed."""
        wanted = prepared_names(self.settings, self.environment, self.now().timestamp())
        if not wanted:
            raise PreparationFailed(
                "nothing to prepare: the environment has no SETUP_REPOSITORY, SETUP_FILES or SETUP_SCRIPT, or "
                "SETUP_PREPARED_SECONDS is 0"
            )
        name, deadline = wanted[0], Deadline.after(making_seconds(self.settings, self.environment))
        waits, waiting, doubt = pauses(0.5, 5.0), False, False
        while True:
            found = await self.host.find(name)
            if isinstance(found, SandboxRecord) and found.status is not SandboxStatus.TERMINATED:
                snapshots = await self._snapshots(found.id)
                ready = newest_ready(snapshots or ())
                if ready is not None and not fresh:
                    return PreparationResult(name, ready, made=False)
                failed = found.status is SandboxStatus.SUSPENDED and snapshots == []
                if fresh or failed or found.status in BROKEN or self._left(found):
                    await self._end(found.id)
                    fresh = False
                elif doubt and await self.host.process_names(found.id) == []:
                    return await self._make(name, found, deadline)  # the create of ours that had no answer
                elif not waiting:
                    waiting = True
                    self.say("another copy prepares it: this one waits")
            elif isinstance(found, Absent):
                match await self.host.create(spec_of(self.environment, name)):
                    case Created(sandbox):
                        return await self._make(name, sandbox, deadline)
                    case NameTaken():
                        pass
                    case Doubtful():
                        doubt = True
                    case Refused(reason=reason):
                        raise PreparationFailed(f"its sandbox could not be made: {reason}")
            if deadline.passed:
                raise PreparationFailed(f"{name} came to no end in time; make tick ends what was left of it")
            await asyncio.sleep(min(next(waits), deadline.left()))

    async def step(self) -> PreparationStep:
        """What a tick does: begin it, or keep what has come to its end. No set-up is waited for, and what is cut off is
        gone on with by the next step. Raises PreparationFailed; where it is SetUpFailed the sandbox sleeps."""
        name = prepared_names(self.settings, self.environment, self.now().timestamp())[0]
        found = await self.host.find(name)
        if isinstance(found, Absent):
            match await self.host.create(spec_of(self.environment, name)):
                case Created(sandbox):
                    found = sandbox
                case Refused(reason=reason):
                    raise PreparationFailed(f"its sandbox could not be made: {reason}")
        if not isinstance(found, SandboxRecord) or found.status is not SandboxStatus.RUNNING:
            return PreparationStep.GOES_ON
        processes = await self.host.process_names(found.id)
        if isinstance(processes, Absent | Doubtful):
            return PreparationStep.GOES_ON
        ours = [each for each in processes if each.name.startswith(_PROCESSES)]
        if any(each.running for each in ours):
            return PreparationStep.GOES_ON
        return await self._step(found, {_exit_of(each) for each in ours})

    async def _step(self, sandbox: SandboxRecord, ends: set[wire.Exit]) -> PreparationStep:
        """`ends`: of the attempts so far, none of which runs."""
        try:
            if wire.Exit.SERVED not in ends:
                if failed := ends - _TRIED_AGAIN:
                    raise SetUpFailed(f"the set-up failed ({failed.pop().name.lower()}); make prepare tells more")
                deadline = Deadline.after(making_seconds(self.settings, self.environment))
                if not await self._set_up(sandbox.id, deadline, waits=False):
                    return PreparationStep.BEGUN
            await self._snapshot(sandbox)
        except _Busy:
            return PreparationStep.GOES_ON
        except SetUpFailed:
            await self.host.suspend(sandbox.id)
            raise
        await self.host.suspend(sandbox.id)
        return PreparationStep.PREPARED

    async def _snapshots(self, sandbox_id: str) -> Sequence[SnapshotRecord] | None:
        """Beside those that the service keeps of a sleeper. None where they cannot be listed."""
        listed = await self.host.list_snapshots(sandbox_id)
        return None if isinstance(listed, Doubtful) else [row for row in listed.rows if not row.id.startswith(ASLEEP)]

    def _left(self, sandbox: SandboxRecord) -> bool:
        """Whether nobody makes it any more. One whose snapshots could not be listed is older than that, too: a look
        that failed is asked again before it counts."""
        if sandbox.created_at is None:
            return False
        return (self.now() - sandbox.created_at).total_seconds() > making_seconds(self.settings, self.environment)

    async def _make(self, name: str, sandbox: SandboxRecord, deadline: Deadline) -> PreparationResult:
        began = deadline.left()
        self.say(f"prepares in {name}")
        try:
            await self._set_up(sandbox.id, deadline)
            self.say("takes a snapshot")
            snapshot = await self._snapshot(sandbox)
        except _Busy:
            raise
        except BaseException:  # an interrupt, too: what is not whole is ended at once, else by the reconciler
            await asyncio.shield(self._end(sandbox.id))
            raise
        await self.host.suspend(sandbox.id)  # where that fails, its idle time-out does it
        return PreparationResult(name, snapshot, made=True, seconds=began - deadline.left())

    async def _snapshot(self, sandbox: SandboxRecord) -> str:
        """Of the files alone: no process and no memory of the set-up is in a session's sandbox."""
        taken = await self.host.snapshot(sandbox.id)
        match taken:
            case Snapshot(id=snapshot):
                return snapshot
            case Doubtful() if (ready := newest_ready(await self._snapshots(sandbox.id) or ())) is not None:
                return ready
        why = taken.reason if isinstance(taken, Refused | Doubtful) else "the sandbox is gone"
        raise PreparationFailed(f"no snapshot could be taken: {why}")

    async def _set_up(self, sandbox_id: str, deadline: Deadline, *, waits: bool = True) -> bool:
        """Whether it has come to its end: without `waits` it may have begun alone. Raises PreparationFailed."""
        claim = await self._claim()
        user = self.settings.sandbox_user or None
        for _ in range(_STARTS):
            process = worker_process.worker_process(f"{_PROCESSES}{secrets.token_hex(4)}", claim, user)
            for candidate in (process, worker_process.not_as_root(process)):
                if candidate is None:
                    continue
                started = await handover.start_worker(self.host, sandbox_id, candidate, deadline)
                if started is not None:
                    raise PreparationFailed(f"the set-up could not be started: {started.reason}")
                end = await self._heard(sandbox_id, candidate.name, claim, deadline, waits=waits)
                if end is not wire.Exit.NO_USER:
                    break
            if end is None:
                return False
            if end is wire.Exit.SERVED:
                return True
            if end is wire.Exit.LOCKED_OUT:
                raise _Busy("another copy prepares it at this moment; run it again to wait for that one")
            if end is not wire.Exit.UNREADABLE:
                raise SetUpFailed(f"the set-up failed ({end.name.lower()})")
            written = await self.host.write_file(sandbox_id, wire.worker_path(claim.worker_digest), build_archive())
            if written is not None:
                raise PreparationFailed("the worker's file could not be written into the sandbox")
        raise PreparationFailed("the worker's file cannot be read in the sandbox")

    async def _heard(
        self, sandbox_id: str, name: str, claim: wire.Claim, deadline: Deadline, *, waits: bool
    ) -> wire.Exit | None:
        """How the process ended, by its own word or by the sandbox's; None where it has begun and nobody waits for it.
        Raises PreparationFailed with its reason."""
        said = 0
        while not deadline.passed:
            number = 0
            stream = self.host.follow_output(sandbox_id, name, silence=deadline.left() + 1.0, limit=_OUTPUT)
            try:
                async with asyncio.timeout(deadline.left()), aclosing(stream) as lines:
                    async for line in lines:
                        if isinstance(line, Absent):
                            raise PreparationFailed("the sandbox was lost in the set-up")
                        if isinstance(line, OutputEnded | Doubtful):
                            break
                        number += 1
                        if number > said and (notice := worker_notices.proven_notice(line, claim.nonce)) is not None:
                            said = number
                            self._take(notice, claim)
                            if notice.word is wire.Word.SETUP and not waits:
                                return None
            except TimeoutError:
                break
            state = await self.host.process_state(sandbox_id, name)
            if isinstance(state, Absent):
                raise PreparationFailed("the sandbox was lost in the set-up")
            if isinstance(state, ProcessState) and not state.running:
                return _exit_of(state)
            await asyncio.sleep(0.5)
        raise PreparationFailed("the set-up came to no end in time")

    def _take(self, notice: wire.Notice, claim: wire.Claim) -> None:
        text = worker_notices.shown(notice.detail, claim, wire.LONGEST_DETAIL)
        if notice.word is wire.Word.SETUP:
            self.say(text)
        elif notice.word is wire.Word.ENDED and notice.detail.startswith(_TELLS):
            raise SetUpFailed(f"the set-up failed: {text.partition(': ')[2]}")

    async def _claim(self) -> wire.Claim:
        """Without a session and without its secrets; what the environment's own set-up may read is in it."""
        policy = self.environment.setup
        assert policy is not None  # noqa: S101 - it has names only with one
        access = await access_for(self.environment, policy.base, f"environment={self.environment.id}")
        return wire.Claim(
            work_id="prepare",
            environment_id=self.environment.id,
            session_id="none",
            secret="none",  # noqa: S106 - a claim has one
            base_url=self.settings.anthropic_url,
            worker_digest=digest(build_archive()),
            workdir=self.settings.workdir,
            lifetime=policy.seconds + self.settings.times.handover,
            nonce=secrets.token_hex(32),
            setup=policy.to_wire(),
            signed=dict(access.signed) if access.signed else None,
            credential=dict(access.credential) if access.credential else None,
            prepares=True,
        )

    async def _end(self, sandbox_id: str) -> None:
        """Its snapshots first, as the reconciler does it; what is left is the reconciler's."""
        for snapshot in await self._snapshots(sandbox_id) or ():
            await self.host.delete_snapshot(snapshot.id)
        ended = await self.host.terminate(sandbox_id)
        if isinstance(ended, Refused | Doubtful):
            log.warning("prepared.not_ended sandbox=%s reason=%s", sandbox_id, ended.reason)


def _exit_of(state: ProcessState) -> wire.Exit:
    try:
        return wire.Exit(state.exit_code) if state.exit_code is not None else wire.Exit.STOPPED
    except ValueError:
        return wire.Exit.FAILED
