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
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from image.session import claim as wire
from image.session.archive import build_archive, digest
from shared import capability, metrics, names, tracing
from shared.backoff import pauses
from shared.claims import earlier_workers, handover, worker_keys
from shared.claims.binding import Binding, Bound, PreparedSource, Unbound
from shared.claims.capacity import Capacity
from shared.claims.claimer import Claimer
from shared.claims.known_sandboxes import KnownSandboxes
from shared.claims.presence import worker_lives
from shared.claims.setup_access import setup_access
from shared.claims.warm_pool import WarmPool
from shared.claims.worker_notices import NotReady, Ready
from shared.claims.worker_process import attempt_prefix
from shared.deadline import Clock, Deadline
from shared.environment_settings import Environment
from shared.errors import SecretUnavailable, SettingsError
from shared.ports import (
    Absent,
    Doubtful,
    Refused,
    SandboxHost,
    SandboxSpec,
    Throttled,
    WorkItem,
    WorkQueue,
)
from shared.reports import DrainReport, ItemEnd, ItemReport
from shared.settings import Settings

log = logging.getLogger(__name__)

SECRETLESS: Final = (
    "the service issued no work secret with the item, and no other credential may enter a sandbox: the session is not "
    "served (docs/claim-protocol.md#poison)"
)

_PAUSE: Final = 0.2
_SEEN: Final = 5.0  # seconds after `ready` in which an ack is asked for without another look at the worker
_NEW: Final = 3.0  # seconds of age below which an item cannot have had a worker that died, or is slow
_REBINDS: Final = 3
_REACH_SHARE: Final = 0.6  # of a hand-over's time: a worker that reaches no API says so while somebody still listens
_MOST_SECRETS: Final = 32_768  # characters; a claim has to fit into a variable of a process
_QUIET: Final = (ItemEnd.HANDED_OVER, ItemEnd.DISMISSED, ItemEnd.NO_CAPACITY)


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class _End:
    end: ItemEnd
    reason: str = ""
    alarm: bool = False


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Drains the queue of one environment. Stateless: everything it must remember is on the two services."""

    settings: Settings
    environment: Environment
    queue: WorkQueue
    host: SandboxHost
    clock: Clock = time.monotonic
    now: Callable[[], datetime] = utc_now
    capacity: Capacity | None = None  # what is known of the service's room beyond one drain
    known: KnownSandboxes | None = None  # where sessions were served last, beyond one drain
    prepared: PreparedSource | None = None  # what new sandboxes are restored from
    pool: WarmPool | None = None  # where new sandboxes are claimed

    async def drain(self, deadline: Deadline | None = None) -> DrainReport:
        """Claim until the queue is empty, the limit is reached or the time for claims is over; then finish.

        `deadline` defaults to the settings' own. What is not done by then is left un-acked and reported as unfinished.
        """
        one = replace(self, capacity=self._room())
        claimer = Claimer(lambda: one)
        try:
            return await claimer.drain(deadline or Deadline.after(self.settings.drain.deadline, self.clock))
        finally:
            await claimer.aclose(0.0)

    async def serve(
        self,
        item: WorkItem,
        claimed_at: float,
        deadline: Deadline | None = None,
        free_slot: Callable[[], None] = lambda: None,
    ) -> ItemReport:
        """One claimed item, all the way. `claimed_at` is from before the poll was sent. Never raises for a service.

        free_slot: called when the item only waits for room on the service.
        """
        until = Deadline(claimed_at + self.settings.times.reclaim, self.clock)
        if deadline is not None:
            until = until.sooner(deadline.at)
        sandbox: str | None = None
        try:
            async with asyncio.timeout(until.left()):
                if item.kind != "session":
                    return self._report(item, claimed_at, await self._dismiss(item))
                sandbox = names.sandbox_name(self.settings.prefix, self.environment.id, item.session_id)
                end = await self._bring(item, sandbox, claimed_at, until, free_slot)
        except TimeoutError:
            end = _End(ItemEnd.UNFINISHED, "time ran out before the ack")
        except names.BadName as error:
            end = _End(ItemEnd.FAILED, str(error))
        return self._report(item, claimed_at, end, sandbox)

    async def _bring(
        self, item: WorkItem, name: str, claimed_at: float, until: Deadline, free_slot: Callable[[], None]
    ) -> _End:
        """Steps 2 to 4 of the protocol."""
        if item.secret is None:
            # The only other credential is the environment key, and that never enters a sandbox
            # (docs/architecture.md#i6).
            return _End(ItemEnd.FAILED, SECRETLESS, alarm=True)
        binding = Binding(
            self.host,
            spec_of(self.environment, name),
            prefix=self.settings.prefix,
            resume_suspended=self.settings.resume_suspended,
            capacity=self._room(),
            now=self.now,
            free_slot=free_slot,
            since=item.created_at,
            prepared=self.prepared,
            pool=self.pool,
        )
        offered_before = (self.now() - item.created_at).total_seconds() > _NEW
        times, reason = self.settings.times, ""
        remembered = self._remembered(name)
        looked_at = ""
        for _ in range(_REBINDS):
            by_name = remembered is None
            with tracing.span("bind") as span:
                bound = remembered or await binding.bind(until.sooner(self.clock() + times.bind))
                _tell(span, bound)
            remembered = None
            if isinstance(bound, Unbound):
                return _End(ItemEnd.NO_CAPACITY if bound.no_capacity else ItemEnd.FAILED, bound.reason)
            if bound.replaces:
                await self._say_it_is_new(bound)
            with tracing.span("hand over") as span:
                outcome = await handover.hand_over(
                    self.host,
                    bound.sandbox.id,
                    item,
                    await self._claim(item, item.secret),
                    user=self.settings.sandbox_user or None,
                    deadline=until.sooner(self.clock() + times.handover),
                    look_first=offered_before and not bound.made and bound.sandbox.id != looked_at,
                    deaths=times.poison_attempts,
                    now=self.now().timestamp(),
                )
                self._note_deaths(span, outcome)
            match outcome:
                case Ready(sdk=sdk, remark=remark):
                    if remark:
                        log.warning("worker.remark work=%s session=%s said=%s", item.id, item.session_id, remark)
                    if self.known is not None and by_name:
                        self.known.seen(name, bound.sandbox)
                    with tracing.span("ack") as span:
                        end = await self._ack(item, claimed_at, bound.sandbox.id)
                        span.set({tracing.OUTCOME: end.end.value})
                    self._note_served(item, end)
                    return end if end.end is not ItemEnd.HANDED_OVER else self._handed_over(bound, sdk, remark)
                case earlier_workers.Hopeless(deaths=deaths):
                    return await self._give_up(item, deaths)
                case handover.LookedTooLong():
                    looked_at, reason = bound.sandbox.id, "looks at its sandbox take too long"
                case NotReady(sandbox_gone=gone):
                    reason = outcome.reason
                    if self.known is not None:
                        self.known.forget(name)
                    if gone:
                        binding.lost(bound.sandbox.id, self.clock)
                    elif by_name or until.left() < times.bind + times.handover:
                        return _End(ItemEnd.FAILED, reason)
        return _End(ItemEnd.FAILED, reason)

    def _remembered(self, name: str) -> Bound | None:
        """Where the session was served last. Not where sleepers are replaced: a start there would wake one."""
        if self.known is None or not self.settings.resume_suspended:
            return None
        sandbox = self.known.get(name)
        return None if sandbox is None else Bound(sandbox)

    def _note_served(self, item: WorkItem, end: _End) -> None:
        if end.end is ItemEnd.HANDED_OVER:
            seconds = max(0.0, (self.now() - item.created_at).total_seconds())
            metrics.record(metrics.SERVED, seconds, {metrics.ENVIRONMENT: self.environment.id})

    def _note_deaths(self, span: tracing.Span, outcome: handover.Outcome) -> None:
        """A worker that died while somebody listened, and one that the next worker tells of."""
        died = False
        match outcome:
            case Ready(died=died):
                span.set({tracing.OUTCOME: "ready"})
            case NotReady(died=died):
                span.fail("not_ready")
            case earlier_workers.Hopeless():
                span.fail("hopeless")
            case handover.LookedTooLong():
                span.fail("looked_too_long")
        if died:
            metrics.record(metrics.DEATHS, 1, {metrics.ENVIRONMENT: self.environment.id})

    def _handed_over(self, bound: Bound, worker_sdk: str, remark: str) -> _End:
        """`remark`: what the worker says of the one before it: that it died in a call, or that a set-up failed."""
        if bound.replaces:
            lost = "; what it made after its last rest is not collected (OUTPUTS_TO)" if self.settings.outputs else ""
            return _End(ItemEnd.HANDED_OVER, f"the workspace is new: {bound.replaces}{lost}", alarm=True)
        told = "; ".join(filter(None, (bound.remark, remark or _sdk_difference(worker_sdk))))
        return _End(ItemEnd.HANDED_OVER, told, alarm=wire.LAST_SETUP in remark)

    def _room(self) -> Capacity:
        return self.capacity or Capacity(self.environment.id, self.clock)

    async def _say_it_is_new(self, bound: Bound) -> None:
        """The agent finds it with its first look around; that it cannot be told now does not hold up its turn."""
        text = f"{wire.NEW_WORKSPACE_TEXT}\n{bound.replaces}.\n"
        path = f"{self.settings.workdir}/{wire.NEW_WORKSPACE_FILE}"
        written = await self.host.write_file(bound.sandbox.id, path, text.encode())
        if written is not None:
            log.warning("workspace.not_told sandbox=%s outcome=%s", bound.sandbox.id, written)

    async def _ack(self, item: WorkItem, claimed_at: float, sandbox_id: str) -> _End:
        """Only while the claim is younger than R; a doubtful answer is asked again, since a second ack is harmless, but
        only while the worker is there: one that had waited for long may give up meanwhile."""
        waits, seen = pauses(_PAUSE, 5.0), self.clock()
        while self.clock() - claimed_at < self.settings.times.reclaim:
            if self.clock() - seen > _SEEN:
                seen = self.clock()
                if not await worker_lives(self.host, sandbox_id, attempt_prefix(item)):
                    return _End(ItemEnd.UNFINISHED, "no ack was answered, and the worker is not seen any more")
            match await self.queue.ack(item.id):
                case None:
                    return _End(ItemEnd.HANDED_OVER)
                case Absent():
                    return _End(ItemEnd.GONE, "the item was gone before the ack")
                case Refused(reason=reason):
                    return _End(ItemEnd.FAILED, f"ack refused: {reason}")
                case Throttled(seconds=seconds):
                    await asyncio.sleep(seconds)
                case Doubtful():
                    await asyncio.sleep(next(waits))
        return _End(ItemEnd.UNFINISHED, "the claim grew too old for an ack")

    async def _give_up(self, item: WorkItem, deaths: Sequence[str]) -> _End:
        """Its workers have died too often: nobody ordered it, and none lives. The turn ends, loudly."""
        reason = f"given up after {len(deaths)} deaths of its workers: {'; '.join(deaths[-3:])}"
        stopped = await self.queue.force_stop(item.id)
        if stopped is not None and not isinstance(stopped, Absent):
            return _End(ItemEnd.FAILED, f"{reason}; stopping it failed: {stopped.reason}", alarm=True)
        return _End(ItemEnd.POISONED, reason, alarm=True)

    async def _dismiss(self, item: WorkItem) -> _End:
        """Not a session (a healthcheck): stop it, so that it does not come again (docs/wire/anthropic.md#t12).

        Straight from the queue: after an ack a crash before the stop would leave it acked with nobody behind it. Where
        the service wants the ack first, it gets it.
        """
        outcome = await self.queue.force_stop(item.id)
        if isinstance(outcome, Refused):
            acked = await self.queue.ack(item.id)
            outcome = acked if isinstance(acked, Refused | Doubtful) else await self.queue.force_stop(item.id)
        if isinstance(outcome, Refused | Doubtful):
            return _End(ItemEnd.FAILED, f"dismissing a {item.kind[:40]} item: {outcome.reason}")
        return _End(ItemEnd.DISMISSED, item.kind[:40])

    async def _capability(self, item: WorkItem) -> str | None:
        """What the agent may show to fork_best_of_n; None where it may not, or where the token cannot be had now: the
        hand-over does not wait for an extra."""
        settings = self.settings
        if settings.fork_url is None:
            return None
        try:
            keys = await capability.signing_keys(settings.capability_key, settings.functions_token)
        except (SettingsError, SecretUnavailable) as error:
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
        return capability.issue(issued, keys[0])

    async def _tool_secrets(self, item: WorkItem) -> Mapping[str, str]:
        """What private tools get. One that cannot be had now is left out: the tool that wants it says so to the agent,
        and the others work."""
        found: dict[str, str] = {}
        for name, secret in self.environment.tool_secrets.items():
            try:
                found[name] = await secret.areveal()
            except SecretUnavailable as error:
                log.warning("tool_secret.left_out work=%s reason=%s", item.id, error)
        if sum(map(len, found.values())) > _MOST_SECRETS:
            log.error("tool_secret.left_out work=%s reason=all together are longer than %d", item.id, _MOST_SECRETS)
            return {}
        return found

    async def _claim(self, item: WorkItem, secret: str) -> wire.Claim:
        token = await self._capability(item)
        access = await setup_access(self.environment, self.queue, item.session_id)
        try:
            key = await self.environment.key.areveal()
            session_key, nonce = worker_keys.session_key(key, item.session_id), worker_keys.nonce(key, item)
        except SecretUnavailable:  # the workers of the session then cannot know each other, and pass no claim on
            session_key, nonce = None, secrets.token_hex(32)
        return wire.Claim(
            work_id=item.id,
            environment_id=item.environment_id,
            session_id=item.session_id,
            secret=secret,
            base_url=self.settings.anthropic_url,
            worker_digest=digest(build_archive()),
            workdir=self.settings.workdir,
            max_idle=self.settings.max_idle_seconds,
            gate=self.settings.times.gate,
            reach=self.settings.times.handover * _REACH_SHARE,
            lifetime=self.settings.worker_lifetime,
            capability_token=token,
            fork_url=self.settings.fork_url if token else None,
            session_key=session_key,
            nonce=nonce,
            traceparent=tracing.traceparent(),
            otlp_url=self.settings.worker_otlp or None,
            signed=dict(access.signed) if access.signed else None,
            credential=dict(access.credential) if access.credential else None,
            setup=self.environment.setup.to_wire() if self.environment.setup is not None else None,
            tool_seconds=self.settings.tool_seconds,
            tool_output_bytes=self.settings.tool_output_bytes,
            tool_secrets=await self._tool_secrets(item),
        )

    def _report(self, item: WorkItem, claimed_at: float, end: _End, sandbox: str | None = None) -> ItemReport:
        report = ItemReport(
            work_id=item.id,
            session_id=item.session_id,
            end=end.end,
            seconds=round(self.clock() - claimed_at, 3),
            sandbox=sandbox,
            reason=end.reason,
            alarm=end.alarm,
        )
        log.log(
            logging.INFO if report.end in _QUIET and not report.alarm else logging.WARNING,
            "item.%s work=%s session=%s sandbox=%s seconds=%s reason=%s",
            report.end.value,
            item.id,
            item.session_id,
            sandbox,
            report.seconds,
            report.reason,
        )
        return report


def spec_of(environment: Environment, name: str) -> SandboxSpec:
    """What a new sandbox of a session is made of."""
    return SandboxSpec(
        name=name,
        image=environment.image,
        cpus=environment.cpus,
        memory_mb=environment.memory_mb,
        disk_mb=environment.disk_mb,
        timeout_seconds=environment.timeout_seconds,
        egress=environment.egress,
    )


def _tell(span: tracing.Span, bound: Bound | Unbound) -> None:
    if isinstance(bound, Unbound):
        span.fail("no_capacity" if bound.no_capacity else "unbound")
    else:
        span.set({tracing.OUTCOME: "made" if bound.made else "found", "hands.sandbox.id": bound.sandbox.id})


def _sdk_difference(worker_sdk: str) -> str:
    """The worker's file is replaced where it is not ours; its SDK can only come with a new image."""
    ours = handover.bundle_sdk()
    return "" if worker_sdk == ours else f"the sandbox's SDK is {worker_sdk}, ours {ours}: rebuild the image"
