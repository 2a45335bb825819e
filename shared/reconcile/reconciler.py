"""Level-triggered repair: read both services, compare, mend the difference, remember nothing.

Who calls: `poll_tick`, and `on_run_started` for sessions that ended; any number of copies at once
(docs/architecture.md#i8). All that it needs is read from the two services each time, so a copy that dies in the middle
leaves nothing half known: the next tick sees what is there. What a look alone can tell is repaired while the questions
about sessions are asked; what does not fit into the pass is named in an alarm and done by a later one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, TypeVar

from shared import metrics, names, tracing
from shared.claims.dispatcher import utc_now
from shared.deadline import Clock, Deadline
from shared.environment_settings import Environment
from shared.outputs.collector import Collector
from shared.ports import (
    Absent,
    Doubtful,
    ItemState,
    Listing,
    OpenCalls,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxStatus,
    SessionRecord,
    SessionStatus,
    WorkLooks,
    WorkQueue,
)
from shared.reconcile.executor import RepairExecutor
from shared.reconcile.lanes import AT_ONCE, Lanes, side_by_side
from shared.reconcile.lookups import Lookups, idle, questions, ring_share, touch_left
from shared.reconcile.plan import due, snapshots_due
from shared.reconcile.prepared import prepared_due, preparing_due
from shared.reconcile.repairs import Done, Failed, Mark, Outcome, Repair, Resume, Skipped, Touch
from shared.reconcile.world import Items, World
from shared.reports import COLLECTING, Act, ActionReport, ReconcileReport
from shared.settings import Settings

log = logging.getLogger(__name__)

_EARLY: Final = frozenset(
    {Act.RESUME, Act.TOUCH, Act.RELEASE, Act.STOP_ITEM, Act.STOP_WORKER, Act.END_RACE, Act.END_NAMELESS}
)
_Row = TypeVar("_Row")
_PLACES: Final = {act: place for place, act in enumerate(Act)}  # in a report
_ALL_GONE: Final = 3  # so many sandboxes whose sessions are all unknown are taken for a wrong key or environment
_SHALLOW: Final = timedelta(hours=6)  # what is older is read only where it decides something
_LONGEST_REPAIR: Final = 10.0  # seconds
_LIVE_A_TOUCH: Final = 20  # each is touched twice in an idle time-out of half an hour or more, by a tick a minute
_AWAKE_A_PAGE: Final = 50  # half a page: the items of turns that have ended meanwhile stand between those that live
_AWAKE_A_LOOKUP: Final = 40  # so that all that are awake are looked up within an hour of ticks a minute
_NAMED: Final = 5  # in an alarm
_RING: Final = secrets.randbelow(1 << 20) / (1 << 20)  # each process walks the ring of sleepers from a place of its own


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Repairs one environment. `place` (0 to 1) is where its ring of sleepers begins. `looks`: what is read instead of
    the queue, where that has a quicker way."""

    settings: Settings
    environment: Environment
    queue: WorkQueue
    host: SandboxHost
    clock: Clock = time.monotonic
    now: Callable[[], datetime] = utc_now
    place: float = _RING
    collector: Collector | None = None
    looks: WorkLooks | None = None

    async def reconcile(self, deadline: Deadline | None = None) -> ReconcileReport:
        """One pass. `deadline` defaults to the settings' own. Never raises for what a service does."""
        return await _Pass(self, self._sooner(deadline)).run()

    async def session_over(self, session_id: str, deadline: Deadline | None = None) -> ReconcileReport:
        """A webhook says that this session was terminated, archived or deleted: mark its sandbox at once, after the
        same looks as ever. Its end comes on a tick. One call where it has no sandbox."""
        return await _Pass(self, self._sooner(deadline)).run(only=names.canonical_session_id(session_id))

    @property
    def reads(self) -> WorkLooks:
        return self.looks or self.queue

    def _sooner(self, deadline: Deadline | None) -> Deadline:
        limit = self.settings.reconcile.deadline
        return (deadline or Deadline.after(limit, self.clock)).sooner(self.clock() + limit)


class _Pass:
    """The running state of one pass."""

    def __init__(self, reconciler: Reconciler, deadline: Deadline) -> None:
        self._of = reconciler
        self._settings = reconciler.settings
        self._deadline = deadline
        self._began = reconciler.clock()
        self._actions: list[ActionReport] = []
        self._alarms: list[str] = []
        self._needs_interrupt: list[str] = []
        self._lookups = 0
        self._undone = 0

    async def run(self, only: str | None = None) -> ReconcileReport:
        """`only`: leave all sessions but this one alone."""
        with tracing.span("reconcile", {tracing.ENVIRONMENT: self._of.environment.id}) as span:
            report = await self._reported_pass(only)
            span.set({"hands.repairs.done": sum(action.done for action in report.actions)})
        return report

    async def _reported_pass(self, only: str | None) -> ReconcileReport:
        world = World(self._of.now())
        try:
            async with asyncio.timeout(self._deadline.left()):
                world = await (self._look() if only is None else self._look_at(only))
                if only is None:
                    measure(world, self._of.environment.id)
                await (self._repair(world) if only is None else self._end(world, only))
        except TimeoutError:
            self._alarms.append("time ran out")
        report = ReconcileReport(
            environment_id=self._of.environment.id,
            sandboxes=len(world.sandboxes) if world.listed else None,
            items=None if world.items is None else world.items.count,
            lookups=self._lookups,
            actions=tuple(sorted(self._actions, key=lambda action: _PLACES[action.act])),
            needs_interrupt=tuple(self._needs_interrupt),
            alarms=tuple(self._alarms),
            undone=self._undone,
            seconds=round(self._of.clock() - self._began, 3),
        )
        self._log(report)
        return report

    # Looks

    async def _look(self) -> World:
        shallow = self._of.now() - _SHALLOW
        listed, items = await asyncio.gather(
            self._listed(self._of.host.list_sandboxes, "sandboxes"), self._items(shallow)
        )
        rows = listed.rows if listed is not None else await self._holders(items)
        world = self._world(rows, items, listed=listed is not None)
        if any(map(world.perhaps_at_work, world.sandboxes)):
            # By pages enough for as many live items as sandboxes are awake: a default is right for a few hundred.
            world = replace(world, items=await self._items(None, world.awake // _AWAKE_A_PAGE))
        await self._tell_unknown(world)
        return world

    def _world(self, rows: Sequence[SandboxRecord], items: Items | None, *, listed: bool) -> World:
        return World.of(self._of.now(), self._settings.prefix, self._of.environment.id, rows, items, listed=listed)

    async def _look_at(self, session_id: str) -> World:
        name = names.sandbox_name(self._settings.prefix, self._of.environment.id, session_id)
        found = await self._of.host.find(name)
        if isinstance(found, Doubtful):
            self._alarms.append(f"{session_id}: its sandbox could not be looked up: {found.reason}")
        if not isinstance(found, SandboxRecord):
            return World(self._of.now(), listed=True)
        return self._world([found], await self._items(self._of.now() - _SHALLOW), listed=True)

    async def _listed(
        self, ask: Callable[[], Awaitable[Listing[_Row] | Refused | Doubtful]], what: str
    ) -> Listing[_Row] | None:
        """None, and an alarm, where the list cannot be had within a third of the time that is left."""
        try:
            async with asyncio.timeout(self._deadline.left() / 3):
                listing = await ask()
        except TimeoutError:
            listing = Doubtful("no answer in time")
        if isinstance(listing, Refused | Doubtful):
            self._alarms.append(f"the {what} could not be listed: {listing.reason}")
            return None
        if listing.unreadable:
            self._alarms.append(f"{listing.unreadable} of the {what} could not be read")
        return listing

    async def _items(self, back_to: datetime | None, pages: int = 0) -> Items | None:
        pages = max(pages, self._settings.reconcile.pages)
        listing = await self._listed(lambda: self._of.reads.list_items(pages, back_to), "work items")
        return None if listing is None else Items.of(listing, self._settings.prefix, self._of.environment.id)

    def _tell_short_list(self, world: World, lookups: Lookups) -> None:
        """Of a session that is at work nobody says that it has no item; its sandbox is kept awake."""
        unproven = [
            sandbox.name
            for sandbox in filter(world.perhaps_at_work, world.sandboxes)
            if (session_id := world.session_of(sandbox)) is None or lookups.rests(session_id)
        ]
        if unproven and world.items is not None:
            reaches = "" if world.items.reaches is None else f" back to {world.items.reaches:%Y-%m-%d %H:%M} UTC"
            self._alarms.append(
                f"the work items were read{reaches} only (RECONCILE_PAGES): it is not proven that these have none, "
                f"and only their sessions decide: {_some(unproven)}"
            )

    async def _tell_unknown(self, world: World) -> None:
        """A status that this bundle has never heard of keeps every rule away, so one that stays is named."""
        twice = []
        for sandbox in [each for each in world.sandboxes if each.status is SandboxStatus.UNKNOWN][:AT_ONCE]:
            found = await self._of.host.find(sandbox.id)
            if isinstance(found, SandboxRecord) and found.status is SandboxStatus.UNKNOWN:
                twice.append(sandbox.name)
        long_ago = world.now - timedelta(seconds=self._settings.times.stranded)
        for item in world.items.live.values() if world.items is not None else ():
            if item.state is ItemState.UNKNOWN and item.created_at < long_ago:
                twice.append(item.id)
        if twice:
            self._alarms.append(f"unknown status, seen twice: {_some(twice)}")

    async def _holders(self, items: Items | None) -> list[SandboxRecord]:
        """Without a list: the sandboxes that urgent repairs are about, one look-up each."""
        urgent = [
            name
            for name, item in (items.live if items is not None else {}).items()
            if item.state in (ItemState.STARTING, ItemState.ACTIVE)
        ][: self._settings.reconcile.lookups]
        found = await self._asked(self._of.host.find, urgent)
        return [sandbox for sandbox in found.values() if isinstance(sandbox, SandboxRecord)]

    # Repairs

    async def _repair(self, world: World) -> None:
        executor, lanes = self._hands(world)
        try:
            async with asyncio.TaskGroup() as group:
                live = max(world.awake, len(world.items.live) if world.items is not None else 0)
                early = [each for each in due(world, Lookups(), self._settings) if each.act in _EARLY]
                if early:
                    group.create_task(self._work_off(lanes, self._touchable(early, live)))
                lookups, trusted = await self._ask(world)
                if trusted:
                    begun = {(each.act, each.target) for each in early}
                    later = [
                        each for each in due(world, lookups, self._settings) if (each.act, each.target) not in begun
                    ]
                    if later:
                        group.create_task(self._work_off(lanes, later))
                    await self._work_off(lanes, await self._snapshots(world))
        finally:
            self._tell_work(executor, lanes)

    async def _end(self, world: World, session_id: str) -> None:
        """What a webhook about the end of a session leads to."""
        if not world.sandboxes:
            return
        executor, lanes = self._hands(world)
        try:
            session = await self._of.reads.session(session_id)
            self._lookups = 1
            known = {session_id: session} if isinstance(session, SessionRecord | Absent) else {}
            repairs = due(world, Lookups(known), self._settings)
            await self._work_off(lanes, [repair for repair in repairs if isinstance(repair, Mark)])
        finally:
            self._tell_work(executor, lanes)

    def _hands(self, world: World) -> tuple[RepairExecutor, Lanes]:
        of = self._of
        executor = RepairExecutor(
            of.settings, of.environment.id, of.queue, of.host, of.now, world, of.clock, of.collector
        )

        async def do(repair: Repair) -> Outcome:
            try:
                with tracing.span(f"repair {repair.act.value}", {"hands.repair.target": repair.target}) as span:
                    outcome = await executor.do(repair)
                    if isinstance(outcome, Failed):
                        span.fail("not_done")
                    return outcome
            except Exception as error:  # the edge: one repair's bug must not stop the others
                log.exception("repair.bug act=%s target=%s", repair.act.value, repair.target)
                return Failed(f"bug: {type(error).__name__}")

        seconds = min(_LONGEST_REPAIR, self._settings.reconcile.deadline / 4)
        outputs = self._settings.outputs
        return executor, Lanes(
            do,
            self._reported,
            seconds=seconds,
            ends=max(3, len(world.sandboxes) // 5),
            longer=dict.fromkeys(COLLECTING, seconds + outputs.seconds) if outputs is not None else {},
        )

    async def _work_off(self, lanes: Lanes, repairs: Sequence[Repair]) -> None:
        if self._settings.dry_run:
            for repair in repairs:
                self._reported(repair, Failed("dry run: nothing was done"))
            return
        await lanes.run(repairs)

    def _reported(self, repair: Repair, outcome: Outcome) -> None:
        if not isinstance(outcome, Skipped):
            word = "done" if isinstance(outcome, Done) else "failed"
            of = {metrics.ENVIRONMENT: self._of.environment.id, "hands.repair.act": repair.act.value}
            metrics.record(metrics.REPAIRS, 1, of | {metrics.OUTCOME: word})
        match outcome:
            case Done(note=note):
                why = f"{repair.why}: {note}" if note else repair.why
                self._actions.append(ActionReport(repair.act, repair.target, why, done=True))
            case Failed(why=problem):
                self._actions.append(ActionReport(repair.act, repair.target, repair.why, done=False, problem=problem))
            case Skipped():
                pass

    def _tell_work(self, executor: RepairExecutor, lanes: Lanes) -> None:
        self._needs_interrupt += executor.needs_interrupt
        self._alarms += executor.alarms
        if lanes.capped:
            self._tell_capped(lanes.capped)
        self._undone += len(_others(lanes.waiting, lanes.capped))

    def _tell_capped(self, repairs: Sequence[Repair]) -> None:
        self._undone += len(repairs)
        self._alarms.append(
            f"{len(repairs)} repair(s) wait for later ticks: {_some([repair.target for repair in repairs])}"
        )

    def _touchable(self, repairs: Sequence[Repair], live: int) -> Sequence[Repair]:
        """Only so many sandboxes are touched in one pass, those first that have the least time left. Most of the others
        come to it on the next ticks; that too few did shows where one with work had fallen asleep."""
        touches = [repair for repair in repairs if isinstance(repair, Touch)]
        touches.sort(key=lambda repair: touch_left(self._of.now(), repair.sandbox))
        waiting = touches[max(self._settings.reconcile.touches, live // _LIVE_A_TOUCH) :]
        self._undone += len(waiting)
        asleep = [repair.target for repair in repairs if isinstance(repair, Resume)]
        if waiting and asleep:
            self._alarms.append(
                f"{len(waiting)} sandbox(es) with work are kept awake by later ticks only (RECONCILE_TOUCHES), and "
                f"{len(asleep)} had fallen asleep: {_some(asleep)}"
            )
        return _others(repairs, waiting)

    # Questions about sessions

    async def _ask(self, world: World) -> tuple[Lookups, bool]:
        """What look-ups say, and whether they can be trusted."""
        asked = questions(world, self._settings, self._of.place)
        urgent, doubtful = asked.within(max(self._settings.reconcile.lookups, world.awake // _AWAKE_A_LOOKUP))
        if late := asked.urgent[len(urgent) :]:
            self._alarms.append(
                f"{len(late)} session(s) wait for later ticks to be looked up (RECONCILE_LOOKUPS): {_some(late)}"
            )
        if asked.too_many_doubts(doubtful):
            self._alarms.append(
                f"{len(asked.doubtful)} session(s), of which work items may be among those that were not read "
                f"(RECONCILE_PAGES), wait for more than an hour to be looked up (RECONCILE_LOOKUPS)"
            )
        first = await self._told([*urgent, *doubtful])
        self._tell_short_list(world, first)
        sessions, calls = dict(first.sessions), dict(first.calls)
        share = ring_share(world)
        for session_id in asked.sleepers:
            if share < 2:
                break
            further = await self._told([session_id])
            share -= 1 + len(further.calls)
            sessions |= further.sessions
            calls |= further.calls
        lookups = Lookups(sessions, calls)
        return lookups, await self._trusted(world, lookups)

    async def _told(self, session_ids: Sequence[str]) -> Lookups:
        answers = await self._asked(self._of.reads.session, session_ids)
        unknown = [key for key, said in answers.items() if _unknown(said)]
        if unknown:
            again = await self._asked(self._of.reads.session, unknown)
            twice = [key for key, said in again.items() if _unknown(said)]
            if twice:
                self._alarms.append(f"look-ups of sessions failed twice: {_some(twice)}")
            answers |= again
        sessions = {key: said for key, said in answers.items() if isinstance(said, SessionRecord | Absent)}
        calls = await self._asked(self._of.reads.open_calls, [key for key, said in sessions.items() if idle(said)])
        self._lookups += len(answers) + len(calls)
        return Lookups(sessions, {key: said for key, said in calls.items() if isinstance(said, OpenCalls)})

    async def _trusted(self, world: World, lookups: Lookups) -> bool:
        said = lookups.sessions.values()
        if not said or not all(isinstance(session, Absent) for session in said):
            return True
        held = [name for sandbox in world.sandboxes if (name := world.session_of(sandbox)) is not None]
        if len(held) < _ALL_GONE or await self._any_other_known(world, lookups, held):
            return True
        self._alarms.append(f"all {len(said)} sessions looked up are unknown: wrong key or environment?")
        return False

    async def _any_other_known(self, world: World, lookups: Lookups, held: Sequence[str]) -> bool:
        """Whether a session that nobody asked about is known: then the others are really gone, and key and
        environment are right. The newest sessions of the queue are asked, and some that have a sandbox."""
        latest = world.items.latest.values() if world.items is not None else ()
        newest = sorted(latest, key=lambda item: item.created_at, reverse=True)
        others = [item.session_id for item in newest if item.session_id not in lookups.sessions][:AT_ONCE]
        others += [name for name in held if name not in lookups.sessions and name not in others][: AT_ONCE // 2]
        answers = await self._asked(self._of.reads.session, others)
        self._lookups += len(answers)
        return any(isinstance(said, SessionRecord) for said in answers.values())

    async def _asked(self, ask: Callable[[str], Awaitable[object]], asked: Sequence[str]) -> dict[str, object]:
        """The answers, eight questions at a time, that come within half of the time that is left."""
        answers: dict[str, object] = {}
        if not asked:
            return answers
        places = asyncio.Semaphore(AT_ONCE)

        async def one(question: str) -> None:
            async with places:
                answers[question] = await ask(question)

        try:
            async with asyncio.timeout(self._deadline.left() / 2):
                await side_by_side(one, asked)
        except TimeoutError:
            missing = [question for question in asked if question not in answers]
            self._alarms.append(f"{len(missing)} look-up(s) had no answer in time: {_some(missing)}")
        return answers

    async def _snapshots(self, world: World) -> Sequence[Repair]:
        listing = await self._listed(self._of.host.list_snapshots, "snapshots")
        if listing is None:
            return []
        of = self._of
        return [
            *snapshots_due(listing.rows, world, self._settings),
            *prepared_due(listing.rows, world, self._settings, of.environment),
            *preparing_due(listing.rows, world, self._settings, of.environment),
        ]

    def _log(self, report: ReconcileReport) -> None:
        raised = len(report.alarms) + len(report.needs_interrupt)
        if raised:
            of = {metrics.ENVIRONMENT: report.environment_id, "hands.alarm.source": "reconcile"}
            metrics.record(metrics.ALARMS, raised, of)
        done = sum(action.done for action in report.actions)
        level = logging.WARNING if report.alarms or report.needs_interrupt else logging.INFO
        log.log(
            logging.DEBUG if self._settings.dry_run else level,  # whoever asked for a dry run has its report
            "reconcile.done environment=%s sandboxes=%s items=%s done=%d failed=%d undone=%d alarms=%s seconds=%s",
            report.environment_id,
            report.sandboxes,
            report.items,
            done,
            len(report.actions) - done,
            report.undone,
            list(report.alarms),
            report.seconds,
        )


def measure(world: World, environment_id: str) -> None:
    """The gauges of what a look has seen; what was not seen keeps its last value."""
    if not metrics.is_on():
        return
    of = {metrics.ENVIRONMENT: environment_id}
    if world.listed:
        counts = Counter(sandbox.status for sandbox in world.sandboxes)
        for status in SandboxStatus:
            metrics.record(metrics.SANDBOXES, counts[status], of | {"hands.sandbox.state": status.value})
    if world.items is not None:
        waiting = [item.created_at for item in world.items.live.values() if item.state is ItemState.QUEUED]
        oldest = max(0.0, (world.now - min(waiting)).total_seconds()) if waiting else 0.0
        metrics.record(metrics.QUEUE_DEPTH, len(waiting), of)
        metrics.record(metrics.QUEUE_AGE, oldest, of)


def _others(repairs: Sequence[Repair], without: Sequence[Repair]) -> Sequence[Repair]:
    """Told apart by identity: among thousands, comparing each with each would take most of a pass."""
    left_out = {id(repair) for repair in without}
    return [repair for repair in repairs if id(repair) not in left_out]


def _unknown(said: object) -> bool:
    return isinstance(said, Doubtful) or (isinstance(said, SessionRecord) and said.status is SessionStatus.UNKNOWN)


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more
