"""From create to terminate: what a sandbox may become, and what that does to its processes
(docs/wire/tensorlake.md#4-statuses, docs/wire/tensorlake.md#5-lifecycle-endpoints).

Every transition is made under the sandbox's lock, so suspend, resume, snapshot and terminate never overlap.
Names are taken and quotas judged before the first await of a create: twenty racing creates have one winner.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from dataclasses import dataclass
from typing import Literal

from infra.local.tensorlake import egress
from infra.local.tensorlake.box import Box, BoxError
from infra.local.tensorlake.errors import TensorlakeApiError, bad_request, conflict, not_supported
from infra.local.tensorlake.layers import BaseRoot
from infra.local.tensorlake.link import SupervisorGone
from infra.local.tensorlake.names import check_name, new_id
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.pools import Pool, Pools
from infra.local.tensorlake.processes import start_request
from infra.local.tensorlake.records import ENDED, Resources, Sandbox, Status
from infra.local.tensorlake.requests import CreateRequest, UpdateRequest
from infra.local.tensorlake.settings import StartFault
from infra.local.tensorlake.snapshots import OfflineSnapshotKind, Snapshots

LONGEST_WAIT_SECONDS = 30.0


@dataclass
class Lifecycle:
    platform: TensorlakePlatform
    snapshots: Snapshots
    pools: Pools

    # --- create ---------------------------------------------------------------------------------------

    def create(self, namespace: str, request: CreateRequest) -> tuple[Sandbox, StartFault | None]:
        """Check, take the name, and begin to start it. Synchronous, hence atomic. Raises TensorlakeApiError."""
        if request.file_systems:
            raise not_supported("file systems")
        if request.name is None and not request.auto_resume:
            raise bad_request("auto_resume=false needs a name: only named sandboxes can be suspended")
        listed = request.network.allow_out if request.network is not None else []
        wildcard_status = self.platform.settings.wildcard_status
        if wildcard_status is not None and any(host.startswith("*.") for host in listed):
            raise TensorlakeApiError(wildcard_status, "BAD_REQUEST", "allow_out: wildcards are not supported")
        name = None if request.name is None else check_name(request.name)
        base, image, resources = self._source(request)
        sandbox_id = new_id()
        if name is not None and (holder := self.platform.names.holder(namespace, name)) is not None:
            status = self.platform.settings.name_taken_status
            raise TensorlakeApiError(status, "CONFLICT", f"sandbox name '{name}' is already in use by {holder}")
        self._check_quota()
        if name is not None:
            self.platform.names.take(namespace, name, sandbox_id)
        settings = self.platform.settings
        wanted = settings.default_timeout_secs if request.timeout_secs is None else request.timeout_secs
        sandbox = Sandbox(
            id=sandbox_id,
            namespace=namespace,
            sequence=next(self.platform.sequence),
            name=name,
            base=self.platform.layers.hold(base),
            image=image,
            snapshot_id=request.snapshot_id,
            resources=request.resources or resources,
            timeout_secs=wanted or settings.longest_timeout_secs,
            entrypoint=request.entrypoint,
            network=request.network,
            exposed_ports=sorted(set(request.exposed_ports)),
            allow_unauthenticated_access=request.allow_unauthenticated_access,
            auto_resume=request.auto_resume,
            max_pending_secs=request.max_pending_secs,
        )
        return sandbox, self._begin(sandbox)

    def _begin(self, sandbox: Sandbox, pool: Pool | None = None) -> StartFault | None:
        self.platform.sandboxes[sandbox.id] = sandbox
        fault = self._take_fault(sandbox.name or "")
        if fault is not None and fault.outcome == "stuck_pending":
            sandbox.pending_reason = fault.pending_reason
        sandbox.boot = self.platform.spawn(self._boot(sandbox, fault, pool))
        return fault

    def claim(self, pool: Pool) -> Sandbox:
        """One of the pool's settings, in a warm container if there is one. Raises TensorlakeApiError for a quota."""
        self._check_quota()
        wanted = pool.request
        sandbox = Sandbox(
            id=new_id(),
            namespace=pool.namespace,
            sequence=next(self.platform.sequence),
            name=None,
            base=self.platform.layers.hold(pool.base),
            image=wanted.image,
            snapshot_id=None,
            resources=wanted.resources,
            timeout_secs=wanted.timeout_secs or self.platform.settings.longest_timeout_secs,
            entrypoint=wanted.entrypoint or [],
            network=wanted.network,
            exposed_ports=[],
            allow_unauthenticated_access=False,
            auto_resume=True,
            pool_id=pool.id,
        )
        self.pools.admit(pool, sandbox)
        self._begin(sandbox, pool)
        return sandbox

    def copy(self, source: Sandbox, base: BaseRoot) -> Sandbox:
        """Begin one copy without a name. What of the source it keeps is not documented
        (docs/wire/tensorlake.md#58-copy): here its image, its resources and what the knob `copies_keep` says. Raises
        TensorlakeApiError for a quota."""
        self._check_quota()
        settings = self.platform.settings
        kept = settings.copies_keep
        sandbox = Sandbox(
            id=new_id(),
            namespace=source.namespace,
            sequence=next(self.platform.sequence),
            name=None,
            base=self.platform.layers.hold(base),
            image=source.image,
            snapshot_id=None,
            resources=source.resources,
            timeout_secs=source.timeout_secs if "timeout" in kept else settings.default_timeout_secs,
            entrypoint=[],
            network=source.network if "network" in kept else None,
            exposed_ports=list(source.exposed_ports) if "ports" in kept else [],
            allow_unauthenticated_access=False,
            auto_resume=True,
        )
        self._begin(sandbox)
        return sandbox

    def _source(self, request: CreateRequest) -> tuple[BaseRoot, str | None, Resources]:
        if request.snapshot_id is None:
            image = self.platform.images.for_create(request.image)
            return image.base, request.image, Resources()
        snapshot = self.snapshots.for_restore(request.snapshot_id)
        if snapshot.kind is OfflineSnapshotKind.MEMORY and (request.image or request.resources or request.entrypoint):
            raise bad_request("image, resources and entrypoint are those of the memory snapshot")
        name = request.image or snapshot.image
        keeps = self.platform.settings.snapshots_keep_files
        return snapshot.base if keeps else self.platform.images.for_create(name).base, name, snapshot.resources

    def _check_quota(self) -> None:
        settings = self.platform.settings
        if settings.max_sandboxes is None:
            return
        live = sum(sandbox.live for sandbox in self.platform.sandboxes.values())
        if live >= settings.max_sandboxes:
            text = f"quota exceeded: {live} of {settings.max_sandboxes} sandboxes are in use"
            raise TensorlakeApiError(settings.over_quota_status, "QUOTA_EXCEEDED", text)

    def _take_fault(self, name: str) -> StartFault | None:
        faults = self.platform.settings.start_faults
        for fault in faults:
            if re.search(fault.name_pattern, name) is None:
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times == 0:
                    faults.remove(fault)
                    return fault.model_copy(update={"times": 1})
            return fault.model_copy()
        return None

    async def _boot(self, sandbox: Sandbox, fault: StartFault | None, pool: Pool | None) -> None:
        async with sandbox.lock:
            if pool is None:
                await asyncio.sleep(self.platform.settings.create_seconds)
            if fault is not None and fault.outcome == "stuck_pending":
                await self._stay_pending(sandbox)
                return
            if fault is not None and fault.outcome in ("failed", "terminated"):
                sandbox.termination_reason = fault.reason
                sandbox.error_details = f"start fault: {fault.reason}"
                await self._end(sandbox, Status(fault.outcome))
                return
            directory = self.platform.directory / "s" / sandbox.id
            hostname = sandbox.name or sandbox.id
            start = await self.pools.container(pool, sandbox) if pool is not None else None
            if start is None:
                if pool is not None:
                    await asyncio.sleep(self.platform.settings.create_seconds)
                fresh = self.platform.isolation.start(
                    sandbox.base, directory, hostname, self.platform.settings.launcher
                )
                start = asyncio.ensure_future(fresh)
            try:
                # Shielded: a start cut off half-way would leave a process and a directory behind.
                box = await asyncio.shield(start)
            except asyncio.CancelledError:
                self.platform.spawn(_undo(start))
                raise
            except BoxError as error:
                await self._fail(sandbox, "ConfigurationError", str(error))
                return
            sandbox.box = box
            box.watch(lambda: self.platform.spawn(self._died(sandbox)))
            await asyncio.to_thread(egress.enforce, box, sandbox.network, self.platform.settings)
            if sandbox.entrypoint:
                command, *args = sandbox.entrypoint
                try:
                    await box.link.call(start_request(sandbox, {"command": command, "args": args}))
                except (TensorlakeApiError, SupervisorGone) as error:
                    await self._fail(sandbox, "ConfigurationError", f"entrypoint: {error}")
                    return
            sandbox.touch()
            if fault is not None and fault.outcome == "suspended":
                await box.freeze()
                sandbox.become(Status.SUSPENDED)
                return
            sandbox.hide_url = fault is not None and fault.outcome == "no_url"
            sandbox.become(Status.RUNNING)

    async def _stay_pending(self, sandbox: Sandbox) -> None:
        if sandbox.max_pending_secs is None:
            await asyncio.Event().wait()
        await asyncio.sleep(sandbox.max_pending_secs or 0)
        sandbox.termination_reason = "no_capacity"
        await self._end(sandbox, Status.TERMINATED)

    async def _died(self, sandbox: Sandbox) -> None:
        async with sandbox.lock:
            if sandbox.live:
                await self._fail(sandbox, "ContainerTerminated", "the sandbox's supervisor ended")

    # --- suspend, resume ------------------------------------------------------------------------------

    async def suspend(self, sandbox: Sandbox, wait: float | None) -> bool:
        """True: suspended. False: under way. Raises 400 for an ephemeral one, 409 for a state it cannot leave."""
        if sandbox.name is None and sandbox.pool_id is None:
            raise bad_request("only named sandboxes can be suspended; give it a name first")
        if sandbox.status in ENDED or sandbox.status is Status.PENDING:
            raise conflict(f"sandbox is {sandbox.status}")
        if sandbox.status is not Status.SUSPENDED:
            self.platform.spawn(self._suspend(sandbox))
            await asyncio.sleep(0)
        return await self._settle(sandbox, Status.SUSPENDED, wait)

    async def resume(self, sandbox: Sandbox, wait: float | None) -> bool:
        """True: running. False: under way. Raises 409 for a state it cannot leave."""
        if sandbox.status in ENDED or sandbox.status is Status.PENDING:
            raise conflict(f"sandbox is {sandbox.status}")
        if sandbox.status in (Status.SUSPENDED, Status.SUSPENDING):
            self.platform.spawn(self._resume(sandbox))
            await asyncio.sleep(0)
        return await self._settle(sandbox, Status.RUNNING, wait)

    async def _settle(self, sandbox: Sandbox, target: Status, wait: float | None) -> bool:
        if wait is None:
            return sandbox.status is target
        return await sandbox.wait_for({target, *ENDED}, min(wait, LONGEST_WAIT_SECONDS)) and sandbox.live

    async def _suspend(self, sandbox: Sandbox) -> None:
        async with sandbox.lock:
            if sandbox.status is not Status.RUNNING or sandbox.box is None:
                return
            sandbox.become(Status.SUSPENDING)
            await self._takes("suspend_seconds")
            try:
                if self.platform.settings.sleep_ends_processes:
                    await _end_processes(sandbox.box)
                await sandbox.box.freeze()
            except SupervisorGone:
                await self._fail(sandbox, "ContainerTerminated", "the sandbox's supervisor ended")
                return
            sandbox.hide_url = not self.platform.settings.sleepers_have_url
            sandbox.asleep_since = time.monotonic()
            sandbox.become(Status.SUSPENDED)

    async def _resume(self, sandbox: Sandbox) -> None:
        async with sandbox.lock:
            if sandbox.status is not Status.SUSPENDED or sandbox.box is None:
                return
            await self._takes("resume_seconds")
            try:
                await sandbox.box.thaw()
            except SupervisorGone:
                await self._fail(sandbox, "ContainerTerminated", "the sandbox's supervisor ended")
                return
            sandbox.touch()
            sandbox.hide_url = False
            sandbox.moved ^= self.platform.settings.resume_moves
            sandbox.become(Status.RUNNING)

    async def _takes(self, knob: Literal["suspend_seconds", "resume_seconds"]) -> None:
        """Waits as long as the knob says; turned meanwhile, it holds for what is under way as well."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (left := began + getattr(self.platform.settings, knob) - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.platform.turned.wait()

    async def awake(self, sandbox: Sandbox, *, by_port: bool = False) -> None:
        """For traffic from outside, to the daemon or to a port: return when it runs, waking it if that is allowed
        (docs/wire/tensorlake.md#56-suspend-and-resume).

        Raises 404 for an ended one, `unwoken_status` for a sleeper that must not be woken, 409 for a start that takes
        too long.
        """
        while sandbox.status is not Status.RUNNING:
            match sandbox.status:
                case Status.TERMINATED | Status.FAILED:
                    raise TensorlakeApiError(404, "NOT_FOUND", f"sandbox '{sandbox.id}' is {sandbox.status}")
                case Status.SUSPENDED | Status.SUSPENDING if (status := self._unwoken(sandbox, by_port)) is not None:
                    said = f"sandbox is {sandbox.status} and traffic does not wake it: resume it first"
                    raise TensorlakeApiError(status, "CONFLICT", said)
                case Status.SUSPENDED | Status.SUSPENDING:
                    self.platform.spawn(self._resume(sandbox))
                    await sandbox.wait_for({Status.RUNNING, *ENDED}, LONGEST_WAIT_SECONDS)
                case _:
                    moved = {Status.RUNNING, Status.SUSPENDED, *ENDED}
                    if not await sandbox.wait_for(moved, LONGEST_WAIT_SECONDS):
                        raise conflict(f"sandbox is still {sandbox.status}")

    def _unwoken(self, sandbox: Sandbox, by_port: bool) -> int | None:
        """What a request to this sleeper is refused with; None: it wakes."""
        settings = self.platform.settings
        if not (settings.port_traffic_wakes if by_port else settings.traffic_wakes):
            return settings.unwoken_status or 409
        return None if sandbox.auto_resume else settings.unwoken_status

    # --- end ------------------------------------------------------------------------------------------

    async def terminate(self, sandbox: Sandbox, reason: str | None = None) -> None:
        """Idempotent. The record stays readable by id; the name is freed, after a delay if one is set."""
        if sandbox.status is Status.TERMINATED:
            return
        if sandbox.status is Status.PENDING:
            reason = "cancelled"
            if sandbox.boot is not None:
                sandbox.boot.cancel()
        async with sandbox.lock:
            if not self._terminated(sandbox):
                sandbox.termination_reason = reason or sandbox.termination_reason
                await self._end(sandbox, Status.TERMINATED)

    @staticmethod
    def _terminated(sandbox: Sandbox) -> bool:
        """Asked again after an await, where the status may have changed."""
        return sandbox.status is Status.TERMINATED

    async def _fail(self, sandbox: Sandbox, reason: str, details: str) -> None:
        sandbox.termination_reason = reason
        sandbox.error_details = details
        await self._end(sandbox, Status.FAILED)

    async def fail(self, sandbox: Sandbox, reason: str) -> None:
        """As if the machine below it had died."""
        async with sandbox.lock:
            if sandbox.live:
                await self._fail(sandbox, reason, "failed on request")

    async def _end(self, sandbox: Sandbox, status: Status) -> None:
        was_live = sandbox.live
        sandbox.become(status)
        box, sandbox.box = sandbox.box, None
        if box is not None:
            await box.end()
        if was_live:
            self.pools.left(sandbox)
            await self.platform.layers.release(sandbox.base)
        keeps = status is Status.FAILED and self.platform.settings.failed_keeps_name
        if keeps or sandbox.name is None:
            return
        delay = self.platform.settings.name_release_seconds
        if delay:
            sandbox.dying_name = sandbox.name
            self.platform.spawn(self._release_later(sandbox, delay))
        else:
            self._release_name(sandbox)

    async def _release_later(self, sandbox: Sandbox, delay: float) -> None:
        await asyncio.sleep(delay)
        self._release_name(sandbox)

    def _release_name(self, sandbox: Sandbox) -> None:
        self.platform.names.release(sandbox.namespace, sandbox.name, sandbox.id)
        sandbox.dying_name = None

    # --- update, idle ---------------------------------------------------------------------------------

    def update(self, sandbox: Sandbox, request: UpdateRequest) -> None:
        """Synchronous, hence atomic. Raises TensorlakeApiError before anything has changed."""
        if not sandbox.live:
            raise conflict(f"sandbox is {sandbox.status}")
        given = request.model_fields_set
        if "resources" in given:
            if given != {"resources"}:
                raise bad_request("resources must be updated alone")
            sandbox.resources = Resources.model_validate(
                {**sandbox.resources.model_dump(), **(request.resources or {})}
            )
            sandbox.resize_generation += 1
            return
        if request.name is not None and request.name != sandbox.name:
            if sandbox.pool_id is not None and (status := self.platform.settings.pool_rename_status) is not None:
                raise TensorlakeApiError(status, "NOT_ALLOWED", "sandboxes of pools keep no name")
            name = check_name(request.name)
            self.platform.names.take(sandbox.namespace, name, sandbox.id)
            self.platform.names.release(sandbox.namespace, sandbox.name, sandbox.id)
            sandbox.name = name
        if request.exposed_ports is not None:
            sandbox.exposed_ports = sorted(set(request.exposed_ports))
        if request.allow_unauthenticated_access is not None:
            sandbox.allow_unauthenticated_access = request.allow_unauthenticated_access
        if request.auto_resume is not None:
            sandbox.auto_resume = request.auto_resume
        if "network" in given:
            sandbox.network = request.network
            if sandbox.box is not None:
                egress.enforce(sandbox.box, sandbox.network, self.platform.settings)

    async def expire(self, sandbox: Sandbox) -> None:
        """The idle timer ran out: a named sandbox or one of a pool is suspended, an ephemeral one terminated
        (docs/wire/tensorlake.md#57-timeout_secs). The knobs `processes_are_activity` and `idle_ends` change it."""
        settings = self.platform.settings
        if settings.processes_are_activity and sandbox.box is not None:
            with contextlib.suppress(SupervisorGone):
                if await sandbox.box.living():
                    return
        if settings.idle_ends or (sandbox.name is None and sandbox.pool_id is None):
            await self.terminate(sandbox, "timeout")
        else:
            await self._suspend(sandbox)

    async def age(self, sandbox: Sandbox, seconds: float) -> None:
        """As if so much time had passed without a request; returns when that has had its effect."""
        sandbox.last_activity -= seconds
        if self._times_out(sandbox):
            await self.expire(sandbox)

    def _times_out(self, sandbox: Sandbox) -> bool:
        """Whether the idle timer has run out; it begins anew then."""
        idle = sandbox.idle_seconds(open_requests_count=self.platform.settings.open_requests_are_activity)
        if sandbox.status is not Status.RUNNING or idle < sandbox.timeout_secs:
            return False
        sandbox.touch()
        return True

    async def keep_time(self, interval: float = 0.2) -> None:
        """The idle timer and the retention of sleepers: looks at every sandbox, indefinitely."""
        while True:
            await asyncio.sleep(interval)
            for sandbox in list(self.platform.sandboxes.values()):
                if self._times_out(sandbox):
                    self.platform.spawn(self.expire(sandbox))
                kept = self.platform.settings.retention_seconds
                slept = time.monotonic() - sandbox.asleep_since
                if sandbox.status is Status.SUSPENDED and kept is not None and slept >= kept:
                    self.platform.spawn(self.terminate(sandbox, "retention"))


async def _end_processes(box: Box) -> None:
    for row in (await box.link.call({"op": "list"}))["processes"]:
        if row["status"] == "running":
            with contextlib.suppress(TensorlakeApiError):  # it has ended meanwhile
                await box.link.call({"op": "signal", "signal": signal.SIGKILL, "process": str(row["pid"])})


async def _undo(start: asyncio.Future[Box]) -> None:
    try:
        box = await start
    except BoxError:
        return
    await box.end()
