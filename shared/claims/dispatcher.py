"""The claim protocol: claim until the queue is empty, and bring each item to its worker. Hand over first, ack last.

Who calls: `on_run_started` and `poll_tick`, any number of copies at once (docs/architecture.md#i8). The order is the
point:

    poll -> bind the session's sandbox -> hand over (a worker says ready) -> ack

Until the ack the item is only reserved, and it is offered again after R. So whatever fails, at whatever await, it is
not lost (docs/architecture.md#i1): the next dispatcher finds the same sandbox by its name, and in it the worker that
waits with the lock held. After the ack the worker is already there and takes the lease by itself. The dispatcher stops
no item but one that is not a session's or that is poisoned.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from image.session import claim as wire
from image.session.archive import build_archive, digest
from shared import capability, names
from shared.backoff import pause_before, pauses
from shared.claims import handover
from shared.claims.binding import Unbound, bind
from shared.deadline import Clock, Deadline
from shared.errors import SecretUnavailable
from shared.ports import (
    Absent,
    Doubtful,
    Empty,
    Refused,
    SandboxHost,
    SandboxSpec,
    StaleEntry,
    WorkItem,
    WorkQueue,
)
from shared.reports import DrainEnd, DrainReport, ItemEnd, ItemReport
from shared.settings import Environment, Settings

log = logging.getLogger(__name__)

_STALE_IN_A_ROW: Final = 5
_DOUBTFUL_IN_A_ROW: Final = 3
_PAUSE: Final = 0.2
_REBINDS: Final = 3
_REACH_SHARE: Final = 0.6  # of a hand-over's time: a worker that reaches no API says so while somebody still listens


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Drains the queue of one environment. Stateless: everything it must remember is on the two services."""

    settings: Settings
    environment: Environment
    queue: WorkQueue
    host: SandboxHost
    clock: Clock = time.monotonic
    now: Callable[[], datetime] = utc_now

    async def drain(self, deadline: Deadline | None = None) -> DrainReport:
        """Claim until the queue is empty, the limit is reached or the time for claims is over; then finish.

        `deadline` defaults to the settings' own. No claim is made later than what a bind and a hand-over need
        before it; what is not done by then is left un-acked and reported as unfinished.
        """
        limits = self.settings.drain
        began = self.clock()
        deadline = (deadline or Deadline.after(limits.deadline, self.clock)).sooner(began + limits.deadline)
        drain = _Drain(self, deadline)
        async with asyncio.TaskGroup() as group:
            drain.start(group)
        report = DrainReport(
            environment_id=self.environment.id,
            end=drain.end,
            seconds=round(self.clock() - began, 3),
            polls=drain.polls,
            items=tuple(drain.items),
            reason=drain.reason,
        )
        log.info(
            "drain.done environment=%s end=%s polls=%d items=%s seconds=%s",
            report.environment_id,
            report.end.value,
            report.polls,
            dict(report.counts),
            report.seconds,
        )
        return report

    async def serve(self, item: WorkItem, claimed_at: float, deadline: Deadline) -> ItemReport:
        """One claimed item, all the way. `claimed_at` is from before the poll was sent. Never raises for a service."""
        times = self.settings.times
        deadline = deadline.sooner(claimed_at + times.reclaim)
        sandbox: str | None = None
        try:
            async with asyncio.timeout(deadline.left()):
                if item.kind != "session":
                    return self._report(item, claimed_at, *await self._dismiss(item))
                sandbox = names.sandbox_name(self.settings.prefix, self.environment.id, item.session_id)
                end, reason = await self._bring(item, sandbox, claimed_at, deadline)
        except TimeoutError:
            end, reason = ItemEnd.UNFINISHED, "time ran out before the ack"
        except names.BadName as error:
            end, reason = ItemEnd.FAILED, str(error)
        return self._report(item, claimed_at, end, reason, sandbox)

    async def _bring(self, item: WorkItem, name: str, claimed_at: float, deadline: Deadline) -> tuple[ItemEnd, str]:
        """Steps 2 to 4 of the protocol."""
        if item.secret is None:
            # The only other credential is the environment key, and that never enters a sandbox
            # (docs/architecture.md#i6).
            return await self._failed(item, None, "the service issued no work secret with the item")
        reason = ""
        for _ in range(_REBINDS):
            bound = await bind(
                self.host,
                self._spec(name),
                deadline.sooner(self.clock() + self.settings.times.bind),
                resume_suspended=self.settings.resume_suspended,
            )
            if isinstance(bound, Unbound):
                return await self._failed(item, None, bound.reason)
            outcome = await handover.hand_over(
                self.host,
                bound.sandbox.id,
                item,
                await self._claim(item, item.secret),
                user=self.settings.sandbox_user or None,
                deadline=deadline.sooner(self.clock() + self.settings.times.handover),
            )
            if isinstance(outcome, handover.Ready):
                end, reason = await self._ack(item, claimed_at)
                return end, reason or _sdk_difference(outcome.sdk)
            reason = outcome.reason
            if not outcome.sandbox_gone:
                return await self._failed(item, bound.sandbox.id, reason)
        return await self._failed(item, None, reason)

    async def _ack(self, item: WorkItem, claimed_at: float) -> tuple[ItemEnd, str]:
        """Only while the claim is younger than R; a doubtful answer is asked again, since a second ack is harmless."""
        waits = pauses(_PAUSE, 5.0)
        while self.clock() - claimed_at < self.settings.times.reclaim:
            match await self.queue.ack(item.id):
                case None:
                    return ItemEnd.HANDED_OVER, ""
                case Absent():
                    return ItemEnd.GONE, "the item was gone before the ack"
                case Refused(reason=reason):
                    return ItemEnd.FAILED, f"ack refused: {reason}"
                case Doubtful():
                    await asyncio.sleep(next(waits))
        return ItemEnd.UNFINISHED, "the claim grew too old for an ack"

    async def _failed(self, item: WorkItem, sandbox_id: str | None, reason: str) -> tuple[ItemEnd, str]:
        """Leave the item to be offered again, or give it up: judged by its age and by what failed in its sandbox."""
        earlier = await handover.failures(self.host, sandbox_id, item) if sandbox_id is not None else []
        age = (self.now() - item.created_at).total_seconds()
        if len(earlier) < self.settings.times.poison_attempts and age < self.settings.times.poison_age:
            return ItemEnd.FAILED, reason
        stopped = await self.queue.force_stop(item.id)
        if stopped is not None and not isinstance(stopped, Absent):
            return ItemEnd.FAILED, f"{reason}; it is poisoned, but stopping it failed: {stopped.reason}"
        return ItemEnd.POISONED, "; ".join([reason, f"{round(age)} s old", *earlier[-3:]])

    async def _dismiss(self, item: WorkItem) -> tuple[ItemEnd, str]:
        """Not a session (a healthcheck): stop it, so that it does not come again (docs/wire/anthropic.md#t12).

        Straight from the queue: after an ack a crash before the stop would leave it acked with nobody behind it. Where
        the service wants the ack first, it gets it.
        """
        outcome = await self.queue.force_stop(item.id)
        if isinstance(outcome, Refused):
            acked = await self.queue.ack(item.id)
            outcome = acked if isinstance(acked, Refused | Doubtful) else await self.queue.force_stop(item.id)
        if isinstance(outcome, Refused | Doubtful):
            return ItemEnd.FAILED, f"dismissing a {item.kind[:40]} item: {outcome.reason}"
        return ItemEnd.DISMISSED, item.kind[:40]

    def _spec(self, name: str) -> SandboxSpec:
        return SandboxSpec(
            name=name,
            image=self.environment.image,
            cpus=self.environment.cpus,
            memory_mb=self.environment.memory_mb,
            disk_mb=self.environment.disk_mb,
            timeout_seconds=self.environment.timeout_seconds,
            egress=self.environment.egress,
        )

    async def _capability(self, item: WorkItem) -> str | None:
        """What the agent may show to fork_best_of_n; None where it may not, or where the token cannot be had now: the
        hand-over does not wait for an extra."""
        if self.settings.fork_url is None or self.settings.functions_token is None:
            return None
        try:
            key = capability.signing_key(await self.settings.functions_token.areveal())
        except SecretUnavailable as error:
            log.warning("capability.not_issued work=%s reason=%s", item.id, error)
            return None
        races = self.settings.races
        issued = capability.Capability(
            function=capability.FORK,
            environment_id=self.environment.id,
            session_id=item.session_id,
            work_id=item.id,
            branches=min(races.agent_branches, races.max_branches),
            seconds=min(races.agent_seconds, races.deadline),
            expires_at=int(self.now().timestamp() + self.settings.times.gate + self.settings.worker_lifetime),
        )
        return capability.issue(issued, key)

    async def _claim(self, item: WorkItem, secret: str) -> wire.Claim:
        token = await self._capability(item)
        return wire.Claim(
            work_id=item.id,
            environment_id=item.environment_id,
            session_id=item.session_id,
            secret=secret,
            base_url=self.settings.anthropic_url,
            worker_digest=digest(build_archive()),
            workdir=self.settings.workdir,
            max_idle=self.settings.max_idle_seconds,
            reach=self.settings.times.handover * _REACH_SHARE,
            gate=self.settings.times.gate,
            lifetime=self.settings.worker_lifetime,
            capability_token=token,
            fork_url=self.settings.fork_url if token else None,
        )

    def _report(
        self, item: WorkItem, claimed_at: float, end: ItemEnd, reason: str, sandbox: str | None = None
    ) -> ItemReport:
        report = ItemReport(
            work_id=item.id,
            session_id=item.session_id,
            end=end,
            seconds=round(self.clock() - claimed_at, 3),
            sandbox=sandbox,
            reason=reason,
        )
        level = logging.INFO if end in (ItemEnd.HANDED_OVER, ItemEnd.DISMISSED) else logging.WARNING
        log.log(
            level,
            "item.%s work=%s session=%s sandbox=%s seconds=%s reason=%s",
            end.value,
            item.id,
            item.session_id,
            sandbox,
            report.seconds,
            reason,
        )
        return report


def _sdk_difference(worker_sdk: str) -> str:
    """The worker's file is replaced where it is not ours; its SDK can only come with a new image."""
    ours = handover.bundle_sdk()
    return "" if worker_sdk == ours else f"the sandbox's SDK is {worker_sdk}, ours {ours}: rebuild the image"


class _Drain:
    """The running state of one drain: pollers that claim, and one task an item, all in one task group."""

    def __init__(self, dispatcher: Dispatcher, deadline: Deadline) -> None:
        times, limits = dispatcher.settings.times, dispatcher.settings.drain
        self._dispatcher = dispatcher
        self._deadline = deadline
        self._cut_off = deadline.at - times.bind - times.handover
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._pollers = 0
        self._claimed = 0
        self.polls = 0
        self.items: list[ItemReport] = []
        self.end = DrainEnd.EMPTY
        self.reason = ""

    def start(self, group: asyncio.TaskGroup) -> None:
        """One poller. It adds others as it finds that there is more than one item to claim."""
        self._pollers += 1
        group.create_task(self._poll(group))

    async def _poll(self, group: asyncio.TaskGroup) -> None:
        found = stale = doubtful = 0
        try:
            while await self._may_claim():
                claimed_at = self._dispatcher.clock()
                self.polls += 1
                outcome = await self._dispatcher.queue.poll()
                if isinstance(outcome, WorkItem):
                    group.create_task(self._serve(outcome, claimed_at))
                    found += 1
                    stale = doubtful = 0
                    if found > 1 and self._pollers < self._limits.polls_in_flight:
                        self.start(group)
                    continue
                self._give_back()
                match outcome:
                    case Empty():
                        return
                    case Refused(reason=reason):
                        self._stop(DrainEnd.REFUSED, f"the queue refused the environment key: {reason}")
                        return
                    case StaleEntry():
                        stale += 1
                        if stale > _STALE_IN_A_ROW:
                            self._stop(DrainEnd.UNAVAILABLE, "polls keep answering 404")
                            return
                    case Doubtful(reason=reason):
                        doubtful += 1
                        if doubtful >= _DOUBTFUL_IN_A_ROW:
                            self._stop(DrainEnd.UNAVAILABLE, f"polls keep failing: {reason}")
                            return
                await asyncio.sleep(min(pause_before(stale + doubtful, _PAUSE), self._deadline.left()))
        finally:
            self._pollers -= 1

    async def _may_claim(self) -> bool:
        """A slot and a place under the limit, or the reason why there is none."""
        if self.end is not DrainEnd.EMPTY:
            return False
        try:
            # A time-out of 0 lets a slot that is free be taken all the same.
            if self._cut_off <= self._dispatcher.clock():
                raise TimeoutError
            async with asyncio.timeout(self._cut_off - self._dispatcher.clock()):
                await self._slots.acquire()
        except TimeoutError:
            self._stop(DrainEnd.DEADLINE, "the time for claims is over")
            return False
        if self._claimed >= self._limits.max_items:
            self._slots.release()
            self._stop(DrainEnd.LIMIT, "the limit of items is reached")
            return False
        self._claimed += 1
        return True

    def _give_back(self) -> None:
        self._claimed -= 1
        self._slots.release()

    def _stop(self, end: DrainEnd, reason: str) -> None:
        if self.end is DrainEnd.EMPTY:
            self.end, self.reason = end, reason

    async def _serve(self, item: WorkItem, claimed_at: float) -> None:
        try:
            report = await self._dispatcher.serve(item, claimed_at, self._deadline)
        except Exception as error:  # the edge: one item's bug must not end the others, and it becomes a report
            log.exception("item.bug work=%s", item.id)
            report = ItemReport(item.id, item.session_id, ItemEnd.FAILED, 0.0, None, f"bug: {type(error).__name__}")
        finally:
            self._slots.release()
        self.items.append(report)
