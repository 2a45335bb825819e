"""ports.SandboxHost over the tensorlake SDK.

The SDK is imported when the first call is made and never earlier: importing it starts threads that no fork survives
(contract runtimes 0). Its address and key are passed explicitly, since it binds its environment at import.

What each await can meet is sorted by `_outcome`, the one place that knows the SDK's exceptions (contract tensorlake
3.3): 404 is Absent, another 4xx but 408 and 429 is Refused, and everything else is Doubtful: dropped connections,
time-outs, 5xx, answers that cannot be read. Every call is bounded here, because the SDK waits 30 s on a refused
connection whatever its time-out (contract tensorlake 3.2).
"""

from __future__ import annotations

import asyncio
import json
import logging
import warnings
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shared.adapters.sdk_client import RetiredClients
from shared.egress import EgressPolicy
from shared.ports import (
    Absent,
    CommandOutput,
    Created,
    CreateOutcome,
    Doubtful,
    FindOutcome,
    Listing,
    NameTaken,
    ProcessSpec,
    ProcessState,
    Refused,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
    Snapshot,
    SnapshotKind,
    SnapshotRecord,
)
from shared.secret import Secret

if TYPE_CHECKING:
    from tensorlake.sandbox import AsyncSandbox, AsyncSandboxClient

log = logging.getLogger(__name__)

CALL_SECONDS: Final = 20.0
MOST_HANDLES: Final = 256
_LONGEST_REASON: Final = 200
_OVER: Final = (SandboxStatus.TERMINATED.value, SandboxStatus.FAILED.value)

_T = TypeVar("_T")


class TensorlakeSandboxes:
    """One client for one project. `bind_seconds` bounds a create, a resume and a snapshot; other calls CALL_SECONDS."""

    def __init__(self, *, api_url: str, api_key: Secret, bind_seconds: float) -> None:
        self._api_url = api_url
        self._api_key = api_key
        self._bind_seconds = bind_seconds
        self._client: tuple[str, AsyncSandboxClient] | None = None
        self._retired = RetiredClients()
        self._routes: OrderedDict[str, tuple[str, str | None]] = OrderedDict()
        self._handles: OrderedDict[str, AsyncSandbox] = OrderedDict()

    async def create(self, spec: SandboxSpec) -> CreateOutcome:
        async def call() -> SandboxRecord:
            client = await self._lifecycle()
            handle = await client.create_and_connect(
                name=spec.name,
                image=spec.image,
                snapshot_id=spec.snapshot_id,
                cpus=spec.cpus,
                memory_mb=spec.memory_mb,
                disk_mb=spec.disk_mb,
                timeout_secs=spec.timeout_seconds,
                allow_internet_access=spec.egress.internet,
                allow_out=list(spec.egress.allow) or None,
                deny_out=list(spec.egress.deny) or None,
                request_timeout=self._bind_seconds,
            )
            self._keep(handle.sandbox_id, handle)
            return SandboxRecord(handle.sandbox_id, spec.name, SandboxStatus.RUNNING, egress=spec.egress)

        outcome = await self._bounded(call, self._bind_seconds, describe=True)
        match outcome:
            case SandboxRecord():
                return Created(outcome)
            case Refused(status=409):
                return NameTaken()
            case Absent():
                return Refused(404, "the service does not know what the sandbox should be made of")
            case _:
                return outcome

    async def find(self, name_or_id: str) -> FindOutcome:
        async def call() -> SandboxRecord:
            client = await self._lifecycle()
            return self._record((await client.get(name_or_id)).value)

        outcome = await self._bounded(call, CALL_SECONDS)
        return Doubtful(f"HTTP {outcome.status}") if isinstance(outcome, Refused) else outcome

    async def resume(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            client = await self._lifecycle()
            self._forget(sandbox_id)  # it may wake up behind another route
            await client.resume(sandbox_id, timeout=self._bind_seconds, poll_interval=0.5)

        return await self._bounded(call, self._bind_seconds, describe=True)

    async def suspend(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            client = await self._lifecycle()
            await client.suspend(sandbox_id, timeout=self._bind_seconds)

        return await self._bounded(call, self._bind_seconds, describe=True)

    async def terminate(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            client = await self._lifecycle()
            await client.delete(sandbox_id)
            self._forget(sandbox_id)

        return await self._bounded(call, CALL_SECONDS, describe=True)

    async def rename(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            await (await self._lifecycle()).update_sandbox(sandbox_id, name=name)

        return await self._bounded(call, CALL_SECONDS, describe=True)

    async def touch(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            await (await self._handle(sandbox_id)).health()

        return await self._bounded(call, CALL_SECONDS)

    async def list_sandboxes(self) -> Listing[SandboxRecord] | Doubtful:
        async def call() -> Listing[SandboxRecord]:
            from tensorlake.sandbox.models import SandboxInfo

            client = await self._lifecycle()
            return await _readable(client, "list", "sandboxes", SandboxInfo.model_validate, self._record)

        return _known(await self._bounded(call, self._bind_seconds))

    async def list_snapshots(self) -> Listing[SnapshotRecord] | Doubtful:
        async def call() -> Listing[SnapshotRecord]:
            from tensorlake.sandbox.models import SnapshotInfo

            client = await self._lifecycle()
            return await _readable(client, "list_snapshots", "snapshots", SnapshotInfo.from_response, _snapshot_record)

        return _known(await self._bounded(call, self._bind_seconds))

    async def start(self, sandbox_id: str, process: ProcessSpec) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            from tensorlake.sandbox import RestartPolicy, RestartPolicyConfig

            handle = await self._handle(sandbox_id)
            await handle.start_process(
                process.command,
                list(process.args),
                env=dict(process.env),
                working_dir=process.working_dir,
                user=process.user,
                name=process.name,
                restart=RestartPolicyConfig(policy=RestartPolicy.NEVER),
            )

        outcome = await self._bounded(call, CALL_SECONDS)
        if outcome == Refused(409, "HTTP 409"):
            return None  # the SDK sends a start again after a 502 to 504; names are unique, so this was the first one
        return outcome

    async def process_names(self, sandbox_id: str) -> Sequence[ProcessState] | Absent | Doubtful:
        async def call() -> list[ProcessState]:
            handle = await self._handle(sandbox_id)
            states = []
            for info in await handle.list_processes():
                if info.managed is not None and info.managed.name:
                    states.append(_process_state(info.managed.name, info))
            return states

        return _without_refusal(await self._bounded(call, CALL_SECONDS))

    async def process_output(self, sandbox_id: str, name: str) -> Sequence[str] | Absent | Doubtful:
        async def call() -> list[str]:
            handle = await self._handle(sandbox_id)
            return list((await handle.get_stdout(name)).lines)

        return _without_refusal(await self._bounded(call, CALL_SECONDS))

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState | Absent | Doubtful:
        async def call() -> ProcessState:
            handle = await self._handle(sandbox_id)
            return _process_state(name, (await handle.get_process(name)).value)

        return _without_refusal(await self._bounded(call, CALL_SECONDS))

    async def kill(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            await (await self._handle(sandbox_id)).kill_process(name)

        return await self._bounded(call, CALL_SECONDS)

    async def signal(self, sandbox_id: str, name: str, number: int) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            await (await self._handle(sandbox_id)).send_signal(name, number)

        return await self._bounded(call, CALL_SECONDS)

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
    ) -> CommandOutput | Absent | Refused | Doubtful:
        async def call() -> CommandOutput:
            # A handle of its own: the request time-out of a stream is its longest silence (contract tensorlake 3.1).
            handle = await self._connect(sandbox_id, request_timeout=timeout + CALL_SECONDS)
            try:
                result = await handle.run(
                    command, list(args), env=dict(env), working_dir=working_dir, timeout=timeout, user=user
                )
            finally:
                handle.close()
            return CommandOutput(result.exit_code, result.stdout, result.stderr, bool(result.timed_out))

        return await self._bounded(call, timeout + CALL_SECONDS)

    async def write_file(self, sandbox_id: str, path: str, data: bytes) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            await (await self._handle(sandbox_id)).write_file(path, data)

        return await self._bounded(call, CALL_SECONDS)

    async def delete_file(self, sandbox_id: str, path: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            await (await self._handle(sandbox_id)).delete_file(path)

        return await self._bounded(call, CALL_SECONDS)

    async def read_file(self, sandbox_id: str, path: str, limit: int) -> bytes | Absent | Refused | Doubtful:
        async def call() -> bytes:
            return bytes((await (await self._handle(sandbox_id)).read_file(path)).value)

        outcome = await self._bounded(call, CALL_SECONDS)
        if isinstance(outcome, bytes) and len(outcome) > limit:
            return Refused(413, f"the file is larger than {limit} bytes")
        return outcome

    async def snapshot(
        self, sandbox_id: str, kind: SnapshotKind = SnapshotKind.FILESYSTEM
    ) -> Snapshot | Absent | Refused | Doubtful:
        async def call() -> Snapshot:
            from tensorlake.sandbox import SnapshotType

            client = await self._lifecycle()
            info = await client.snapshot_and_wait(
                sandbox_id,
                timeout=self._bind_seconds,
                poll_interval=0.1,
                snapshot_type=SnapshotType(kind.value),
            )
            return Snapshot(info.value.snapshot_id)

        return await self._bounded(call, self._bind_seconds, describe=True)

    async def copy(
        self, sandbox_id: str, names: Sequence[str]
    ) -> Sequence[SandboxRecord | Refused | Doubtful] | Absent | Refused | Doubtful:
        async def call() -> Any:
            client = await self._lifecycle()
            return (await client.copy(sandbox_id, times=len(names), request_timeout=self._bind_seconds)).value.sandboxes

        copies = await self._bounded(call, self._bind_seconds, describe=True)
        if isinstance(copies, Absent | Refused | Doubtful):
            return copies
        rows = [*copies[: len(names)], *[None] * (len(names) - len(copies))]
        surplus = [copy.sandbox_id for copy in copies[len(names) :]]
        settled, _ = await asyncio.gather(
            asyncio.gather(*map(self._settle_copy, rows, names)), asyncio.gather(*map(self.terminate, surplus))
        )
        return settled

    async def _settle_copy(self, row: Any, name: str) -> SandboxRecord | Refused | Doubtful:
        if row is None:
            return Doubtful("the service named fewer copies than it was asked for")
        if row.status != SandboxStatus.RUNNING.value:
            ended = await self.terminate(row.sandbox_id)  # what timed out or is pending may come to run yet
            reason = f"the copy is {str(row.status)[:20]}" + (f": {row.reason[:_LONGEST_REASON]}" if row.reason else "")
            return Refused(409, reason) if ended is None or isinstance(ended, Absent) else Doubtful(reason)
        renamed = await self.rename(row.sandbox_id, name)
        if isinstance(renamed, Doubtful):
            renamed = await self.rename(row.sandbox_id, name)
        if renamed is None:
            found = await self.find(row.sandbox_id)
            return found if isinstance(found, SandboxRecord) else Doubtful("the copy could not be looked at")
        ended = await self.terminate(row.sandbox_id)
        if isinstance(renamed, Refused) and (ended is None or isinstance(ended, Absent)):
            return renamed
        return Doubtful("it is not known whether a copy has its name")

    async def delete_snapshot(self, snapshot_id: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            await (await self._lifecycle()).delete_snapshot(snapshot_id)

        return await self._bounded(call, CALL_SECONDS, describe=True)

    async def aclose(self) -> None:
        await self._retired.aclose()
        for handle in self._handles.values():
            handle.close()
        self._handles.clear()
        if self._client is not None:
            client, self._client = self._client[1], None
            await client.close()

    async def _lifecycle(self) -> AsyncSandboxClient:
        """The client for the key of this moment: a rotated key gets a new one."""
        key = await self._api_key.areveal()
        if self._client is None or self._client[0] != key:
            client_class = await asyncio.to_thread(_client_class)
            if self._client is None or self._client[0] != key:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # "in preview": the only form with a plain GET
                    client = client_class(api_url=self._api_url, api_key=key, request_timeout=self._bind_seconds)
                if self._client is not None:
                    self._retired.add(partial(_close_all, self._client[1], list(self._handles.values())))
                self._handles.clear()
                self._client = (key, client)
        return self._client[1]

    async def _handle(self, sandbox_id: str) -> AsyncSandbox:
        handle = self._handles.get(sandbox_id)
        if handle is None:
            handle = await self._connect(sandbox_id, request_timeout=CALL_SECONDS)
            self._keep(sandbox_id, handle)
        else:
            self._handles.move_to_end(sandbox_id)
        return handle

    async def _connect(self, sandbox_id: str, *, request_timeout: float) -> AsyncSandbox:
        client = await self._lifecycle()
        if sandbox_id not in self._routes:
            self._record((await client.get(sandbox_id)).value)
        route = self._routes.get(sandbox_id)
        if route is None:
            return await client.connect(sandbox_id, request_timeout=request_timeout)
        url, hint = route
        return await client.connect(sandbox_id, proxy_url=url, routing_hint=hint, request_timeout=request_timeout)

    def _record(self, info: Any) -> SandboxRecord:
        if info.sandbox_url:
            self._routes[info.sandbox_id] = (info.sandbox_url, info.routing_hint)
            while len(self._routes) > MOST_HANDLES:
                self._routes.popitem(last=False)
        try:
            status = SandboxStatus(info.status.value)
        except ValueError:
            status = SandboxStatus.UNKNOWN
        policy = info.network_policy
        egress = (
            EgressPolicy(policy.allow_internet_access, tuple(policy.allow_out), tuple(policy.deny_out))
            if policy is not None
            else EgressPolicy()
        )
        return SandboxRecord(info.sandbox_id, info.name, status, info.created_at, egress, info.timeout_secs)

    def _keep(self, sandbox_id: str, handle: AsyncSandbox) -> None:
        self._handles[sandbox_id] = handle
        while len(self._handles) > MOST_HANDLES:
            self._handles.popitem(last=False)

    def _forget(self, sandbox_id: str) -> None:
        self._handles.pop(sandbox_id, None)
        self._routes.pop(sandbox_id, None)

    async def _bounded(
        self, call: Callable[[], Awaitable[_T]], seconds: float, *, describe: bool = False
    ) -> _T | Absent | Refused | Doubtful:
        """`describe` lets the service's own words into the reason: only for calls that carry no secret."""
        used = self._client
        outcome = await self._tried(call, seconds, describe=describe)
        used = used or self._client
        refused = isinstance(outcome, Refused) and outcome.status == 401
        if not (refused and used and await self._api_key.refused(used[0])):
            return outcome
        await self._lifecycle()  # drops the handles that hold the old key
        return await self._tried(call, seconds, describe=describe)  # a refused call changed nothing

    async def _tried(
        self, call: Callable[[], Awaitable[_T]], seconds: float, *, describe: bool
    ) -> _T | Absent | Refused | Doubtful:
        try:
            async with asyncio.timeout(seconds + 5.0):
                return await call()
        except Exception as error:  # the edge: every exception of the SDK becomes an outcome
            return _outcome(error, describe=describe)


async def _close_all(client: AsyncSandboxClient, handles: Sequence[AsyncSandbox]) -> None:
    for handle in handles:
        handle.close()
    await client.close()


def _client_class() -> Any:
    from tensorlake.sandbox import AsyncSandboxClient

    return AsyncSandboxClient


def _process_state(name: str, info: Any) -> ProcessState:
    return ProcessState(name=name, running=info.status.value == "running", exit_code=info.exit_code)


async def _readable(
    client: AsyncSandboxClient, method: str, key: str, read: Callable[[Any], Any], record: Callable[[Any], _T]
) -> Listing[_T]:
    """The rows that can be read. The SDK gives nothing at all where it cannot read one of them (contract 3.3): a status
    that is new would end all clean-up. Then they are taken one by one from the answer that the SDK itself reads."""
    from tensorlake.sandbox.exceptions import RemoteAPIError, SandboxConnectionError

    try:
        return Listing([record(info) for info in await getattr(client, method)()], complete=True)
    except (RemoteAPIError, SandboxConnectionError):
        raise
    except Exception as error:  # no class of its own: the SDK wraps whatever its reading of a row raised
        log.warning("tensorlake.list_unreadable list=%s error=%s", key, type(error).__name__)
    wire = {"list": "list_sandboxes_json_async", "list_snapshots": "list_snapshots_json_async"}[method]
    _, answer = await getattr(client._rust_client, wire)()
    rows, unreadable = [], 0
    for row in json.loads(answer)[key]:
        try:
            rows.append(record(read(row)))
        except (ValueError, TypeError, KeyError, AttributeError):  # pydantic's error is a ValueError
            unreadable += 1
    return Listing(rows, complete=False, unreadable=unreadable)


def _snapshot_record(info: Any) -> SnapshotRecord:
    filesystem = info.snapshot_type.value == "filesystem" if info.snapshot_type is not None else None
    return SnapshotRecord(info.snapshot_id, info.sandbox_id, filesystem, info.created_at)


def _known(outcome: _T | Absent | Refused | Doubtful) -> _T | Doubtful:
    """For a listing: neither a 404 nor a refusal says anything about its rows."""
    match outcome:
        case Absent():
            return Doubtful("HTTP 404")
        case Refused(status=status):
            return Doubtful(f"HTTP {status}")
        case _:
            return outcome


def _without_refusal(outcome: _T | Absent | Refused | Doubtful) -> _T | Absent | Doubtful:
    return Doubtful(f"HTTP {outcome.status}") if isinstance(outcome, Refused) else outcome


def _outcome(error: Exception, *, describe: bool) -> Absent | Refused | Doubtful:
    from tensorlake.sandbox import RemoteAPIError, SandboxError, SandboxNotFoundError, SandboxNotRoutableError

    if isinstance(error, SandboxNotFoundError):
        return Absent()
    if isinstance(error, SandboxNotRoutableError) and error.status is not None and error.status.value in _OVER:
        return Absent()
    if isinstance(error, RemoteAPIError):
        status = error.status_code
        reason = f"HTTP {status}" + (f": {error.message[:_LONGEST_REASON]}" if describe else "")
        if status == 404:
            return Absent()
        if 400 <= status < 500 and status not in (408, 429):
            return Refused(status, reason)
        return Doubtful(reason)
    if isinstance(error, SandboxError) and describe:
        return Doubtful(f"{type(error).__name__}: {str(error)[:_LONGEST_REASON]}")
    return Doubtful(type(error).__name__)
