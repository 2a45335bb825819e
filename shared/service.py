"""The composition root: settings in, both services' adapters and everything that the functions can do with them out.

Building a Service opens nothing and imports neither the core nor an SDK: a cold start that only has to refuse an
unauthenticated caller pays for none of it (tests/functions/test_imports.py), and both adapters connect on their first
call. Whatever is bounded by the caller's own time gets a deadline as an argument: a runtime that ends an invocation
says so with each call, and nothing of one invocation stays for the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shared import metrics, tracing
from shared.deadline import Deadline
from shared.environment_settings import Environment
from shared.settings import Settings

if TYPE_CHECKING:
    from shared.adapters.call_budget import CallBudget
    from shared.adapters.service_clock import ServiceClock
    from shared.claims.capacity import Capacity
    from shared.claims.claimer import Claimer, Drain
    from shared.claims.dispatcher import Dispatcher
    from shared.claims.known_sandboxes import KnownSandboxes
    from shared.claims.warm_pool import WarmPool
    from shared.outputs.collector import Collector
    from shared.ports import SandboxHost, WorkQueue
    from shared.prepared.starts import PreparedStarts
    from shared.races.ends import RaceTimeouts
    from shared.races.events import OnEvent
    from shared.races.report import RaceReport
    from shared.races.request import RaceRequest
    from shared.reconcile.ended_sessions import EndedSessions
    from shared.reconcile.reconciler import Reconciler
    from shared.reports import DrainReport, ItemReport, ReconcileReport, TickReport

log = logging.getLogger(__name__)

_ENDS_BEFORE_A_FREEZE: Final = 3.0  # seconds that a race's report waits for ends where the runtime freezes after it
_KEPT_BEFORE_A_FREEZE: Final = 5.0  # seconds that the answer waits there for a report that is to be kept
FOR_RACES: Final = 0.85  # of the time that a runtime leaves; the rest is for ending what a race made


_R = TypeVar("_R")


class Service:
    """What runs in this process. Close it with `aclose` before its event loop ends.

    on_item: told of each work item's end. now: the time of day that ages are judged by.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_item: Callable[[ItemReport], None] = lambda _: None,
        now: ServiceClock | None = None,
    ) -> None:
        self.settings = settings
        self._given_clock = now
        self._on_item = on_item
        self._queues: dict[str, WorkQueue] = {}
        self._claimers: dict[str, Claimer] = {}
        self._capacities: dict[str, Capacity] = {}
        self._known: dict[str, KnownSandboxes] = {}
        self._prepared: dict[str, PreparedStarts] = {}
        self._pools: dict[str, WarmPool] = {}
        self._imports: asyncio.Task[None] | None = None
        self._retired: list[WorkQueue | SandboxHost] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retirement: asyncio.TimerHandle | None = None
        for environment in settings.environments.values():
            if environment.hosts_added:
                log.info(
                    "egress.extended environment=%s setting=SANDBOX_ALLOW_OUT hosts=%s",
                    environment.id,
                    ",".join(environment.hosts_added),
                )

    @cached_property
    def _now(self) -> ServiceClock:
        from shared.adapters.service_clock import ServiceClock  # not needed to refuse a caller

        return self._given_clock or ServiceClock()

    @cached_property
    def host(self) -> SandboxHost:
        from shared.adapters.observed import observed
        from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes

        settings = self.settings
        made = TensorlakeSandboxes(
            api_url=settings.tensorlake_url,
            api_key=settings.tensorlake_key,
            bind_seconds=settings.times.bind,
            budget=self._tensorlake_calls,
        )
        return observed(made, "tensorlake")

    @cached_property
    def _tensorlake_calls(self) -> CallBudget:
        from shared.adapters.call_budget import CallBudget

        budget = CallBudget(self.settings.calls.tensorlake)
        _show(budget, "tensorlake", "calls")
        return budget

    @cached_property
    def _anthropic_calls(self) -> Mapping[str, Any]:
        """Shared by all queues: the limits are the organisation's, and a `retry-after` outlives a client."""
        from shared.adapters.call_budget import CallBudget, Holds

        calls = self.settings.calls
        reads, writes = CallBudget(calls.anthropic_reads), CallBudget(calls.anthropic_writes)
        _show(reads, "anthropic", "reads")
        _show(writes, "anthropic", "writes")
        return {"reads": reads, "writes": writes, "holds": Holds()}

    def call_use(self) -> dict[str, Any]:
        """The calls that this process has made of each kind: in the last minute, what it may make in one (None: any
        number), and the most in one minute of each part of the last hours (shared/adapters/call_counts.py)."""
        budgets = {
            "anthropic_reads": self._anthropic_calls["reads"],
            "anthropic_writes": self._anthropic_calls["writes"],
            "tensorlake": self._tensorlake_calls,
        }
        return {
            kind: {
                "last_minute": budget.counts.last_minute(),
                "a_minute": budget.per_minute,
                "busiest": budget.counts.busiest(),
            }
            for kind, budget in budgets.items()
        }

    def queue(self, environment: Environment) -> WorkQueue:
        from shared.adapters.anthropic_queue import AnthropicQueue
        from shared.adapters.observed import observed

        if environment.id not in self._queues:
            made = AnthropicQueue(
                base_url=self.settings.anthropic_url,
                environment_id=environment.id,
                key=environment.key,
                reclaim_seconds=self.settings.times.reclaim,
                time_of_day=self._now,
                **self._anthropic_calls,
            )
            self._queues[environment.id] = observed(made, "anthropic")
        return self._queues[environment.id]

    def dispatcher(self, environment: Environment) -> Dispatcher:
        from shared.claims.capacity import Capacity
        from shared.claims.dispatcher import Dispatcher
        from shared.claims.known_sandboxes import LONGEST, KnownSandboxes

        # Not as long as it takes until a sleeper is marked for its end by its name.
        longest = min(LONGEST, self.settings.reconcile.retention / 4)
        room = self._capacities.setdefault(environment.id, Capacity(environment.id))
        known = self._known.setdefault(environment.id, KnownSandboxes(time.monotonic, longest))
        return Dispatcher(
            self.settings,
            environment,
            self.queue(environment),
            self.host,
            now=self._now,
            capacity=room,
            known=known,
            prepared=self.prepared(environment),
            pool=self._pool(environment),
        )

    def _pool(self, environment: Environment) -> WarmPool | None:
        from shared.claims.warm_pool import WarmPool

        if not environment.pool:
            return None
        return self._pools.setdefault(environment.id, WarmPool(environment.pool, environment.id))

    def prepared(self, environment: Environment) -> PreparedStarts:
        from shared.prepared.starts import PreparedStarts

        if environment.id not in self._prepared:
            self._prepared[environment.id] = PreparedStarts(self.settings, environment, self.host, self._now)
        return self._prepared[environment.id]

    def reconciler(self, environment: Environment) -> Reconciler:
        from shared.reconcile.reconciler import Reconciler

        queue, collector = self.queue(environment), self.collector()
        return Reconciler(self.settings, environment, queue, self.host, now=self._now, collector=collector)

    def collector(self) -> Collector | None:
        """None where no outputs are collected."""
        if self.settings.outputs is None:
            return None
        from shared.outputs.collector import Collector

        return Collector(self.settings.outputs, self.host, user=self.settings.sandbox_user or None)

    @cached_property
    def _ended_sessions(self) -> EndedSessions:
        from shared.reconcile.ended_sessions import EndedSessions

        async def one_pass(environment_id: str, session_id: str, deadline: Deadline) -> ReconcileReport:
            from shared.adapters.call_budget import Priority, behind

            environment = self.settings.environments[environment_id]
            with behind(Priority.REPAIR):
                return await self.reconciler(environment).session_over(session_id, deadline)

        return EndedSessions(self.settings, lambda: self.host, one_pass)

    async def preload(self) -> None:
        """Import the SDKs, in a thread: inside the first claim they would take its time, and on the event loop
        everybody's. Later calls wait for the first one."""
        if self._imports is None:
            self._imports = asyncio.create_task(asyncio.to_thread(_import_sdks))
        await asyncio.shield(self._imports)

    def wake(self, deadline: Deadline | None = None) -> Sequence[Drain]:
        """Have every environment's queue asked at once, or with the round that is due: a webhook does not say which one
        it is about. A dry run claims nothing.

        deadline: when the runtime ends what runs in this process, where it does; items without one have the time that
            they need.
        """
        if self.settings.dry_run:
            return ()
        return [self._claimer(environment).wake(deadline) for environment in self.settings.environments.values()]

    def _claimer(self, environment: Environment) -> Claimer:
        from shared.claims.claimer import Claimer

        if environment.id not in self._claimers:
            self._claimers[environment.id] = Claimer(
                lambda: self.dispatcher(environment), prepare=self.preload, on_item=self._on_item
            )
        return self._claimers[environment.id]

    async def poll(self) -> Sequence[DrainReport]:
        """One round of polls in every environment. What it claims goes on behind the reports."""
        drains = self.wake()
        for drain in drains:
            await drain.polled.wait()
        return [drain.report(time.monotonic()) for drain in drains]

    async def drain(self, deadline: Deadline | None = None, *, patience: float | None = None) -> Sequence[DrainReport]:
        """Drain every environment, side by side. Returns when all that was claimed has its end, at the latest after
        `patience` seconds or at the deadline; what goes on then is reported as `serving`."""
        drains = self.wake(deadline)
        await self._settled(drains, self._bound(deadline, patience))
        return [drain.report(time.monotonic()) for drain in drains]

    async def tick(self, deadline: Deadline | None = None, *, patience: float | None = None) -> TickReport:
        """One tick: drain and repair side by side, so that no repair waits for an item. Returns as `drain` does, but
        never before the repairs have ended."""
        from shared.reports import TickReport, to_json

        began = time.monotonic()
        with tracing.span("tick"):
            bound = self._bound(deadline, patience)
            drains = self.wake(deadline)
            until = _sooner(Deadline.after(self.settings.reconcile.deadline), deadline)
            await self.preload()
            async with asyncio.TaskGroup() as group:
                passes = [
                    group.create_task(self._repaired(environment, until))
                    for environment in self.settings.environments.values()
                ]
            await self._settled(drains, bound)
            report = TickReport(
                drains=[drain.report(time.monotonic()) for drain in drains],
                reconciled=[each.result() for each in passes],
                seconds=round(time.monotonic() - began, 3),
            )
        metrics.record(metrics.TICKS, report.seconds, {})
        log.info("tick.done report=%s", to_json(report).decode())
        return report

    async def _repaired(self, environment: Environment, until: Deadline) -> ReconcileReport:
        from shared.adapters.call_budget import Priority, behind

        with behind(Priority.REPAIR):
            return await self.reconciler(environment).reconcile(until)

    def _bound(self, deadline: Deadline | None, patience: float | None) -> Deadline:
        own = Deadline.after(self.settings.drain.deadline if patience is None else patience)
        return _sooner(own, deadline)

    async def _settled(self, drains: Sequence[Drain], until: Deadline) -> None:
        try:
            async with asyncio.timeout(until.left()):
                for drain in drains:
                    await drain.settled()
        except TimeoutError:
            pass  # they go on, and the report says so

    def end_session_later(self, session_id: str) -> None:
        """As `end_session`, behind the caller's back."""
        self._ended(session_id)

    def _ended(self, session_id: str) -> asyncio.Future[Sequence[ReconcileReport]]:
        from shared.adapters.call_budget import Priority, behind

        with behind(Priority.LOOKUP):
            return self._ended_sessions.add(session_id)

    async def end_session(
        self, session_id: str, deadline: Deadline | None = None, *, patience: float | None = None
    ) -> Sequence[ReconcileReport]:
        """Clean up after a session that a webhook says is over, in whichever environments it has a sandbox. Such calls
        are looked at together; what goes on after `patience` seconds or the deadline is not reported."""
        ending = self._ended(session_id)
        bound = self.settings.reconcile.deadline if patience is None else patience
        try:
            async with asyncio.timeout(_sooner(Deadline.after(bound), deadline).left()):
                return await asyncio.shield(ending)
        except TimeoutError:
            return ()

    async def race(
        self,
        request: RaceRequest,
        deadline: Deadline | None = None,
        *,
        on_event: OnEvent | None = None,
        timeouts: RaceTimeouts | None = None,
        race_id: str | None = None,
        cancelled: asyncio.Event | None = None,
        owner: str = "",
    ) -> RaceReport:
        """One best-of-N race, over and cleaned up by `deadline` where there is one. Raises RaceError, SettingsError and
        SecretUnavailable. `race_id`: of its record; without one its report is kept where RACE_REPORTS says so, for
        `owner`, the session whose agent asked. Once `cancelled` is set it ends without a winner."""
        from shared.adapters.call_budget import Priority, behind
        from shared.races.ends import RaceTimeouts
        from shared.races.limits import environment_for
        from shared.races.race import run_race

        # Where the runtime freezes after the answer, ends that have not come by then come with the dead-man time.
        freezes = deadline is not None or self.settings.drain_mode == "inline"
        timeouts = timeouts or RaceTimeouts(boot=self.settings.times.bind)
        if freezes:
            timeouts = replace(timeouts, linger=_ENDS_BEFORE_A_FREEZE)
        settings = self.settings
        if deadline is not None:
            longest = min(settings.races.deadline, deadline.left() * FOR_RACES)
            settings = settings._replace(races=settings.races._replace(deadline=longest))
        if not request.dry_run:
            await self.ask_the_time()
        began, outcome = time.monotonic(), "error"
        with tracing.span("race") as span, behind(Priority.REPAIR):
            try:
                report = await run_race(
                    request,
                    host=self.host,
                    settings=settings,
                    environment=environment_for(request, settings),
                    on_event=on_event,
                    timeouts=timeouts,
                    now=self.now,
                    in_background=self.in_background,
                    race_id=race_id,
                    cancelled=cancelled,
                )
                outcome = "won" if report.winner else "no_winner"
                span.set({"hands.race.id": report.race_id, tracing.OUTCOME: outcome})
            finally:
                if not request.dry_run:
                    metrics.record(metrics.RACES, time.monotonic() - began, {metrics.OUTCOME: outcome})
        for branch in () if request.dry_run else report.branches:
            metrics.record(metrics.BRANCHES, 1, {metrics.OUTCOME: branch.status})
        if self.settings.races.keeps_reports and race_id is None and not request.dry_run:
            from shared.races.records import RaceRecords

            records = RaceRecords(self.host, self.settings, environment_for(request, self.settings))
            keeping = self.in_background(records.keep(report, owner))
            if freezes:
                await asyncio.wait({keeping}, timeout=_KEPT_BEFORE_A_FREEZE)
        return report

    async def ask_the_time(self) -> None:
        """So that `now` is the Claude API's time of day, where it can be had."""
        await self._now.ask(self.settings.anthropic_url)

    def now(self) -> float:
        """In seconds since 1970: what a race's dead-man times and records are written by, and judged by elsewhere."""
        return self._now.seconds()

    def in_background(self, work: Coroutine[None, None, _R]) -> asyncio.Task[_R]:
        """A task that this service sees to the end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def renew_clients(self) -> None:
        """Have every later call connect anew. What runs now keeps its clients; they are closed when it must be over."""
        self._retired += self._queues.values()
        self._queues = {}
        if "host" in self.__dict__:
            self._retired.append(self.__dict__.pop("host"))
            self._prepared = {}
        if self._retired and self._retirement is None:
            longest = self.settings.drain.deadline + self.settings.reconcile.deadline + 10.0
            self._retirement = asyncio.get_running_loop().call_later(longest, self._retire)

    def _retire(self) -> None:
        self._retirement = None
        self.in_background(self._close_retired())

    async def _close_retired(self) -> None:
        retired, self._retired = self._retired, []
        for client in retired:
            await client.aclose()

    async def aclose(self, grace: float | None = None) -> None:
        """Let what was claimed be served to its end, for `grace` seconds (DRAIN_DEADLINE_SECONDS), then close the
        clients."""
        grace = self.settings.drain.deadline if grace is None else grace
        await asyncio.gather(*(claimer.aclose(grace) for claimer in self._claimers.values()))
        if "_ended_sessions" in self.__dict__:
            await self._ended_sessions.aclose(min(grace, self.settings.reconcile.deadline))
        if self._imports is not None:
            await asyncio.wait([self._imports])
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.settings.reconcile.deadline)
        if self._retirement is not None:
            self._retirement.cancel()
        await self._close_retired()
        for queue in self._queues.values():
            await queue.aclose()
        if "host" in self.__dict__:  # it was used
            await self.host.aclose()


def _show(budget: CallBudget, service: str, kind: str) -> None:
    def read() -> Iterable[tuple[float, metrics.Attributes]]:
        if budget.left is not None:
            yield budget.left, {metrics.SERVICE: service, "hands.call.kind": kind}

    metrics.observe(metrics.BUDGET, read)


def _import_sdks() -> None:
    import anthropic  # noqa: F401
    import tensorlake.sandbox  # noqa: F401


def _sooner(own: Deadline, given: Deadline | None) -> Deadline:
    return own if given is None else own.sooner(given.at)
