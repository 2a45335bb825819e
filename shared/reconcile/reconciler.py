"""Level-triggered repair: read both services, compare, mend the difference, remember nothing.

Who calls: `poll_tick` after its drain, `on_run_started` for sessions that ended; any number of copies at once
(docs/architecture.md#i8). All that it needs is read from the two services each time, so a copy that dies in the middle
leaves nothing half
known: the next tick sees what is there. The order of repairs is their urgency; what does not fit into the pass is
counted and done by a later one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Final, TypeVar

from shared import names
from shared.claims.dispatcher import utc_now
from shared.deadline import Clock, Deadline
from shared.ports import (
    Absent,
    Doubtful,
    ItemState,
    Listing,
    OpenCalls,
    Refused,
    SandboxHost,
    SandboxRecord,
    SessionRecord,
    WorkQueue,
)
from shared.reconcile.executor import RepairExecutor
from shared.reconcile.plan import Lookups, Repair, due, sessions_to_look_up, snapshots_due
from shared.reconcile.world import OVER, Items, World
from shared.reports import ENDS, Act, ActionReport, ReconcileReport
from shared.settings import Environment, Settings

log = logging.getLogger(__name__)

_AT_ONCE: Final = 8
_EARLY: Final = frozenset({Act.RESUME, Act.TOUCH})  # they end nothing and need no session's state
_Row = TypeVar("_Row")
_ALL_GONE: Final = 3  # so many look-ups that all answer 404 are taken for a wrong key or environment


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Repairs one environment."""

    settings: Settings
    environment: Environment
    queue: WorkQueue
    host: SandboxHost
    clock: Clock = time.monotonic
    now: Callable[[], datetime] = utc_now

    async def reconcile(self, deadline: Deadline | None = None) -> ReconcileReport:
        """One pass. `deadline` defaults to the settings' own. Never raises for what a service does."""
        limit = self.settings.reconcile.deadline
        deadline = (deadline or Deadline.after(limit, self.clock)).sooner(self.clock() + limit)
        return await _Pass(self, deadline).run()

    async def session_over(self, session_id: str, deadline: Deadline | None = None) -> ReconcileReport:
        """A webhook says that this session was terminated, archived or deleted: mark its sandbox at once, after the
        same looks as ever. Its end comes on a tick."""
        limit = self.settings.reconcile.deadline
        deadline = (deadline or Deadline.after(limit, self.clock)).sooner(self.clock() + limit)
        return await _Pass(self, deadline).run(only=names.canonical_session_id(session_id))


class _Pass:
    """The running state of one pass."""

    def __init__(self, reconciler: Reconciler, deadline: Deadline) -> None:
        self._of = reconciler
        self._settings = reconciler.settings
        self._deadline = deadline
        self._began = reconciler.clock()
        self._executor = RepairExecutor(
            reconciler.settings,
            reconciler.environment.id,
            reconciler.queue,
            reconciler.host,
            reconciler.now,
            reconciler.clock,
        )
        self._actions: list[ActionReport] = []
        self._alarms: list[str] = []
        self._lookups = 0
        self._undone = 0

    async def run(self, only: str | None = None) -> ReconcileReport:
        """`only`: leave all sessions but this one alone."""
        world = World(self._of.now())
        try:
            async with asyncio.timeout(self._deadline.left()):
                world = await self._look(only)
                if only is None:  # what a look alone can tell comes before questions that may take long
                    early = due(world, Lookups({}), self._settings, self._of.environment.id)
                    await self._work_off(self._touchable([repair for repair in early if repair.act in _EARLY]))
                repairs, trusted = await self._due(world, only)
                await self._work_off(repairs)
                if trusted and only is None:
                    await self._work_off(await self._snapshots(world))
        except TimeoutError:
            self._alarms.append("time ran out")
        report = ReconcileReport(
            environment_id=self._of.environment.id,
            sandboxes=len(world.sandboxes) if world.listed else None,
            items=None if world.items is None else world.items.count,
            lookups=self._lookups,
            actions=tuple(self._actions),
            needs_interrupt=tuple(self._executor.needs_interrupt),
            alarms=tuple(self._alarms),
            undone=self._undone,
            seconds=round(self._of.clock() - self._began, 3),
        )
        self._log(report)
        return report

    async def _work_off(self, repairs: Sequence[Repair]) -> None:
        """All of them, side by side where they are of one kind. What a time-out cuts off stays counted as undone."""
        if self._settings.dry_run:
            self._actions += [_report(repair, "dry run: nothing was done") for repair in repairs]
            return
        self._undone += len(repairs)
        for _, same in groupby(repairs, key=lambda repair: repair.act):
            group = list(same)
            for start in range(0, len(group), _AT_ONCE):
                await asyncio.gather(*(self._do(repair) for repair in group[start : start + _AT_ONCE]))

    async def _look(self, only: str | None) -> World:
        listed, items = await asyncio.gather(self._sandboxes(only), self._items())
        everything = listed if listed is not None else await self._holders(items)
        mine = [sandbox for sandbox in everything if self._is_mine(sandbox)]
        seen = {sandbox.id: sandbox for sandbox in everything}
        return World(self._of.now(), mine, items, seen, listed=listed is not None)

    async def _sandboxes(self, only: str | None) -> Sequence[SandboxRecord] | None:
        if only is not None:
            name = names.sandbox_name(self._settings.prefix, self._of.environment.id, only)
            found = await self._of.host.find(name)
            return [found] if isinstance(found, SandboxRecord) else []
        listing = await self._listed(self._of.host.list_sandboxes(), "sandboxes")
        return None if listing is None else listing.rows

    async def _listed(self, asking: Awaitable[Listing[_Row] | Refused | Doubtful], what: str) -> Listing[_Row] | None:
        """None, and an alarm, where the list cannot be had within a third of the time that is left."""
        try:
            async with asyncio.timeout(self._deadline.left() / 3):
                listing = await asking
        except TimeoutError:
            listing = Doubtful("no answer in time")
        if isinstance(listing, Refused | Doubtful):
            self._alarms.append(f"the {what} could not be listed: {listing.reason}")
            return None
        if listing.unreadable:
            self._alarms.append(f"{listing.unreadable} of the {what} could not be read")
        return listing

    async def _items(self) -> Items | None:
        listing = await self._listed(self._of.queue.list_items(self._settings.reconcile.pages), "work items")
        if listing is None:
            return None
        return Items.of(listing, self._settings.prefix, self._of.environment.id, self._of.now())

    async def _holders(self, items: Items | None) -> list[SandboxRecord]:
        """Without a list: the sandboxes that urgent repairs are about, one look-up each."""
        urgent = [
            name
            for name, item in (items.live if items is not None else {}).items()
            if item.state in (ItemState.STARTING, ItemState.ACTIVE)
        ][: self._settings.reconcile.lookups]
        found = await self._asked(self._of.host.find, urgent)
        return [sandbox for sandbox in found.values() if isinstance(sandbox, SandboxRecord)]

    def _is_mine(self, sandbox: SandboxRecord) -> bool:
        """Of this environment and not over; a kept one has no name of ours."""
        name = names.parse(self._settings.prefix, sandbox.name)
        return sandbox.status not in OVER and names.belongs_to(name, self._of.environment.id)

    async def _due(self, world: World, only: str | None) -> tuple[Sequence[Repair], bool]:
        """What is due after the look-ups, and whether they can be trusted."""
        asked = sessions_to_look_up(world, self._settings)[: self._settings.reconcile.lookups]
        if only is not None:
            asked = [only]
        answers = await self._asked(self._of.queue.session, asked)
        known = Lookups({key: said for key, said in answers.items() if isinstance(said, SessionRecord | Absent)})
        calls = await self._asked(self._of.queue.open_calls, known.idle)
        self._lookups = len(answers) + len(calls)
        waiting = [key for key, said in calls.items() if isinstance(said, OpenCalls) and said.ids]
        lookups = Lookups(known.sessions, frozenset(waiting))
        repairs = due(world, lookups, self._settings, self._of.environment.id)
        if only is not None:
            return [repair for repair in repairs if repair.act is Act.MARK], True
        said = lookups.sessions.values()
        gone = len(said) >= _ALL_GONE and all(isinstance(session, Absent) for session in said)
        if gone and not await self._any_other_known(world, lookups):
            self._alarms.append(f"all {len(said)} sessions looked up are unknown: wrong key or environment?")
            return [], False
        return self._within_bounds([repair for repair in repairs if repair.act not in _EARLY], world), True

    async def _snapshots(self, world: World) -> list[Repair]:
        listing = await self._listed(self._of.host.list_snapshots(), "snapshots")
        rows = [] if listing is None else list(listing.rows)
        return list(snapshots_due(rows, world, self._settings, self._of.environment.id))

    async def _any_other_known(self, world: World, lookups: Lookups) -> bool:
        """Whether a session that nobody asked about is known: then the others are really gone, and key and
        environment are right. The newest sessions of the queue are asked."""
        latest = world.items.latest.values() if world.items is not None else ()
        newest = sorted(latest, key=lambda item: item.created_at, reverse=True)
        others = [item.session_id for item in newest if item.session_id not in lookups.sessions][:_AT_ONCE]
        answers = await self._asked(self._of.queue.session, others)
        self._lookups += len(answers)
        return any(isinstance(said, SessionRecord) for said in answers.values())

    def _touchable(self, repairs: Sequence[Repair]) -> Sequence[Repair]:
        """Only so many sandboxes are touched in one pass."""
        touches = [repair for repair in repairs if repair.act is Act.TOUCH]
        return self._without(repairs, touches[self._settings.reconcile.touches :])

    def _within_bounds(self, repairs: Sequence[Repair], world: World) -> Sequence[Repair]:
        """At most max(3, 20 %) of the sandboxes end in one pass (docs/reconciler.md#limits)."""
        ends = [repair for repair in repairs if repair.act in ENDS]
        return self._without(repairs, ends[max(3, len(world.sandboxes) // 5) :])

    def _without(self, repairs: Sequence[Repair], waiting: Sequence[Repair]) -> Sequence[Repair]:
        if waiting:
            self._undone += len(waiting)
            self._alarms.append(f"{len(waiting)} repair(s) wait for later ticks")
        return [repair for repair in repairs if repair not in waiting]

    async def _asked(self, ask: Callable[[str], Awaitable[object]], questions: Sequence[str]) -> dict[str, object]:
        """The answers, eight questions at a time, that come within half of the time that is left."""
        answers: dict[str, object] = {}

        async def one(question: str) -> None:
            answers[question] = await ask(question)

        try:
            async with asyncio.timeout(self._deadline.left() / 2):
                for start in range(0, len(questions), _AT_ONCE):
                    await asyncio.gather(*(one(question) for question in questions[start : start + _AT_ONCE]))
        except TimeoutError:
            self._alarms.append(f"{len(questions) - len(answers)} look-up(s) had no answer in time")
        return answers

    async def _do(self, repair: Repair) -> None:
        try:
            report = await self._executor.do(repair)
        except Exception as error:  # the edge: one repair's bug must not stop the others
            log.exception("repair.bug act=%s target=%s", repair.act.value, repair.target)
            report = _report(repair, f"bug: {type(error).__name__}")
        self._undone -= 1
        if report is not None:
            self._actions.append(report)

    def _log(self, report: ReconcileReport) -> None:
        done = sum(action.done for action in report.actions)
        log.log(
            logging.WARNING if report.alarms or report.needs_interrupt else logging.INFO,
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


def _report(repair: Repair, problem: str) -> ActionReport:
    return ActionReport(repair.act, repair.target, repair.why, done=False, problem=problem)
