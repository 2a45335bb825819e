"""Doing a repair, after a last look (last_looks.py): nothing is ended, suspended or released on what was seen more than
five seconds ago, or on a look-up that failed (docs/architecture.md#i5).
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, assert_never

from image.session.claim import Exit
from shared import names
from shared.claims import worker_keys
from shared.claims.worker_notices import setup_failure
from shared.claims.worker_process import attempt_prefix
from shared.deadline import Clock
from shared.errors import SecretUnavailable
from shared.outputs.collector import Collector
from shared.ports import (
    BROKEN,
    ENDED,
    Absent,
    AckOutcome,
    CommandOutput,
    Doubtful,
    ItemState,
    ListedItem,
    OpenCalls,
    ProcessState,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxStatus,
    SessionRecord,
    SessionStatus,
    WorkQueue,
)
from shared.reconcile.last_looks import LastLooks, workers_among
from shared.reconcile.outputs_first import OutputsFirst
from shared.reconcile.repairs import (
    AnswerCalls,
    DeleteSnapshot,
    Done,
    EndFailed,
    EndLifetime,
    EndMarked,
    EndNameless,
    EndPrepared,
    EndRace,
    EndUndated,
    Failed,
    LetSleep,
    Mark,
    Outcome,
    Prepare,
    Release,
    Repair,
    Resume,
    Skipped,
    StopItem,
    Suspend,
    Touch,
    Unmark,
)
from shared.reconcile.world import OurSandbox, World
from shared.settings import Settings

_SPARED: Final = 240.0  # seconds past the lifetime in which a worker is only asked: its tool may finish
_KILLED: Final = 60.0  # seconds more until the item is taken away, whatever still runs
_SLOW: Final = Failed("the looks at it took too long to act on")
_GLANCE: Final = 0.1  # of a pass: a sandbox that does not say who is in it is not kept awake by that
_UNSEEN: Final = Failed("the items could not be looked at again")


@dataclass(slots=True)
class RepairExecutor:
    """Carries out repairs of one `World`, for one pass over one environment."""

    settings: Settings
    environment_id: str
    queue: WorkQueue
    host: SandboxHost
    now: Callable[[], datetime]
    world: World
    clock: Clock = time.monotonic
    collector: Collector | None = None
    needs_interrupt: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    _looks: LastLooks = field(init=False)
    _outputs: OutputsFirst = field(init=False)

    def __post_init__(self) -> None:
        self._looks = LastLooks(
            self.settings, self.environment_id, self.queue, self.host, self.now, self.world, self.clock
        )
        self._outputs = OutputsFirst(self.settings, self.host, self.now, self.world, self.collector, self.alarms)

    async def do(self, repair: Repair) -> Outcome:
        match repair:
            case Resume():
                return _outcome(await self.host.resume(repair.sandbox.id))
            case Touch():
                return _outcome(await self.host.touch(repair.sandbox.id))
            case Unmark():
                return _outcome(await self.host.rename(repair.sandbox.id, repair.proper))
            case Release():
                return await self._release(repair)
            case AnswerCalls():
                return await self._answer_calls(repair)
            case StopItem():
                return _outcome(await self.queue.force_stop(repair.item.id))
            case EndLifetime():
                return await self._end_lifetime(repair)
            case LetSleep():
                return await self._let_sleep(repair)
            case EndFailed():
                return await self._end_failed(repair)
            case Suspend():
                return await self._suspend(repair)
            case Mark():
                return await self._mark(repair)
            case EndMarked():
                return await self._end_marked(repair)
            case EndNameless():
                return await self._end_nameless(repair)
            case EndRace():
                return await self._end_race(repair)
            case EndUndated():
                return await self._end_undated(repair)
            case EndPrepared():
                return await self._end_prepared(repair)
            case Prepare():
                return await self._prepare(repair)
            case DeleteSnapshot():
                return _outcome(await self.host.delete_snapshot(repair.snapshot.id))
            case _:
                assert_never(repair)

    # Items

    async def _release(self, repair: Release) -> Outcome:
        """Nobody is behind the item, and its session's calls wait until they are answered."""
        if not repair.whatever_it_says:
            # What may still come to life is left alone.
            match await self.host.find(repair.name):
                case Doubtful() if not repair.silence_tells:
                    return Failed("its sandbox could not be looked at")
                case SandboxRecord(status=SandboxStatus.RUNNING) as sandbox:
                    match await self._looks.workers(sandbox.id):
                        case None if not repair.silence_tells:
                            return Failed("its worker could not be looked at")
                        case [_, *_]:
                            return Skipped("its worker lives")
                case SandboxRecord(status=SandboxStatus.SUSPENDED) if (
                    repair.silence_tells or repair.item.state is ItemState.STOPPING
                ):
                    pass  # a frozen worker stops nothing, and finds its item stopped when it wakes
                case SandboxRecord(status=status) if status not in ENDED:
                    return Skipped("its sandbox may wake up, or is being made")

        def unchanged(now: ListedItem) -> bool:
            return (now.state, now.latest_heartbeat_at) == (repair.item.state, repair.item.latest_heartbeat_at)

        taken = await self._take_away(repair.item, repair.name, unchanged)
        if isinstance(taken, Done) and repair.silence_tells:
            self._alarm(repair.item, f"{repair.why}: its work item is taken away, whatever its sandbox is or says")
        return taken

    async def _end_lifetime(self, repair: EndLifetime) -> Outcome:
        """One step a tick: asked, then killed, then stopped. What nobody in the sandbox holds is stopped at once."""
        if repair.overdue <= _SPARED + _KILLED:
            match await self.host.find(repair.name):
                case SandboxRecord(status=SandboxStatus.RUNNING) as sandbox:
                    workers = await self._looks.workers(sandbox.id)
                    if workers is None:
                        self._alarm(repair.item, "past its lifetime, and its sandbox does not answer")
                        return Failed("its processes could not be looked at")
                    if workers:
                        return await self._end_workers(repair, sandbox.id, workers)
                case Doubtful():
                    return Failed("its sandbox could not be looked at")
                case SandboxRecord(status=status) if status not in ENDED and repair.overdue <= _SPARED:
                    return Skipped("its sandbox does not run")
        taken = await self._take_away(repair.item, repair.name, lambda now: now.state is not ItemState.QUEUED)
        if isinstance(taken, Done):
            self._alarm(repair.item, "its work item was held past WORKER_LIFETIME_SECONDS and is taken away")
            return Done("its item is taken away")
        return taken

    async def _end_workers(self, repair: EndLifetime, sandbox_id: str, workers: Sequence[ProcessState]) -> Outcome:
        spared = repair.overdue <= _SPARED
        step = self._ask if spared else self._kill
        problems = [problem for worker in workers if (problem := await step(sandbox_id, worker)) is not None]
        if problems:
            self._alarm(repair.item, f"past its lifetime, and its worker cannot be {'asked' if spared else 'killed'}")
            return Failed("; ".join(problems))
        return Done("asked to end" if spared else "killed")

    async def _let_sleep(self, repair: LetSleep) -> Outcome:
        workers, session = await asyncio.gather(
            self._looks.workers(repair.sandbox.id), self.queue.session(repair.session_id)
        )
        if not isinstance(session, SessionRecord) or session.status is not SessionStatus.IDLE:
            return Skipped("its session is not idle")
        if session.updated_at is None or not workers:
            return Skipped("no worker waits in it")
        if (self.now() - session.updated_at).total_seconds() <= self.settings.reconcile.waiting_sleep:
            return Skipped("its session has been spoken to")
        problems = [problem for worker in workers if (problem := await self._ask(repair.sandbox.id, worker))]
        return Failed("; ".join(problems)) if problems else Done()

    async def _ask(self, sandbox_id: str, worker: ProcessState) -> str | None:
        """SIGTERM for the worker alone: the service's own signal goes to its group, in which the agent's shell and the
        tool in flight are (docs/wire/tensorlake.md#72-other-process-calls)."""
        if worker.pid is None:
            return _reason(await self.host.signal(sandbox_id, worker.name, signal.SIGTERM))
        asked = await self.host.run(
            sandbox_id,
            "sh",
            ("-c", 'kill -s TERM "$1"', "ask", str(worker.pid)),
            env={},
            user=self.settings.sandbox_user or None,
            working_dir=None,
            timeout=5.0,
        )
        if isinstance(asked, CommandOutput):
            return None if asked.exit_code == 0 else "its worker could not be signalled"
        return _reason(asked)

    async def _kill(self, sandbox_id: str, worker: ProcessState) -> str | None:
        return _reason(await self.host.kill(sandbox_id, worker.name))

    async def _take_away(self, item: ListedItem, name: str, unchanged: Callable[[ListedItem], bool]) -> Outcome:
        """Stop the item that was seen, and answer the calls that wait for it: only those that waited before the stop,
        since the stop may be late and another copy's answer may have let the session go on."""
        waiting = await self.queue.open_calls(item.session_id)
        began = self.clock()
        items = await self._looks.recent(item.created_at)
        if items is None:
            return _UNSEEN
        now = items.live.get(name)
        if now is None or now.id != item.id or now.acknowledged_at != item.acknowledged_at or not unchanged(now):
            return Skipped("the item has changed")
        if self._looks.too_late(began):
            return _SLOW
        stopped = await self.queue.force_stop(item.id)
        if isinstance(stopped, Refused | Doubtful):
            return Failed(f"stopping it failed: {stopped.reason}")
        match waiting:
            case Refused() | Doubtful():
                return Failed(f"its calls could not be looked at: {waiting.reason}")
            case Absent():
                return Done()
            case OpenCalls():
                return await self._answer(item.session_id, name, waiting, stopped=item.id)

    async def _answer_calls(self, repair: AnswerCalls) -> Outcome:
        return await self._answer(repair.session_id, self._name(repair.session_id), repair.calls, stopped=None)

    async def _answer(self, session_id: str, name: str, seen: OpenCalls, stopped: str | None) -> Outcome:
        """Answers the calls that nobody will: the turn goes on with an error, where an interrupt would end it and leave
        calls that the next worker runs although nobody waits for them (docs/wire/anthropic.md#5-session-tool-runner). A
        turn that comes to this again is interrupted: that queues a session for certain.

        Looks first whether the session has gone on: only calls in `seen` are answered, and none where it has an item
        other than the one that was just `stopped`.
        """
        if not seen.ids:
            return Done()
        began = self.clock()
        calls, items = await asyncio.gather(
            self.queue.open_calls(session_id), self._looks.recent(shared=stopped is None)
        )
        match calls:
            case Refused() | Doubtful():
                return Failed(f"its calls could not be looked at: {calls.reason}")
            case Absent():
                return Done()
        if items is None:
            return _UNSEEN
        live = items.live.get(name)
        if live is not None and live.id != stopped:
            return Skipped("the session has a work item")
        if stopped is None and not self._looks.without_item(items, name):
            return Failed("it is not proven that it has no work item")
        left = tuple(call for call in calls.ids if call in seen.ids)
        if not left:
            return Done() if stopped is not None else Skipped("its calls are answered")
        if self._looks.too_late(began):
            return _SLOW
        return await self._give_up(session_id, OpenCalls(left, calls.custom & set(left), calls.given_up))

    async def _give_up(self, session_id: str, calls: OpenCalls) -> Outcome:
        outcome: AckOutcome = Refused(0, "given up before")
        if not calls.given_up:
            outcome = await self.queue.give_up_calls(session_id, calls)
        if isinstance(outcome, Refused):
            outcome = await self.queue.interrupt(session_id)
        if isinstance(outcome, Refused):
            self.needs_interrupt.append(session_id)
            return Failed(f"this key may neither answer the session's lost calls nor interrupt it: {outcome.reason}")
        return _outcome(outcome)

    # Sandboxes

    async def _suspend(self, repair: Suspend) -> Outcome:
        sandbox = repair.sandbox
        setup = ""
        named = await self._looks.processes(
            sandbox.id, None if repair.ask else self.settings.reconcile.deadline * _GLANCE
        )
        if repair.ask:
            if named is None:
                return Failed("its processes could not be looked at")
            workers = workers_among(named)
            if any(process.running for process in workers):
                return Skipped("its worker lives")
            setup = await self._failed_setup(sandbox, workers)
        if named is not None and await self._looks.locked(sandbox.id, named):
            return Skipped("a person's command is in it")
        await self._outputs.at_rest(repair)
        began = self.clock()
        session, found, items = await asyncio.gather(
            self.queue.session(repair.session_id), self.host.find(sandbox.id), self._looks.recent()
        )
        if isinstance(found, Doubtful) or isinstance(session, Doubtful | Refused):
            return Failed("it could not be looked at again")
        if not isinstance(session, SessionRecord) or session.status is not SessionStatus.IDLE:
            return Skipped("its session is not idle")
        if not isinstance(found, SandboxRecord) or found.status is not SandboxStatus.RUNNING:
            return Skipped("it does not run")
        if items is None:
            return _UNSEEN
        if sandbox.name in items.live or (repair.proven and not self._looks.without_item(items, sandbox.name)):
            return Skipped("its session has a work item")
        if self._looks.too_late(began):
            return _SLOW
        slept = _outcome(await self.host.suspend(sandbox.id))
        if setup and isinstance(slept, Done):  # once for each time that it comes to rest
            self.alarms.append(f"{repair.session_id}: its set-up failed: {setup}")
        return slept

    async def _failed_setup(self, sandbox: OurSandbox, named: Sequence[ProcessState]) -> str:
        """Why, where the worker of its latest item said so at its end; the reason is read for one that did."""
        item = self.world.items.latest.get(sandbox.name) if self.world.items is not None else None
        if item is None:
            return ""
        for process in named:
            if process.exit_code == Exit.SETUP_FAILED and process.name.startswith(attempt_prefix(item)):
                said = await self.host.process_output(sandbox.id, process.name)
                key = self.settings.environments[self.environment_id].key
                try:
                    nonce = worker_keys.nonce(await key.areveal(), item)
                except SecretUnavailable:
                    nonce = ""
                told = setup_failure(said, nonce) if nonce and not isinstance(said, Absent | Doubtful) else ""
                return told or f"hands logs {item.session_id} says why"
        return ""

    async def _mark(self, repair: Mark) -> Outcome:
        """No process is asked: a session that is over, or long unused, and has no item has nobody who lives."""
        began = self.clock()
        session, items = await asyncio.gather(self.queue.session(repair.session_id), self._looks.recent())
        if isinstance(session, Doubtful | Refused):
            return Failed("its session could not be looked at again")
        if items is None:
            return _UNSEEN
        if not self._looks.unwanted(session):
            return Skipped("its session is in use")
        live = items.live.get(repair.sandbox.name)
        if live is not None and not (isinstance(session, Absent) and live.state is ItemState.QUEUED):
            return Skipped("its session has a work item")
        if self._looks.too_late(began):
            return _SLOW
        name = names.gone_name(repair.sandbox.name, self.settings.prefix, int(self.now().timestamp()))
        return _outcome(await self.host.rename(repair.sandbox.id, name))

    async def _end_marked(self, repair: EndMarked) -> Outcome:
        """A session that got work between the mark and now has it in another sandbox, unless its worker came into
        this one just before the mark."""
        if (uncollected := await self._outputs.before_end(repair)) is not None:
            return uncollected
        began = self.clock()
        found, holder, items = await asyncio.gather(
            self.host.find(repair.sandbox.id), self.host.find(repair.proper), self._looks.recent()
        )
        if isinstance(found, Doubtful):
            return Failed("it could not be looked at again")
        if not isinstance(found, SandboxRecord) or found.name != repair.sandbox.name:
            return Skipped("it is not marked any more")
        if items is None:
            return _UNSEEN
        if repair.proper in items.live and not (isinstance(holder, SandboxRecord) and holder.status not in BROKEN):
            return Skipped("its session has a work item")
        if self.world.items is None:
            return Failed("it is not proven that its session has no work item")
        return _SLOW if self._looks.too_late(began) else _outcome(await self.host.terminate(repair.sandbox.id))

    async def _end_failed(self, repair: EndFailed) -> Outcome:
        sandbox = repair.sandbox
        if (changed := await self._looks.changed(sandbox, status=True)) is not None:
            return changed
        if self.collector is not None:
            self.alarms.append(f"{sandbox.name}: it failed, and what it made after its last rest is not collected")
        return _outcome(await self.host.terminate(sandbox.id))

    async def _end_nameless(self, repair: EndNameless) -> Outcome:
        """Whoever claimed it late may have named it meanwhile; it is a session's then."""
        if (changed := await self._looks.changed(repair.sandbox, pool=True)) is not None:
            return changed
        return _outcome(await self.host.terminate(repair.sandbox.id))

    async def _end_race(self, repair: EndRace) -> Outcome:
        """A race that lives on renames its sandboxes with a later time."""
        if (changed := await self._looks.changed(repair.sandbox)) is not None:
            return changed
        outcome = _outcome(await self.host.terminate(repair.sandbox.id))
        if isinstance(outcome, Failed):
            self.alarms.append(f"{repair.target}: {repair.why}, and it cannot be deleted: {outcome.why}")
        return outcome

    async def _end_undated(self, repair: EndUndated) -> Outcome:
        from shared.races import undated
        from shared.races.cells import CellUnclear

        there, lasts = repair.sandbox, self.settings.races.record_seconds
        try:
            now = self.now().timestamp()
            over = await undated.is_over(self.host, there.record, there.kind, lasts, now, self.clock)
        except CellUnclear as error:
            return Failed(str(error))
        if not over:
            return Skipped("it is not past its time")
        return await self._looks.changed(there) or _outcome(await self.host.terminate(there.id))

    async def _end_prepared(self, repair: EndPrepared) -> Outcome:
        """Its snapshots first: a pass that is cut off between two of them finds the rest by the sandbox."""
        if (changed := await self._looks.changed(repair.sandbox, status=True)) is not None:
            return changed
        for snapshot in repair.snapshots:
            if (problem := _reason(await self.host.delete_snapshot(snapshot))) is not None:
                return Failed(f"its snapshot {snapshot} could not be deleted: {problem}")
        return _outcome(await self.host.terminate(repair.sandbox.id))

    async def _prepare(self, repair: Prepare) -> Outcome:
        """A step, safe to be cut off anywhere: the next tick looks again."""
        from shared.prepared.preparation import Preparation, PreparationFailed, PreparationStep, SetUpFailed

        environment = self.settings.environments[self.environment_id]
        try:
            step = await Preparation(self.settings, environment, self.host, self.now).step()
        except PreparationFailed as failed:
            if isinstance(failed, SetUpFailed):
                self.alarms.append(f"{repair.target} could not be prepared: {failed}")
            return Failed(str(failed))
        return Skipped("somebody is at it") if step is PreparationStep.GOES_ON else Done(step.value)

    def _alarm(self, item: ListedItem, what: str) -> None:
        self.alarms.append(f"{item.session_id}: {what}")

    def _name(self, session_id: str) -> str:
        return names.sandbox_name(self.settings.prefix, self.environment_id, session_id)


def _reason(outcome: object) -> str | None:
    """None for done, and for what had gone by itself."""
    return outcome.reason if isinstance(outcome, Refused | Doubtful) else None


def _outcome(outcome: Absent | Refused | Doubtful | None) -> Outcome:
    reason = _reason(outcome)
    return Done() if reason is None else Failed(reason)
