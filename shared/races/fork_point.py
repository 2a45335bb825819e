"""What the branches of a race start from: a sandbox (a session's, mostly), a snapshot or an image, and a set-up on it.

The source's own sandbox is only ever checkpointed here, never changed: a set-up runs in a base sandbox forked from it,
and that one is checkpointed in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Final

from shared import names
from shared.backoff import pause_before
from shared.claims.presence import worker_lives
from shared.deadline import Clock, Deadline
from shared.egress import EgressPolicy
from shared.environment_settings import Environment
from shared.ports import Absent, Doubtful, Refused, SandboxHost, SandboxRecord, SandboxSpec, SandboxStatus, SnapshotKind
from shared.races.ends import RaceTimeouts
from shared.races.errors import BadRace, SetupFailed, SourceAbsent, SourceNotReady, SourceUnknown
from shared.races.progress import Timeline
from shared.races.request import Checkpoint, RaceRequest
from shared.races.resources import NotMade, RaceResources
from shared.races.shell import NotDone, NotRun, Ran, SandboxShell

_SETUP_TAIL: Final = 1_000


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """What a child is made of. With `snapshot_id` the image is the snapshot's own. `egress` is the source's policy.
    `sandbox` is the source where that is one; `idle_seconds` the least time-out of every child. `kind` is that of the
    checkpoint; with `live` there is none, and the children are copies that exist already. `taken` is the snapshot that
    the race took of the source."""

    egress: EgressPolicy
    image: str | None = None
    snapshot_id: str | None = None
    sandbox: SandboxRecord | None = None
    idle_seconds: int = 600
    kind: Checkpoint = "filesystem"
    taken: str | None = None

    @property
    def holds_identity(self) -> bool:
        """Whether the files may say that they belong to a session."""
        return self.snapshot_id is not None or self.kind == "live"

    def spec(self, name: str, environment: Environment, busy_seconds: float) -> SandboxSpec:
        """`busy_seconds` is the longest that a child may go without traffic: it must not fall asleep at work."""
        locked = self.kind == "memory"  # sizes are the snapshot's own (docs/wire/tensorlake.md#6-snapshots)
        return SandboxSpec(
            name=name,
            image=self.image,
            snapshot_id=self.snapshot_id,
            cpus=None if locked else environment.cpus,
            memory_mb=None if locked else environment.memory_mb,
            disk_mb=None if locked else environment.disk_mb,
            timeout_seconds=max(self.idle_seconds, int(busy_seconds) + 120),
            egress=self.egress,
        )


@dataclass(frozen=True, slots=True)
class RaceContext:
    """What preparing a fork point needs. `base_name` names the set-up's sandbox, given what was taken of the source;
    `identity` goes into each child."""

    host: SandboxHost
    environment: Environment
    prefix: str
    resources: RaceResources
    shell: SandboxShell
    timeouts: RaceTimeouts
    timeline: Timeline
    clock: Clock
    base_name: Callable[[str | None], str]
    identity_file: str
    identity: str
    server_sandbox: str = ""


async def look(request: RaceRequest, context: RaceContext) -> SandboxRecord | None:
    """The source's sandbox as it is now, None for another kind of source. Changes nothing.

    Raises BadRace, SourceAbsent or SourceUnknown.
    """
    if not request.source.is_sandbox:
        return None
    name, label = _called(request, context)
    for attempt in range(context.timeouts.attempts):
        if attempt:
            await asyncio.sleep(pause_before(attempt, context.timeouts.pause))
        match await context.host.find(name):
            case Absent() | SandboxRecord(status=SandboxStatus.TERMINATED):
                raise SourceAbsent(f"{label} is not there")
            case SandboxRecord() as record if name not in (record.name, record.id):
                raise SourceUnknown("the service answered with a sandbox of another name")
            case SandboxRecord() as record:
                if context.server_sandbox and context.server_sandbox in (record.name, record.id):
                    raise BadRace("source.sandbox_id", "this is the sandbox that the function itself is served in")
                return record
            case Doubtful(reason=reason):
                doubt = reason
    raise SourceUnknown(f"{label} could not be looked up: {doubt}")


def _called(request: RaceRequest, context: RaceContext) -> tuple[str, str]:
    """What to look for, and what to call it in a report."""
    if request.source.sandbox_id is not None:
        if request.source.sandbox_id == context.server_sandbox:
            raise BadRace("source.sandbox_id", "this is the sandbox that the function itself is served in")
        return request.source.sandbox_id, "the source's sandbox"
    try:
        session_id = request.source.session_id or ""
        return names.sandbox_name(context.prefix, context.environment.id, session_id), "the session's sandbox"
    except names.BadName as error:
        raise BadRace("source.session_id", str(error)) from None


async def prepare(
    request: RaceRequest,
    record: SandboxRecord | None,
    context: RaceContext,
    stack: AsyncExitStack,
    names: Sequence[str],
) -> ForkPoint:
    """Everything from the source (what `look` found) to the point from which branches start. What it makes is ended
    with `stack`. `names` are the branches' sandboxes', for a race that copies them live.

    Raises a RaceError: SourceAbsent, SourceNotReady, SourceUnknown, SetupFailed.
    """
    idle_seconds = request.keep.timeout if request.keep is not None else 0
    if record is not None:
        with context.timeline.span("source"):
            record = await awake(record, context)
        with context.timeline.span("checkpoint"):
            snapshot_id = await _checkpoint(request.checkpoint, record, context, stack, names)
        fork_point = ForkPoint(
            _egress_of(record, context.environment),
            snapshot_id=snapshot_id,
            sandbox=record,
            kind=request.checkpoint,
            taken=snapshot_id,
        )
    else:
        fork_point = ForkPoint(
            context.environment.egress, image=request.source.image, snapshot_id=request.source.snapshot_id
        )
    fork_point = replace(fork_point, idle_seconds=max(fork_point.idle_seconds, idle_seconds))
    if request.setup is None:
        return fork_point
    return await _set_up(request, request.setup, fork_point, context, stack)


async def _checkpoint(
    kind: Checkpoint, record: SandboxRecord, context: RaceContext, stack: AsyncExitStack, names: Sequence[str]
) -> str | None:
    """The snapshot to start from; None where the children are copies."""
    label = "the source's sandbox"
    if kind != "filesystem":
        match await worker_lives(context.host, record.id):
            case True:
                raise SourceNotReady(
                    f"a worker lives in {label}: a {kind} checkpoint would clone it with its lease; filesystem does not"
                )
            case None:
                raise SourceUnknown(f"it is not known whether a worker lives in {label}, which {kind} would clone")
            case False:
                pass
    if kind == "live":
        await stack.enter_async_context(context.resources.copies(record.id, names, label))
        return None
    taken = SnapshotKind.MEMORY if kind == "memory" else SnapshotKind.FILESYSTEM
    return await stack.enter_async_context(context.resources.snapshots.checkpoint(record.id, label, taken))


async def _set_up(
    request: RaceRequest, script: str, fork_point: ForkPoint, context: RaceContext, stack: AsyncExitStack
) -> ForkPoint:
    name = context.base_name(fork_point.taken)
    spec = fork_point.spec(name, context.environment, request.setup_timeout)
    try:
        async with context.resources.sandbox(spec) as base:
            with context.timeline.span("setup"):
                if fork_point.holds_identity:
                    await stamp(base.id, context)
                await _run_setup(script, request.setup_timeout, base.id, context)
            with context.timeline.span("checkpoint"):
                snapshot_id = await stack.enter_async_context(context.resources.snapshots.checkpoint(base.id, name))
    except NotMade as error:
        if error.status == 404:
            raise SourceAbsent(f"the source is not there: {error}") from None
        raise SourceUnknown(f"no sandbox for the set-up: {error}") from None
    return replace(fork_point, image=None, snapshot_id=snapshot_id, kind="filesystem")


async def stamp(sandbox_id: str, context: RaceContext) -> None:
    """The first thing in a child: what its files say of whose it is. Raises SourceUnknown where it cannot be said."""
    written = await context.shell.stamp(sandbox_id, context.identity_file, context.identity)
    if isinstance(written, NotDone):
        raise SourceUnknown(f"the source's identity could not be taken from a copy: {written.reason}")


async def _run_setup(script: str, timeout: float, sandbox_id: str, context: RaceContext) -> None:
    match await context.shell.run(sandbox_id, ("sh", "-c", script), env={}, timeout=timeout):
        case NotRun(reason=reason):
            raise SourceUnknown(f"the set-up: {reason}")
        case Ran(timed_out=True):
            raise SetupFailed(f"the set-up did not end within {timeout:g} s")
        case Ran(exit_code=code) as ran if code != 0:
            tail = (ran.stderr.strip() or ran.stdout.strip())[-_SETUP_TAIL:]
            raise SetupFailed(f"the set-up ended with exit code {code}" + (f": {tail}" if tail else ""))


async def awake(record: SandboxRecord, context: RaceContext) -> SandboxRecord:
    """The source's sandbox, running. A sleeping one is woken and left awake: its session may have begun to use it
    meanwhile, and the living are not suspended; its idle time-out puts it to sleep again."""
    patience = Deadline.after(context.timeouts.boot, context.clock)
    while not patience.passed:
        match record.status:
            case SandboxStatus.RUNNING:
                return record
            case SandboxStatus.SUSPENDED:
                match await context.host.resume(record.id):
                    case Absent():
                        raise SourceAbsent("the source's sandbox is not there any more")
                    case Refused(reason=reason):
                        raise SourceNotReady(f"the source's sandbox sleeps and cannot be woken: {reason}")
                    case Doubtful() | None:
                        pass
            case SandboxStatus.FAILED | SandboxStatus.TIMEOUT:
                raise SourceNotReady(f"the source's sandbox is {record.status}")
            case _:
                await asyncio.sleep(context.timeouts.pause)
        found = await context.host.find(record.id)
        match found:
            case SandboxRecord():
                record = found
            case Absent():
                raise SourceAbsent("the source's sandbox is not there any more")
            case Doubtful():
                await asyncio.sleep(context.timeouts.pause)
    raise SourceNotReady(f"the source's sandbox is {record.status} and not running after {context.timeouts.boot:g} s")


def _egress_of(record: SandboxRecord, environment: Environment) -> EgressPolicy:
    # A service that leaves the policy out of its answer must not open the children to everything.
    return environment.egress if record.egress == EgressPolicy() else record.egress
