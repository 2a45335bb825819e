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
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shared.claims.wakeups import SingleFlight
from shared.deadline import Deadline
from shared.settings import Environment, Settings

if TYPE_CHECKING:
    from shared.claims.dispatcher import Dispatcher
    from shared.ports import SandboxHost, WorkQueue
    from shared.races.events import OnEvent
    from shared.races.report import RaceReport
    from shared.races.request import RaceRequest
    from shared.races.resources import RaceTimeouts
    from shared.reconcile.reconciler import Reconciler
    from shared.reports import DrainReport, ReconcileReport, TickReport

log = logging.getLogger(__name__)

_ENDS_BEFORE_A_FREEZE: Final = 3.0  # seconds that a race's report waits for ends where the runtime freezes after it
_FOR_RACES: Final = 0.85  # of the time that a runtime leaves; the rest is for ending what a race made

_R = TypeVar("_R")


class Service:
    """What runs in this process. Close it with `aclose` before its event loop ends."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._queues: dict[str, WorkQueue] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retired: list[WorkQueue | SandboxHost] = []
        self._retirement: asyncio.TimerHandle | None = None
        self._drains: SingleFlight[Sequence[DrainReport]] = SingleFlight(self.drain)

    @cached_property
    def host(self) -> SandboxHost:
        from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes

        settings = self.settings
        return TensorlakeSandboxes(
            api_url=settings.tensorlake_url, api_key=settings.tensorlake_key, bind_seconds=settings.times.bind
        )

    def queue(self, environment: Environment) -> WorkQueue:
        from shared.adapters.anthropic_queue import AnthropicQueue

        if environment.id not in self._queues:
            self._queues[environment.id] = AnthropicQueue(
                base_url=self.settings.anthropic_url,
                environment_id=environment.id,
                key=environment.key,
                reclaim_seconds=self.settings.times.reclaim,
            )
        return self._queues[environment.id]

    def dispatcher(self, environment: Environment) -> Dispatcher:
        from shared.claims.dispatcher import Dispatcher

        return Dispatcher(self.settings, environment, self.queue(environment), self.host)

    def reconciler(self, environment: Environment) -> Reconciler:
        from shared.reconcile.reconciler import Reconciler

        return Reconciler(self.settings, environment, self.queue(environment), self.host)

    async def drain(self, deadline: Deadline | None = None) -> Sequence[DrainReport]:
        """Drain every environment, side by side, until `deadline` or the settings' own: a webhook does not say which
        one it is about. A dry run claims nothing."""
        if self.settings.dry_run:
            return ()
        until = _sooner(Deadline.after(self.settings.drain.deadline), deadline)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.dispatcher(environment).drain(until))
                for environment in self.settings.environments.values()
            ]
        return [task.result() for task in tasks]

    def wake(self, deadline: Deadline | None = None) -> asyncio.Task[Sequence[DrainReport]]:
        """The drain that begins after this call, whoever else asked for it. Await it shielded."""
        return self._drains.wake(deadline)

    async def tick(self, deadline: Deadline | None = None) -> TickReport:
        """One tick: drain, with whatever drain is due anyway, then repair."""
        from shared.reports import TickReport, to_json

        began = time.monotonic()
        repairs = self.settings.reconcile.deadline
        drains = await asyncio.shield(self.wake(None if deadline is None else deadline.sooner(deadline.at - repairs)))
        until = _sooner(Deadline.after(repairs), deadline)
        async with asyncio.TaskGroup() as group:
            passes = [
                group.create_task(self.reconciler(environment).reconcile(until))
                for environment in self.settings.environments.values()
            ]
        report = TickReport(
            drains=drains,
            reconciled=[each.result() for each in passes],
            seconds=round(time.monotonic() - began, 3),
        )
        log.info("tick.done report=%s", to_json(report).decode())
        return report

    async def end_session(self, session_id: str, deadline: Deadline | None = None) -> Sequence[ReconcileReport]:
        """Clean up after a session that a webhook says is over, whichever environment it was in."""
        until = _sooner(Deadline.after(self.settings.reconcile.deadline), deadline)
        return [
            await self.reconciler(environment).session_over(session_id, until)
            for environment in self.settings.environments.values()
        ]

    async def race(
        self,
        request: RaceRequest,
        deadline: Deadline | None = None,
        *,
        on_event: OnEvent | None = None,
        timeouts: RaceTimeouts | None = None,
    ) -> RaceReport:
        """One best-of-N race, over and cleaned up by `deadline` where there is one. Raises RaceError, SettingsError and
        SecretUnavailable."""
        from shared.races.race import environment_for, run_race
        from shared.races.resources import RaceTimeouts

        # Where the runtime freezes after the answer, ends that have not come by then come with the dead-man time.
        freezes = deadline is not None or self.settings.drain_mode == "inline"
        timeouts = timeouts or RaceTimeouts(boot=self.settings.times.bind)
        if freezes:
            timeouts = replace(timeouts, linger=_ENDS_BEFORE_A_FREEZE)
        settings = self.settings
        if deadline is not None:
            longest = min(settings.races.deadline, deadline.left() * _FOR_RACES)
            settings = replace(settings, races=replace(settings.races, deadline=longest))
        return await run_race(
            request,
            host=self.host,
            settings=settings,
            environment=environment_for(request, settings),
            on_event=on_event,
            timeouts=timeouts,
            in_background=self.in_background,
        )

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

    async def aclose(self) -> None:
        """Let a running drain finish, then close the clients."""
        await self._drains.aclose(self.settings.drain.deadline)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.settings.reconcile.deadline)
        if self._retirement is not None:
            self._retirement.cancel()
        await self._close_retired()
        for queue in self._queues.values():
            await queue.aclose()
        if "host" in self.__dict__:  # it was used
            await self.host.aclose()


def _sooner(own: Deadline, given: Deadline | None) -> Deadline:
    return own if given is None else own.sooner(given.at)
