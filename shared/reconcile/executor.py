"""Doing a repair, after a last look: nothing is ended, suspended or released on what was seen more than five seconds
ago, or on a look-up that failed (docs/architecture.md#i5)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from shared import names
from shared.claims.handover import WORKER_NAMES
from shared.claims.presence import worker_lives
from shared.deadline import Clock
from shared.ports import (
    Absent,
    AckOutcome,
    Doubtful,
    ItemState,
    OpenCalls,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxStatus,
    SessionRecord,
    SessionStatus,
    WorkQueue,
)
from shared.reconcile.plan import Repair
from shared.reconcile.world import Items
from shared.reports import Act, ActionReport
from shared.settings import Settings

_FRESH: Final = 3.0  # seconds; with the call itself a look is never older than five
_SLOW: Final = "the looks at it took too long to act on"


@dataclass(slots=True)
class RepairExecutor:
    """Carries out repairs for one pass over one environment."""

    settings: Settings
    environment_id: str
    queue: WorkQueue
    host: SandboxHost
    now: Callable[[], datetime]
    clock: Clock = time.monotonic
    needs_interrupt: list[str] = field(default_factory=list)
    _looked: tuple[float, Items] | None = None

    async def do(self, repair: Repair) -> ActionReport | None:
        """The report, or None where the last look showed that there is nothing to do."""
        problem = await self._act(repair)
        if problem is _NOTHING:
            return None
        return ActionReport(repair.act, repair.target, repair.why, done=problem is None, problem=problem or "")

    async def _act(self, repair: Repair) -> str | None:
        sandbox = repair.sandbox
        match repair.act:
            case Act.RELEASE:
                return await self._release(repair)
            case Act.FINISH:
                return await self._finish(repair)
            case Act.STOP_ITEM:
                return _problem(await self.queue.force_stop(repair.target))
            case Act.DELETE_SNAPSHOT:
                return _problem(await self.host.delete_snapshot(repair.target))
        if sandbox is None:
            return _NOTHING
        match repair.act:
            case Act.RESUME:
                return _problem(await self.host.resume(sandbox.id))
            case Act.TOUCH:
                return _problem(await self.host.touch(sandbox.id))
            case Act.STOP_WORKER:
                return await self._stop_worker(sandbox)
            case Act.UNMARK:
                return _problem(await self.host.rename(sandbox.id, repair.name))
            case Act.END_RACE:
                return _problem(await self.host.terminate(sandbox.id))
            case Act.END_FAILED:
                return await self._end_failed(sandbox)
            case Act.SUSPEND:
                return await self._suspend(repair, sandbox)
            case Act.MARK:
                return await self._mark(repair, sandbox)
            case Act.END_MARKED:
                return await self._end_marked(repair, sandbox)

    async def _release(self, repair: Repair) -> str | None:
        """A stranded item: nobody is behind it, and its session's calls wait for ever unless they are answered."""
        item = repair.item
        if item is None or repair.session_id is None:
            return _NOTHING
        match await self.host.find(repair.name):
            case Doubtful():
                return "its sandbox could not be looked at"
            case SandboxRecord(status=SandboxStatus.RUNNING) as sandbox:
                working = await worker_lives(self.host, sandbox.id)
                if working is None:
                    return "its worker could not be looked at"
                if working:
                    return _NOTHING
            case SandboxRecord(status=status) if status not in (
                SandboxStatus.FAILED,
                SandboxStatus.TERMINATED,
                SandboxStatus.TIMEOUT,
            ):
                return _NOTHING  # it may wake up, or is being made: its worker is not known to be gone
        items = await self._items()
        if items is None:
            return "the items could not be looked at again"
        now = items.live.get(repair.name)
        if now is None or now.id != item.id or now.state is not ItemState.STARTING or now.latest_heartbeat_at:
            return _NOTHING
        stopped = await self.queue.force_stop(item.id)
        if isinstance(stopped, Refused | Doubtful):
            return f"stopping it failed: {stopped.reason}"
        return await self._unblock(repair.session_id)

    async def _finish(self, repair: Repair) -> str | None:
        if repair.session_id is None:
            return _NOTHING
        calls = await self.queue.open_calls(repair.session_id)
        if isinstance(calls, Absent) or (isinstance(calls, OpenCalls) and not calls.ids):
            return _NOTHING
        if isinstance(calls, Refused | Doubtful):
            return f"its calls could not be looked at: {calls.reason}"
        if not await self._surely_without_item(self._name(repair.session_id)):
            return _NOTHING
        return await self._give_up(repair.session_id, calls)

    async def _unblock(self, session_id: str) -> str | None:
        calls = await self.queue.open_calls(session_id)
        match calls:
            case Refused() | Doubtful():
                return f"its calls could not be looked at: {calls.reason}"
            case Absent():
                return None
            case _:
                return await self._give_up(session_id, calls)

    async def _give_up(self, session_id: str, calls: OpenCalls) -> str | None:
        """Answers the calls that nobody will: the turn goes on with an error, where an interrupt would end it and leave
        calls that the next worker runs although nobody waits for them (docs/wire/anthropic.md#5-session-tool-runner). A
        turn that comes to this again is interrupted: that queues a session for certain
        (docs/wire/anthropic.md#33-state-machine)."""
        if not calls.ids:
            return None
        outcome: AckOutcome = Refused(0, "given up before")
        if not calls.given_up:
            outcome = await self.queue.give_up_calls(session_id, calls)
        if isinstance(outcome, Refused):
            outcome = await self.queue.interrupt(session_id)
        if isinstance(outcome, Refused):
            self.needs_interrupt.append(session_id)
            return f"this key may neither answer the session's lost calls nor interrupt it: {outcome.reason}"
        return _problem(outcome)

    async def _suspend(self, repair: Repair, sandbox: SandboxRecord) -> str | None:
        began = self.clock()
        if not await self._surely_idle(repair):
            return _NOTHING
        working = await worker_lives(self.host, sandbox.id)
        if working is None:
            return "its processes could not be looked at"
        found = await self.host.find(sandbox.id)
        if isinstance(found, Doubtful):
            return "it could not be looked at again"
        still = isinstance(found, SandboxRecord) and found.status is SandboxStatus.RUNNING
        # The look at the queue comes last: it must not grow old over slow answers to the others.
        if working or not still or not await self._surely_without_item(repair.name):
            return _NOTHING
        return _SLOW if self._too_late(began) else _problem(await self.host.suspend(sandbox.id))

    async def _mark(self, repair: Repair, sandbox: SandboxRecord) -> str | None:
        began = self.clock()
        if sandbox.status is SandboxStatus.RUNNING and await worker_lives(self.host, sandbox.id) is not False:
            return _NOTHING
        if not await self._still_unwanted(repair):
            return _NOTHING
        if not await self._surely_without_item(repair.name) and not await self._surely_deleted(repair):
            return _NOTHING
        if self._too_late(began):
            return _SLOW
        name = names.gone_name(repair.name, self.settings.prefix, int(self.now().timestamp()))
        return _problem(await self.host.rename(sandbox.id, name))

    async def _end_marked(self, repair: Repair, sandbox: SandboxRecord) -> str | None:
        """A session that got work between the mark and now has it in another sandbox, unless its worker came into
        this one just before the mark."""
        began = self.clock()
        found = await self.host.find(sandbox.id)
        if not isinstance(found, SandboxRecord) or found.name != sandbox.name:
            return _NOTHING
        if found.status is SandboxStatus.RUNNING and await worker_lives(self.host, found.id) is not False:
            return _NOTHING
        items = await self._items()
        if items is None:
            return "the items could not be looked at again"
        holder = await self.host.find(repair.name) if repair.name in items.live else None
        if isinstance(holder, Absent | Doubtful):
            return _NOTHING
        return _SLOW if self._too_late(began) else _problem(await self.host.terminate(sandbox.id))

    async def _stop_worker(self, sandbox: SandboxRecord) -> str | None:
        listed = await self.host.process_names(sandbox.id)
        if isinstance(listed, Absent | Doubtful):
            return "its processes could not be looked at"
        problems = [
            problem
            for process in listed
            if process.running and process.name.startswith(WORKER_NAMES)
            if (problem := _problem(await self.host.signal(sandbox.id, process.name, signal.SIGTERM))) is not None
        ]
        return "; ".join(problems) or None

    async def _end_failed(self, sandbox: SandboxRecord) -> str | None:
        found = await self.host.find(sandbox.id)
        if isinstance(found, Doubtful):
            return "it could not be looked at again"
        if isinstance(found, Absent) or found.status is not sandbox.status or found.name != sandbox.name:
            return _NOTHING
        return _problem(await self.host.terminate(sandbox.id))

    def _too_late(self, began: float) -> bool:
        """Whether the looks since then have grown too old to act on."""
        return self.clock() - began > _FRESH

    async def _surely_idle(self, repair: Repair) -> bool:
        if repair.session_id is None:
            return False
        session = await self.queue.session(repair.session_id)
        return isinstance(session, SessionRecord) and session.status is SessionStatus.IDLE

    async def _still_unwanted(self, repair: Repair) -> bool:
        """Whether the session is over, or has not been used for as long as a sandbox is kept."""
        match await self.queue.session(repair.session_id or ""):
            case SessionRecord(status=SessionStatus.TERMINATED) | SessionRecord(archived=True) | Absent():
                return True
            case SessionRecord(updated_at=used) if used is not None:
                return (self.now() - used).total_seconds() > self.settings.reconcile.retention
            case _:
                return False

    async def _surely_deleted(self, repair: Repair) -> bool:
        """An entry that a deleted session left on the queue is nobody's work
        (docs/wire/anthropic.md#33-state-machine)."""
        if repair.session_id is None or not isinstance(await self.queue.session(repair.session_id), Absent):
            return False
        items = await self._items()
        item = items.live.get(repair.name) if items is not None else None
        return item is not None and item.state is ItemState.QUEUED

    async def _surely_without_item(self, name: str) -> bool:
        items = await self._items()
        return items is not None and items.all_live_seen and name not in items.live

    async def _items(self) -> Items | None:
        """A look at the queue that is fresh; shared by the repairs of the same three seconds."""
        now = self.clock()
        if self._looked is None or now - self._looked[0] > _FRESH:
            listing = await self.queue.list_items(self.settings.reconcile.pages)
            if isinstance(listing, Refused | Doubtful) or self.clock() - now > _FRESH:
                return None
            self._looked = (now, Items.of(listing, self.settings.prefix, self.environment_id, self.now()))
        return self._looked[1]

    def _name(self, session_id: str) -> str:
        return names.sandbox_name(self.settings.prefix, self.environment_id, session_id)


_NOTHING: Final = "nothing to do"


def _problem(outcome: object) -> str | None:
    """None for done, and for what had gone by itself."""
    if isinstance(outcome, Refused | Doubtful):
        return outcome.reason
    return None
