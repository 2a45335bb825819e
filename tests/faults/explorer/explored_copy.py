"""One process of the bundle in an explored run, judged while it works (docs/architecture.md#rules: I1, I7, I9)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from shared.claims.capacity import Capacity
from shared.claims.claimer import ROUND_SECONDS, Claimer, Drain
from shared.claims.dispatcher import Dispatcher
from shared.claims.known_sandboxes import LONGEST, KnownSandboxes
from shared.claims.warm_pool import WarmPool
from shared.ports import ItemState
from shared.reconcile.lookups import IDLE_TICK_CALLS
from shared.reconcile.reconciler import Reconciler
from shared.reports import ItemEnd, ItemReport, ReconcileReport
from tests.faults.explorer.scaled_settings import ENVIRONMENT, POOL
from tests.faults.explorer.watch import Polling, WatchedHost, WatchedQueue
from tests.support.model.claude import ModelItem
from tests.support.model.lines import ModelLine

if TYPE_CHECKING:
    from tests.faults.explorer.run import ExploredWorld

SOON: Final = 6.0  # seconds from a wake-up until what waited then is claimed: a round that runs, a pause, one more


@dataclass(slots=True, eq=False)
class ExploredCopy:
    """One process of the bundle, as shared/service.py makes it; a crash ends it, the next wake-up starts another."""

    world: ExploredWorld
    index: int
    born: int = 0
    line: ModelLine = field(init=False)
    claimer: Claimer = field(init=False)
    polling: Polling = field(init=False)
    routes: dict[str, int] = field(init=False)
    tasks: dict[asyncio.Task[Any], None] = field(default_factory=dict)
    drains: dict[Drain, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        world = self.world
        self.line = world.new_line(f"c{self.index}", str(self.born), on_crash=self.crash)
        self.polling = Polling(world.loop.time)
        self.routes = {}
        self.drains = {}
        room = Capacity(ENVIRONMENT, world.loop.time)
        known = KnownSandboxes(world.loop.time, min(LONGEST, world.settings.reconcile.retention / 4))
        pool = WarmPool(POOL, ENVIRONMENT, world.loop.time) if world.plan.pooled else None
        self.claimer = Claimer(lambda: self._dispatcher(room, known, pool), on_item=self._item_ended)
        self.born += 1

    def _dispatcher(self, room: Capacity, known: KnownSandboxes, pool: WarmPool | None) -> Dispatcher:
        """For one round of polls."""
        world, loop = self.world, self.world.loop
        queue = WatchedQueue(
            world.watch, self.line, dispatcher=True, environment_id=ENVIRONMENT, polling=self.polling, began=loop.time()
        )
        host = WatchedHost(world.watch, self.line, dispatcher=True, routes=self.routes)
        return Dispatcher(world.settings, world.environment, queue, host, loop.time, world.now, room, known, pool=pool)

    def crash(self) -> None:
        """No further call of this process reaches a service; those that were sent do."""
        self.line.dead = True
        self.world.note(f"c{self.index}", "crashes")
        claimer = self.claimer
        claimer._closed, claimer._next = True, None
        if claimer._put_off is not None:
            claimer._put_off.cancel()
        for task in (*self.tasks, *claimer._items, *([claimer._rounds] if claimer._rounds else [])):
            task.cancel()
        self.tasks.clear()

    def spawn(self, work: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> None:
        task = work if isinstance(work, asyncio.Task) else self.world.loop.create_task(work)
        if task not in self.tasks:
            self.tasks[task] = None
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.truth.check(
                "I7", False, f"a copy raises {type(error).__name__}: {error}", self.world.loop.time()
            )

    def wake(self) -> None:
        if self.line.dead:
            self.start()
        self._claim()

    def tick(self) -> None:
        if self.line.dead:
            self.start()
        self._claim()  # no repair waits for it
        self.spawn(self._reconcile(lambda reconciler: reconciler.reconcile()))

    def session_over(self, session_id: str) -> None:
        if self.line.dead:
            self.start()
        self.spawn(self._session_over(session_id))

    def _claim(self) -> None:
        self._expect_claims()
        drain = self.claimer.wake()
        if drain not in self.drains:
            self.drains[drain] = None
            self.spawn(self._judge_drain(drain))

    def _expect_claims(self) -> None:
        """Whoever is woken claims soon what waits then, whatever it has in hand."""
        loop, polling = self.world.loop, self.polling
        waiting = [(item, item.handed_out) for item in self.world.claude.claimable(self.world.settings.times.reclaim)]
        if waiting and not polling.holds.left(ENVIRONMENT):
            loop.after(SOON, self._judge_claims, self.born, polling.trouble, waiting)

    def _judge_claims(self, born: int, trouble: int, waiting: list[tuple[ModelItem, int]]) -> None:
        if self.line.dead or (born, trouble) != (self.born, self.polling.trouble) or self.polling.hangs():
            return
        for item, handed_out in waiting:
            waits = item.state is ItemState.QUEUED and not item.stale and item.handed_out == handed_out
            self.world.judge("I9", not waits, f"an item waits though somebody was woken: {item.id}")

    async def _judge_drain(self, drain: Drain) -> None:
        world = self.world
        await drain.polled.wait()
        world.judge("I1", not drain.reason.startswith("bug"), f"a round meets a bug: {drain.reason}")
        earlier, self.polling.round_began = self.polling.round_began, drain.began
        hurried = drain.polls and drain.began < earlier + ROUND_SECONDS - 0.001
        world.judge("I9", not hurried, f"rounds of polls come too often: {drain.began - earlier:.2f} s apart")
        extra = drain.polls - len(drain.items) - len(drain.serving)
        most = 16 + 2 * len(world.sessions)  # one empty poll a poller, and what fails or is stale
        world.judge("I9", extra <= most, f"a round makes too many polls: {extra}")

    def _item_ended(self, item: ItemReport) -> None:
        world = self.world
        world.judge("I1", not item.reason.startswith("bug"), f"an item meets a bug: {item.reason}")
        late = item.seconds > world.settings.times.reclaim + 0.1
        world.judge("I7", not late, f"an item is served for longer than its claim is good for: {item.seconds:.1f} s")
        loud = item.end is not ItemEnd.POISONED or item.alarm
        world.judge("I1", loud, f"an item is given up without an alarm: {item.work_id}")
        world.note(self.line.caller, f"{item.work_id} ends {item.end}: {item.reason}")

    async def idles(self) -> None:
        """A tick when nothing has changed for long."""
        if self.line.dead:
            self.start()
        before = self.line.calls
        report = await self._reconcile(lambda reconciler: reconciler.reconcile())
        made = self.line.calls - before
        boxes = [box for box in self.world.sandboxes.boxes.values() if box.exists]
        lately = 2 * (len(self.world.claude.sessions) - len(boxes))  # asked about for an hour after they lost theirs
        most = IDLE_TICK_CALLS + max(0, lately)
        idle = not report.actions
        self.world.judge("I9", not idle or made <= most, f"an idle tick makes too many calls: {made}")

    async def _session_over(self, session_id: str) -> None:
        await self._reconcile(lambda reconciler: reconciler.session_over(session_id))

    async def _reconcile(self, what: Callable[[Reconciler], Awaitable[ReconcileReport]]) -> ReconcileReport:
        world, loop, line = self.world, self.world.loop, self.line
        began, calls = loop.time(), line.calls
        queue = WatchedQueue(
            world.watch, line, dispatcher=False, environment_id=ENVIRONMENT, polling=self.polling, began=began
        )
        host = WatchedHost(world.watch, line, dispatcher=False, routes=self.routes)
        report = await what(
            Reconciler(world.settings, world.environment, queue, host, loop.time, world.now, self.index / 5)
        )
        world.alarmed = any("are unknown" in alarm for alarm in report.alarms)
        took, made = loop.time() - began, line.calls - calls
        limit = world.settings.reconcile.deadline
        world.judge("I7", took <= limit + 0.1, f"a pass outlives its deadline: {took:.1f} s")
        things = len(world.sandboxes.boxes) + len(world.claude.items) + len(world.claude.sessions)
        world.judge("I7", made <= 60 + 10 * things, f"a pass makes too many calls: {made}")
        for action in report.actions:
            world.judge("I1", not action.problem.startswith("bug"), f"a repair meets a bug: {action.problem}")
            world.note(line.caller, f"{action.act} {action.target}: {action.why} {action.problem}")
        return report
