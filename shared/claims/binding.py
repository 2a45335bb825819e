"""Bind: get the one running sandbox of a session (docs/claim-protocol.md#step-2-bind).

Create comes first, because a create by name is atomic: of any number of dispatchers racing for one session, one creates
and the others are told that the name is taken (docs/architecture.md#i2). Whoever holds the name is then looked at and
waited for. Nothing is concluded from a look-up that failed. Only where the service is known to have no room is the name
looked up first: a session that has its sandbox does not wait for those that have none.

From every state in which a sandbox can never serve again a way leads to one that can: what failed is ended, and what
refuses to be resumed is renamed and kept, so that the session gets a fresh one. Then `Bound.replaces` says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

from shared import names
from shared.backoff import pauses
from shared.claims.capacity import Capacity
from shared.claims.warm_pool import WarmPool
from shared.deadline import Clock, Deadline
from shared.ports import (
    Absent,
    Created,
    Doubtful,
    NameTaken,
    NoCapacity,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
)

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 2.0
_FRESH: Final = 3.0  # seconds; nothing is ended on a look that took longer (docs/architecture.md#i5)
_FORGETS: Final = 3.0  # seconds for which an ended sandbox may keep its name and still read as running
_RESUMES: Final = 4
"""So many refusals of a resume, over a third of the time to bind, are taken for its last word."""
_FIRST_RESUME_PAUSE: Final = 1 / 22  # of that time; with the two pauses after it, a third


@dataclass(frozen=True, slots=True)
class Bound:
    """`made`: it was created just now. `replaces`: why the session's earlier sandbox is not used any more, if so.
    `remark`: what the operator should read of how it was made."""

    sandbox: SandboxRecord
    made: bool = False
    replaces: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Unbound:
    """No sandbox for now. The item stays un-acked and is offered again."""

    reason: str
    no_capacity: bool = False


class PreparedSource(Protocol):
    """What new sandboxes may be restored from (shared/prepared/starts.py)."""

    async def snapshot(self) -> str | None:
        """Never raises for a service."""
        ...

    def gone(self, snapshot_id: str) -> None: ...


class Binding:
    """The way of one item to its sandbox. It may be asked again when the sandbox turns out to be gone.

    spec: `spec.name` is a session's name with this `prefix`.
    free_slot: called before the item waits for room, so that it keeps no slot from an item that needs none.
    since: when the item was made; a sandbox that is older had been the session's before.
    pool: where new sandboxes are claimed, where there is one. A prepared start comes first: it has the session's set-up
        done, and a pool's sandboxes have not.
    prepared: what a new sandbox is restored from, where there is something. What cannot be restored costs the session
        its quick start and nothing else.
    """

    def __init__(
        self,
        host: SandboxHost,
        spec: SandboxSpec,
        *,
        prefix: str,
        resume_suspended: bool,
        capacity: Capacity,
        now: Callable[[], datetime],
        free_slot: Callable[[], None] = lambda: None,
        since: datetime | None = None,
        prepared: PreparedSource | None = None,
        pool: WarmPool | None = None,
    ) -> None:
        self._host = host
        self._spec = spec
        self._prefix = prefix
        self._resume_suspended = resume_suspended
        self._capacity = capacity
        self._now = now
        self._free_slot = free_slot
        self._since = since
        self._prepared = prepared
        self._pool = pool
        self._restores: str | None = None
        self._remark = ""
        self._dead: dict[str, Deadline] = {}
        self._refusals = 0
        self._refusal_pauses: Iterator[float] = pauses(0.0)
        self._replaces = ""
        self._reason = "time ran out"

    def lost(self, sandbox_id: str, clock: Clock) -> None:
        """This sandbox is gone, whatever a look-up says during the next seconds."""
        self._dead[sandbox_id] = Deadline.after(_FORGETS, clock)

    async def bind(self, deadline: Deadline) -> Bound | Unbound:
        """The sandbox, running: made if there is none, resumed if it sleeps, replaced where it can never serve again.

        With `resume_suspended` false a sleeping sandbox is ended and a fresh one made in its place.
        """
        waits = pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._refusal_pauses = pauses(deadline.left() * _FIRST_RESUME_PAUSE)
        while not deadline.passed:
            asked = deadline.left()
            if self._capacity.shortage is None:
                made = await self._named_still(await self._make(), asked - deadline.left())
                if made is not None:
                    return made
            settled = await self._settle(deadline)
            if settled is not None:
                return settled
            if self._capacity.shortage is None:
                await asyncio.sleep(min(next(waits), deadline.left()))
                continue
            self._free_slot()
            async with self._capacity.turn(deadline) as granted:
                asked = deadline.left()
                made = await self._create() if granted else None
            made = await self._named_still(made, asked - deadline.left())
            if made is not None:
                return made
        shortage = self._capacity.shortage
        return Unbound(self._reason) if shortage is None else Unbound(f"no capacity: {shortage}", no_capacity=True)

    async def _named_still(self, made: Bound | Unbound | None, took: float) -> Bound | Unbound | None:
        """What took long to make is looked at once more: its session may have ended and a tick have marked it meanwhile
        (docs/architecture.md#i2). None where that is not known."""
        if not isinstance(made, Bound) or took <= _FRESH:
            return made
        match await self._host.find(self._spec.name):
            case SandboxRecord(id=made.sandbox.id):
                return made
            case Doubtful():
                return None
        return Unbound("the sandbox was marked for its end while it was made")

    async def _make(self) -> Bound | Unbound | None:
        """As `_create`, from the pool where there is one. Where it is used the name is looked up first: the sessions
        that have a sandbox must cost no claim."""
        if self._pool is None or not self._pool.may_serve or await self._prepared_snapshot() is not None:
            return await self._create()
        match await self._host.find(self._spec.name):
            case SandboxRecord():
                self._reason = "the name is taken by a sandbox that does not come to run"
                return None
            case Absent():
                claimed = await self._claim(self._pool)
                return await self._create() if claimed is None else claimed if isinstance(claimed, Bound) else None
            case Doubtful():
                return await self._create()

    async def _prepared_snapshot(self) -> str | None:
        return await self._prepared.snapshot() if self._prepared is not None else None

    async def _claim(self, pool: WarmPool) -> Bound | NameTaken | None:
        """A sandbox of the pool under the session's name; None where one has to be created.

        Until the rename nobody else knows of the sandbox, and after it everybody finds it by the name. So it is ended
        here only where somebody else surely has the name; what may still get it, or has been left without one, is the
        reconciler's (shared/reconcile/plan.py).
        """
        claimed = await pool.claim(self._host, self._spec)
        if not isinstance(claimed, SandboxRecord):
            self._remark = claimed or self._remark
            return None
        match await self._host.rename(claimed.id, self._spec.name):
            case None:
                return self._named(pool, claimed)
            case Absent():
                self._remark = pool.failed("a sandbox of it was gone before it had its name") or self._remark
                return None
            case Refused(status=status, reason=reason) if status != 409:
                self._remark = pool.failed(f"its sandboxes take no name: {reason}") or self._remark
                await self._host.terminate(claimed.id)
                return None
        match await self._host.find(self._spec.name):
            case SandboxRecord(id=claimed.id):
                return self._named(pool, claimed)
            case SandboxRecord():
                await self._host.terminate(claimed.id)
                return NameTaken()
        return None

    def _named(self, pool: WarmPool, claimed: SandboxRecord) -> Bound:
        pool.served()
        self._capacity.has_room()
        sandbox = replace(claimed, name=self._spec.name)
        return Bound(sandbox, made=True, replaces=self._replaces, remark=self._remark)

    async def _create(self) -> Bound | Unbound | None:
        """None where the name is taken, where there is no room, and where the result is not known."""
        spec = self._spec
        self._restores = await self._prepared_snapshot()
        if self._restores is not None:
            spec = replace(spec, snapshot_id=self._restores, image=None)
        match await self._host.create(spec):
            case Created(sandbox):
                self._capacity.has_room()
                return Bound(sandbox, made=True, replaces=self._replaces, remark=self._remark)
            case NoCapacity(reason=reason):
                self._capacity.lacks(reason)
            case Refused(reason=refusal) if self._restores is not None:
                self._go_cold(refusal)
                return await self._create()
            case Refused(reason=refusal):
                return Unbound(f"create refused: {refusal}")
            case NameTaken():
                self._reason = "the name is taken by a sandbox that does not come to run"
            case Doubtful(reason=doubt):
                self._reason = f"create failed: {doubt}"
        return None

    async def _settle(self, deadline: Deadline) -> Bound | Unbound | None:
        """The holder of the name once it runs; None when the name has become free, or time is up."""
        waits = pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        while not deadline.passed:
            asked = deadline.left()
            found = await self._host.find(self._spec.name)
            old = asked - deadline.left() > _FRESH
            match found:
                case Absent():
                    return None
                case Doubtful():
                    pass
                case SandboxRecord(name=other) if other != self._spec.name:
                    return Unbound("the service answered with a sandbox of another name")
                case SandboxRecord(id=known) if known in self._dead and not self._dead[known].passed:
                    pass  # the service has not yet forgotten what is gone
                case SandboxRecord(status=SandboxStatus.RUNNING | SandboxStatus.SNAPSHOTTING) as sandbox:
                    return Bound(sandbox, replaces=self._replaces)
                case SandboxRecord(status=SandboxStatus.SUSPENDED) as sandbox if self._resume_suspended:
                    if await self._resumed(sandbox, deadline, old=old):
                        return Bound(sandbox)
                case SandboxRecord(status=SandboxStatus.SUSPENDED) as sandbox if not old:
                    await self._end(sandbox, deadline.clock)
                case SandboxRecord(status=SandboxStatus.FAILED | SandboxStatus.TIMEOUT) as sandbox if not old:
                    used = self._was_used(sandbox)
                    if not used and self._restores is not None:
                        self._go_cold(f"the sandbox is {sandbox.status.value}")
                    if await self._end(sandbox, deadline.clock) and used:
                        self._replaces = f"sandbox {sandbox.id} had failed ({sandbox.status.value}) and was ended"
                case SandboxRecord():
                    pass  # pending, suspending, terminated but not yet forgotten, or a status of tomorrow: wait
            await asyncio.sleep(min(next(waits), deadline.left()))
        return None

    def _go_cold(self, reason: str) -> None:
        """Without the prepared start: its snapshot is gone, or makes no sandbox that runs."""
        self._remark = f"its sandbox was made without the prepared start, which could not be restored: {reason}"
        log.warning("prepared.not_restored name=%s snapshot=%s reason=%s", self._spec.name, self._restores, reason)
        if self._prepared is not None and self._restores is not None:
            self._prepared.gone(self._restores)
        self._prepared = self._restores = None

    async def _end(self, sandbox: SandboxRecord, clock: Clock) -> bool:
        ended = await self._host.terminate(sandbox.id) in (None, Absent())
        if ended:
            self.lost(sandbox.id, clock)
        return ended

    def _was_used(self, sandbox: SandboxRecord) -> bool:
        """Older than the item, so that an earlier one had worked in it."""
        return self._since is not None and sandbox.created_at is not None and sandbox.created_at < self._since

    async def _resumed(self, sandbox: SandboxRecord, deadline: Deadline, *, old: bool) -> bool:
        match await self._host.resume(sandbox.id):
            case None:
                return True
            case Absent():
                # What has just ended reads as asleep for some seconds. What does so after these has lost its snapshot.
                self.lost(sandbox.id, deadline.clock)
                self._reason = reason = "resume refused: HTTP 404"
                self._refusals += _RESUMES // 2
                if self._refusals >= _RESUMES and not old:
                    await self._set_aside(sandbox, reason)
            case NoCapacity(reason=reason):
                self._capacity.lacks(reason)
                self._free_slot()
                async with self._capacity.turn(deadline) as granted:
                    if granted and await self._host.resume(sandbox.id) is None:
                        self._capacity.has_room()
                        return True
            case Refused(status=409):
                self._reason = "the sandbox does not come to run"
            case Refused(reason=reason):
                self._reason = f"resume refused: {reason}"
                self._refusals += 1
                if self._refusals < _RESUMES:
                    await asyncio.sleep(min(next(self._refusal_pauses), deadline.left()))
                elif not old:
                    await self._set_aside(sandbox, reason)
            case Doubtful(reason=reason):
                self._reason = f"resume failed: {reason}"
        return False

    async def _set_aside(self, sandbox: SandboxRecord, reason: str) -> None:
        """Its files may still be saved by a person, so it is not ended."""
        kept = names.kept_name(self._spec.name, self._prefix, int(self._now().timestamp()))
        if await self._host.rename(sandbox.id, kept) is None:
            self._replaces = f"sandbox {sandbox.id} could not be resumed ({reason}) and is kept as {kept}"
            log.warning("sandbox.set_aside sandbox=%s kept=%s reason=%s", sandbox.id, kept, reason)
