"""What all handlers of one process share: the settings and the clients of both services.

A server builds a Bundle when it starts and hands it over in the ASGI lifespan state; a runtime without a lifespan
(functions-framework, Lambda) gets one that is built on the first request. Building one opens nothing and imports
neither the core nor an SDK: a cold start that only has to refuse a stranger pays for none of it (tests/benchmarks,
cold_start), and both adapters connect on their first call (contract runtimes 0).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from shared.claims.wakeups import SingleFlight
from shared.deadline import Deadline
from shared.settings import Environment, Settings

if TYPE_CHECKING:
    from functions.cloud_run_iam import IngressProbe
    from shared.claims.dispatcher import Dispatcher
    from shared.ports import SandboxHost, WorkQueue
    from shared.reconcile.reconciler import Reconciler
    from shared.reports import DrainReport, ReconcileReport, TickReport

log = logging.getLogger(__name__)

_R = TypeVar("_R")


class Bundle:
    """`background`: webhooks are answered before their drain, where the setting leaves the choice to the runtime."""

    def __init__(self, settings: Settings, *, background: bool) -> None:
        self.settings = settings
        self.background = background if settings.drain_mode == "auto" else settings.drain_mode == "background"
        self.until: Deadline | None = None  # when the runtime ends this invocation, where it says so
        self.races: set[tuple[str, str]] = set()  # session and work item of the agents' races that run here now
        self._queues: dict[str, WorkQueue] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retired: list[WorkQueue | SandboxHost] = []
        self._retirement: asyncio.TimerHandle | None = None
        self.drains: SingleFlight[Sequence[DrainReport]] = SingleFlight(self.drain)

    @cached_property
    def host(self) -> SandboxHost:
        from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes

        settings = self.settings
        return TensorlakeSandboxes(
            api_url=settings.tensorlake_url, api_key=settings.tensorlake_key, bind_seconds=settings.times.bind
        )

    @cached_property
    def ingress_probe(self) -> IngressProbe:
        from functions.cloud_run_iam import IngressProbe

        return IngressProbe(self.settings.auth_own_url)

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

    async def drain(self) -> Sequence[DrainReport]:
        """Drain every environment, side by side: a webhook does not say which one it is about (contract claude 9.1). A
        dry run claims nothing."""
        if self.settings.dry_run:
            return ()
        deadline = Deadline.after(self.settings.drain.deadline)
        if self.until is not None:  # a tick needs time for its repairs, too
            deadline = deadline.sooner(self.until.at - self.settings.reconcile.deadline)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.dispatcher(environment).drain(deadline))
                for environment in self.settings.environments.values()
            ]
        return [task.result() for task in tasks]

    async def tick(self) -> TickReport:
        """One tick: drain, with whatever drain is due anyway, then repair."""
        from shared.reports import TickReport, to_json

        began = time.monotonic()
        drains = await asyncio.shield(self.drains.wake())
        deadline = Deadline.after(self.settings.reconcile.deadline)
        if self.until is not None:
            deadline = deadline.sooner(self.until.at)
        async with asyncio.TaskGroup() as group:
            passes = [
                group.create_task(self.reconciler(environment).reconcile(deadline))
                for environment in self.settings.environments.values()
            ]
        report = TickReport(
            drains=drains,
            reconciled=[each.result() for each in passes],
            seconds=round(time.monotonic() - began, 3),
        )
        log.info("tick.done report=%s", to_json(report).decode())
        return report

    async def session_over(self, session_id: str) -> Sequence[ReconcileReport]:
        """Clean up after a session that a webhook says is over, whichever environment it was in."""
        return [
            await self.reconciler(environment).session_over(session_id)
            for environment in self.settings.environments.values()
        ]

    def in_background(self, work: Coroutine[None, None, _R]) -> asyncio.Task[_R]:
        """A task that this bundle sees to the end."""
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
        await self.drains.aclose(self.settings.drain.deadline)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.settings.reconcile.deadline)
        if self._retirement is not None:
            self._retirement.cancel()
        await self._close_retired()
        for queue in self._queues.values():
            await queue.aclose()
        if "host" in self.__dict__:  # it was used
            await self.host.aclose()


_of_this_process: tuple[asyncio.AbstractEventLoop, Bundle] | None = None


def bundle_of(request: Request) -> Bundle:
    """The server's bundle, else this process's own. Raises SettingsError where a setting is missing or wrong."""
    state = request.scope.get("state")
    if state is not None and "bundle" in state:
        bundle = state["bundle"]
        if not isinstance(bundle, Bundle):
            raise TypeError("the lifespan state's bundle is not a Bundle")
        return bundle
    global _of_this_process
    loop = asyncio.get_running_loop()
    if _of_this_process is None or _of_this_process[0] is not loop:
        _of_this_process = (loop, Bundle(Settings.from_environ(os.environ), background=False))
    return _of_this_process[1]
