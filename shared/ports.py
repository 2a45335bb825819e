"""The two services as the core sees them: protocols with typed outcomes.

Everything below `shared/` depends on these and on no SDK. The real adapters are `claude_queue.ClaudeQueue` and
`tensorlake_host.TensorlakeHost`; any other implementation must pass the same tests (tests/conformance).

An outcome says what is known. `Doubtful` means that the effect may or may not have happened (no status, a time-out,
a 5xx): it is the default class for whatever is not recognised, and it is never read as "not there".
No method raises for anything a service does; a bug raises. All times are seconds.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Generic, Protocol, TypeVar

from shared.egress import EgressPolicy

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Doubtful:
    """Nobody knows whether it happened. `reason` is fit for a report: no secret, no body."""

    reason: str


@dataclass(frozen=True, slots=True)
class NoAnswer(Doubtful):
    """There was no connection, or no answer in time: the service has refused nothing (shared/unanswered.py)."""


@dataclass(frozen=True, slots=True)
class Throttled(Doubtful):
    """The service said, or had said before, that it takes no calls with this credential now: come back in `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The service said no, and would again. `status` is the HTTP status."""

    status: int
    reason: str


@dataclass(frozen=True, slots=True)
class NoCapacity(Refused):
    """There is no room for one more running sandbox: a quota, a plan's limit, a full region. It will pass."""


@dataclass(frozen=True, slots=True)
class Absent:
    """The service said that it is not there."""


# --------------------------------------------------------------------------------------------------- the work queue


@dataclass(frozen=True, slots=True)
class WorkItem:
    """An item as polled. `secret` is None where the service issued none; it is never logged."""

    id: str
    environment_id: str
    kind: str
    session_id: str
    created_at: datetime
    secret: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Empty:
    """Nothing to claim."""


@dataclass(frozen=True, slots=True)
class StaleEntry:
    """The queue's head belongs to a deleted session (a 404): poll again to move past it
    (docs/wire/anthropic.md#33-state-machine)."""


class ItemState(StrEnum):
    """docs/wire/anthropic.md#33-state-machine, plus `unknown` for a state this bundle has never heard of."""

    QUEUED = "queued"
    STARTING = "starting"
    ACTIVE = "active"
    STOPPING = "stopping"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ListedItem:
    """An item as listed: without its secret."""

    id: str
    kind: str
    session_id: str
    state: ItemState
    created_at: datetime
    acknowledged_at: datetime | None = None
    latest_heartbeat_at: datetime | None = None
    stopped_at: datetime | None = None
    stop_requested_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Listing(Generic[_Row]):
    """Rows that were seen; the rest is unknown unless `complete`. `unreadable` counts rows that made no sense."""

    rows: Sequence[_Row]
    complete: bool
    unreadable: int = 0


class SessionStatus(StrEnum):
    """docs/wire/anthropic.md#8-sessions-api, plus `unknown`."""

    IDLE = "idle"
    RUNNING = "running"
    RESCHEDULING = "rescheduling"
    TERMINATED = "terminated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SessionRecord:
    id: str
    status: SessionStatus
    archived: bool
    updated_at: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenCalls:
    """Ids of the tool calls that an idle session waits for a worker to answer, in the order of the calls.

    What waits for a person (a confirmation) or for somebody's custom tool is not among them. `custom`: those of the
    ids that call our own custom tool, which takes another form of answer. `given_up`: in this turn `give_up_calls` has
    answered calls before.
    """

    ids: tuple[str, ...] = ()
    custom: frozenset[str] = frozenset()
    given_up: bool = False


PollOutcome = WorkItem | Empty | StaleEntry | Refused | Doubtful
AckOutcome = Absent | Refused | Doubtful | None
"""None: acked (again). Absent: no such item any more."""


class WorkLooks(Protocol):
    """What can be read of one environment's work; nothing is changed by it."""

    async def list_items(self, pages: int, back_to: datetime | None = None) -> Listing[ListedItem] | Refused | Doubtful:
        """Up to `pages` pages of 100. Where they come newest first, none is read after one that reaches further back
        than `back_to`."""
        ...

    async def session(self, session_id: str) -> SessionRecord | Absent | Refused | Doubtful: ...

    async def open_calls(self, session_id: str) -> OpenCalls | Absent | Refused | Doubtful: ...


class WorkQueue(WorkLooks, Protocol):
    """The work queue of one environment (docs/wire/anthropic.md#3-work-queue)."""

    async def poll(self) -> PollOutcome:
        """Claim one item; it stays claimable by others after the reclaim window R."""
        ...

    async def ack(self, work_id: str) -> AckOutcome: ...

    async def force_stop(self, work_id: str) -> AckOutcome: ...

    async def give_up_calls(self, session_id: str, calls: OpenCalls) -> AckOutcome:
        """Answer each of these calls with an error that says that its worker is lost; the turn goes on with it."""
        ...

    async def interrupt(self, session_id: str) -> AckOutcome:
        """Send `user.interrupt`: it ends the turn, and the session queues again
        (docs/wire/anthropic.md#33-state-machine)."""
        ...

    async def aclose(self) -> None: ...


# ---------------------------------------------------------------------------------------------------- the sandboxes


class SandboxStatus(StrEnum):
    """docs/wire/tensorlake.md#4-statuses, plus `unknown` for a status this bundle has never heard of."""

    PENDING = "pending"
    RUNNING = "running"
    SNAPSHOTTING = "snapshotting"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    TERMINATED = "terminated"
    TIMEOUT = "timeout"
    FAILED = "failed"
    UNKNOWN = "unknown"


BROKEN: Final = (SandboxStatus.FAILED, SandboxStatus.TIMEOUT)
"""It does not come back, and is still there."""
ENDED: Final = (SandboxStatus.TERMINATED, *BROKEN)
"""No session's any more."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a new sandbox is made of. `snapshot_id` restores a snapshot (whose image it is then)."""

    name: str
    image: str | None = None
    snapshot_id: str | None = None
    cpus: float | None = None
    memory_mb: int | None = None
    disk_mb: int | None = None
    timeout_seconds: int | None = None
    egress: EgressPolicy = field(default_factory=EgressPolicy)


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """A sandbox as the service describes it."""

    id: str
    name: str | None
    status: SandboxStatus
    created_at: datetime | None = None
    egress: EgressPolicy = field(default_factory=EgressPolicy)
    timeout_seconds: int | None = None
    pool_id: str | None = None


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """What the sandboxes of a pool are (docs/wire/tensorlake.md#512-pools)."""

    id: str
    image: str
    cpus: float
    memory_mb: int
    disk_mb: int
    timeout_seconds: int
    egress: EgressPolicy = field(default_factory=EgressPolicy)
    entrypoint: bool = False


@dataclass(frozen=True, slots=True)
class Created:
    sandbox: SandboxRecord


@dataclass(frozen=True, slots=True)
class NameTaken:
    """409: somebody holds the name (docs/wire/tensorlake.md#51-create)."""


CreateOutcome = Created | NameTaken | Refused | Doubtful
FindOutcome = SandboxRecord | Absent | Doubtful


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A program to start. `name` is unique in the sandbox. It is never restarted by the service.

    secrets: texts of `env` that must stand in no report, whatever the service answers.
    """

    name: str
    command: str
    args: Sequence[str]
    env: Mapping[str, str] = field(repr=False, default_factory=dict)
    user: str | None = None
    working_dir: str | None = None
    secrets: Sequence[str] = field(repr=False, default=())


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What a process has said and how it ended. `exit_code` is None while it runs or after a signal; `pid` where the
    sandbox tells."""

    name: str
    running: bool
    exit_code: int | None = None
    lines: Sequence[str] = ()
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """A finished command. `exit_code` is minus the signal's number after a signal."""

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool


@dataclass(frozen=True, slots=True)
class OutputEnded:
    """The process has closed its output."""


class SnapshotKind(StrEnum):
    """docs/wire/tensorlake.md#6-snapshots. One of memory goes on with its processes in every sandbox made from it, and
    keeps its image, resources and entrypoint: a spec that restores it names none of these."""

    FILESYSTEM = "filesystem"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Snapshot:
    id: str


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot as listed. `filesystem` is false for one of memory; None where the service does not say. `ready`: it
    can be restored from."""

    id: str
    sandbox_id: str
    filesystem: bool | None
    created_at: datetime | None
    ready: bool = True


LARGEST_OUTPUT: Final = 65_536


class SandboxHost(Protocol):
    """The sandboxes of one project (docs/wire/tensorlake.md). `sandbox_id` is always the service's own id. No answer of
    a sandbox is held beyond its limit in bytes, and of those without one the implementation bounds the size."""

    async def create(self, spec: SandboxSpec) -> CreateOutcome: ...

    async def find(self, name_or_id: str) -> FindOutcome: ...

    async def pool(self, pool_id: str) -> PoolRecord | Absent | Doubtful: ...

    async def claim_from_pool(self, pool_id: str, seconds: float) -> SandboxRecord | Absent | Refused | Doubtful:
        """A running sandbox of this pool, without a name. Absent: there is no such pool. A claim that is not served
        within `seconds` is given up; what it gets later has no name (shared/reconcile/plan.py ends it)."""
        ...

    async def resume(self, sandbox_id: str) -> Absent | Refused | Doubtful | None: ...

    async def suspend(self, sandbox_id: str) -> Absent | Refused | Doubtful | None: ...

    async def terminate(self, sandbox_id: str) -> Absent | Refused | Doubtful | None: ...

    async def rename(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None: ...

    async def touch(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        """The cheapest call that counts as activity, so that the idle time-out begins anew."""
        ...

    async def list_sandboxes(self) -> Listing[SandboxRecord] | Doubtful:
        """All sandboxes of the project, the ended ones that it still lists included."""
        ...

    async def start(self, sandbox_id: str, process: ProcessSpec) -> Absent | Refused | Doubtful | None: ...

    async def process_names(self, sandbox_id: str) -> Sequence[ProcessState] | Absent | Doubtful:
        """Every process with a name that the sandbox remembers, without its output."""
        ...

    async def process_output(
        self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> Sequence[str] | Absent | Doubtful:
        """The first lines of standard output so far, of at most `limit` bytes on the wire. both: and of standard error,
        in the order of their writing."""
        ...

    def follow_output(
        self, sandbox_id: str, name: str, *, silence: float, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> AsyncGenerator[str | OutputEnded | Absent | Doubtful, None]:
        """The lines of standard output from the first on, as they come. The last item is never a line: OutputEnded, or
        why there are no more. `silence` is the longest pause in seconds; `limit` the bytes of all lines together;
        both: standard error's lines, too."""
        ...

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState | Absent | Doubtful: ...

    async def kill(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None: ...

    async def signal(self, sandbox_id: str, name: str, number: int) -> Absent | Refused | Doubtful | None:
        """Send a signal to the process's group."""
        ...

    async def run(
        self,
        sandbox_id: str,
        command: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        user: str | None,
        working_dir: str | None,
        timeout: float,
        limit: int = LARGEST_OUTPUT,
    ) -> CommandOutput | Absent | Refused | Doubtful:
        """Run to the end. `timeout` kills the whole process tree; the call itself ends a little later. Both outputs
        together have at most `limit` bytes: what writes more is given up, and its end is not known (Doubtful)."""
        ...

    async def write_file(self, sandbox_id: str, path: str, data: bytes) -> Absent | Refused | Doubtful | None: ...

    async def read_file(self, sandbox_id: str, path: str, limit: int) -> bytes | Absent | Refused | Doubtful:
        """At most `limit` bytes; a larger file is Refused with status 413."""
        ...

    async def delete_file(self, sandbox_id: str, path: str) -> Absent | Refused | Doubtful | None:
        """As the sandbox's daemon does it: a link itself, no directory. Absent for no such file, too."""
        ...

    async def snapshot(
        self, sandbox_id: str, kind: SnapshotKind = SnapshotKind.FILESYSTEM
    ) -> Snapshot | Absent | Refused | Doubtful:
        """A snapshot that can be restored from (status local_ready or completed)."""
        ...

    async def copy(
        self, sandbox_id: str, names: Sequence[str]
    ) -> Sequence[SandboxRecord | Refused | Doubtful] | Absent | Refused | Doubtful:
        """Live copies of a running sandbox with its memory, files and processes, in one call: one for each name, in
        this order (docs/wire/tensorlake.md#58-copy).

        The service gives copies no names; each is renamed here, and one that could not be renamed is ended again and
        is that row's failure (Doubtful where that is ambiguous). What a copy has of the source's time-out
        and egress is not known. After a Doubtful for the whole call copies without a name may live until their time-out
        ends
        them: no name leads to them.
        """
        ...

    async def list_snapshots(self, sandbox_id: str | None = None) -> Listing[SnapshotRecord] | Doubtful:
        """All of the project, or those that were taken of one sandbox."""
        ...

    async def delete_snapshot(self, snapshot_id: str) -> Absent | Refused | Doubtful | None: ...

    async def aclose(self) -> None: ...
