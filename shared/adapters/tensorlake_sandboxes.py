"""ports.SandboxHost over the tensorlake SDK.

The SDK is imported when the first call is made and never earlier: importing it starts threads that no fork survives
(docs/wire/runtimes.md#0-findings). Its address and key are passed explicitly, since it binds its environment at import.

What each await can meet is sorted in sandbox_answers.py, the one place that knows the SDK's exceptions
(docs/wire/tensorlake.md#33-exceptions): 404 is Absent, another 4xx but 408 and 429 is Refused, and everything else is
Doubtful: dropped connections, time-outs, 5xx, answers that cannot be read. Every call is bounded here, because the SDK
waits 30 s on a refused connection whatever its time-out (docs/wire/tensorlake.md#32-retry-matrix).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from shared.adapters.call_budget import CallBudget, Priority
from shared.adapters.sandbox_answers import (
    LONGEST_REASON,
    effect_of,
    egress_of,
    first_lines,
    known_rows,
    named_states,
    or_no_capacity,
    pool_record,
    read_as,
    readable_rows,
    sdk_outcome,
    snapshot_record,
    state_of,
    without_refusal,
)
from shared.adapters.sandbox_calls import CALL_SECONDS, LARGEST_STATE, SandboxCalls
from shared.adapters.sandbox_wire import (
    Route,
    SandboxWire,
    TooLarge,
    outcome_of,
)
from shared.adapters.sdk_client import RetiredClients
from shared.byte_budget import ByteBudget
from shared.ports import (
    LARGEST_OUTPUT,
    Absent,
    CommandOutput,
    Created,
    CreateOutcome,
    Doubtful,
    FindOutcome,
    Listing,
    NameTaken,
    OutputEnded,
    PoolRecord,
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
    from tensorlake.sandbox import AsyncSandboxClient

log = logging.getLogger(__name__)

BYTES_IN_FLIGHT: Final = 48 * 1024 * 1024
_LARGEST_LIST: Final = 4 * 1024 * 1024
_IMPORT: Final = threading.Lock()
"""Of a package's module: from two threads at once, each would hold the half that the other one waits for."""
_NEVER: Final = {"policy": "never"}

_T = TypeVar("_T")


class TensorlakeSandboxes:
    """One client for one project. `bind_seconds` bounds a create, a resume and a snapshot; other calls CALL_SECONDS."""

    def __init__(self, *, api_url: str, api_key: Secret, bind_seconds: float, budget: CallBudget | None = None) -> None:
        self._api_url = api_url
        self._api_key = api_key
        self._bind_seconds = bind_seconds
        self._budget = budget or CallBudget(0)
        self._client: tuple[str, AsyncSandboxClient] | None = None
        self._retired = RetiredClients()
        self._wire = SandboxWire(api_key, ByteBudget(BYTES_IN_FLIGHT))
        self._calls = SandboxCalls(self._wire, self._budget, self.find)

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
            if handle._cached_info is not None:  # the create's own answer: it saves looking the address up
                self._record(handle._cached_info)
            handle.close()
            return SandboxRecord(handle.sandbox_id, spec.name, SandboxStatus.RUNNING, egress=spec.egress)

        outcome = or_no_capacity(await self._bounded(call, self._bind_seconds, priority=Priority.CLAIM, describe=True))
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

        outcome = await self._bounded(call, CALL_SECONDS, priority=Priority.CLAIM)
        return Doubtful(f"HTTP {outcome.status}") if isinstance(outcome, Refused) else outcome

    async def pool(self, pool_id: str) -> PoolRecord | Absent | Doubtful:
        async def call() -> PoolRecord:
            client = await self._lifecycle()
            return pool_record((await client.get_pool(pool_id)).value)

        return without_refusal(await self._bounded(call, CALL_SECONDS, priority=Priority.CLAIM))

    async def claim_from_pool(self, pool_id: str, seconds: float) -> SandboxRecord | Absent | Refused | Doubtful:
        async def call() -> SandboxRecord:
            client = await self._lifecycle()
            async with asyncio.timeout(seconds + 1.0):
                handle = await client.create_and_connect(
                    pool_id=pool_id, request_timeout=seconds, poll_interval=0.5, cancel_on_timeout=True
                )
            if handle._cached_info is not None:
                self._record(handle._cached_info)
            handle.close()
            return SandboxRecord(handle.sandbox_id, None, SandboxStatus.RUNNING, pool_id=pool_id)

        return or_no_capacity(await self._bounded(call, seconds, priority=Priority.CLAIM, describe=True))

    async def resume(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            client = await self._lifecycle()
            await client.resume(sandbox_id, timeout=self._bind_seconds, poll_interval=0.5)

        return or_no_capacity(await self._bounded(call, self._bind_seconds, priority=Priority.CLAIM, describe=True))

    async def suspend(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            client = await self._lifecycle()
            await client.suspend(sandbox_id, timeout=self._bind_seconds)

        return await self._bounded(call, self._bind_seconds, describe=True)

    async def terminate(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            client = await self._lifecycle()
            await client.delete(sandbox_id)
            self._calls.forget(sandbox_id)

        return await self._bounded(call, CALL_SECONDS, describe=True)

    async def rename(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None:
        async def call() -> None:
            await (await self._lifecycle()).update_sandbox(sandbox_id, name=name)

        return await self._bounded(call, CALL_SECONDS, describe=True)

    async def touch(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        return effect_of(await self._calls.call(sandbox_id, "GET", "/api/v1/health"))

    async def list_sandboxes(self) -> Listing[SandboxRecord] | Doubtful:
        async def call() -> Listing[SandboxRecord]:
            client = await self._lifecycle()
            from tensorlake.sandbox.models import SandboxInfo

            return await readable_rows(client, "list", "sandboxes", SandboxInfo.model_validate, self._record)

        return known_rows(await self._bounded(call, self._bind_seconds, priority=Priority.LOOKUP))

    async def list_snapshots(self, sandbox_id: str | None = None) -> Listing[SnapshotRecord] | Doubtful:
        async def call() -> Listing[SnapshotRecord]:
            client = await self._lifecycle()
            from tensorlake.sandbox.models import SnapshotInfo

            if sandbox_id is not None:
                listed = await client.list_sandbox_snapshots(sandbox_id)
                return Listing([snapshot_record(info) for info in listed], complete=True)
            return await readable_rows(
                client, "list_snapshots", "snapshots", SnapshotInfo.from_response, snapshot_record
            )

        if sandbox_id is not None:
            return known_rows(await self._bounded(call, CALL_SECONDS, priority=Priority.CLAIM))
        return known_rows(await self._bounded(call, self._bind_seconds, priority=Priority.LOOKUP))

    async def start(self, sandbox_id: str, process: ProcessSpec) -> Absent | Refused | Doubtful | None:
        asked = _asked(process.command, process.args, process.env, process.working_dir, process.user)
        asked |= {"name": process.name, "restart": _NEVER}
        said = effect_of(
            await self._calls.call(sandbox_id, "POST", "/api/v1/processes", body=asked, secrets=process.secrets)
        )
        # Names are unique: a second start of one name finds the first.
        return None if isinstance(said, Refused) and said.status == 409 else said

    async def process_names(self, sandbox_id: str) -> Sequence[ProcessState] | Absent | Doubtful:
        outcome = await self._calls.call(sandbox_id, "GET", "/api/v1/processes", limit=_LARGEST_LIST)
        return read_as(outcome, lambda answer: [row for each in answer["processes"] for row in named_states(each)])

    async def process_output(
        self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> Sequence[str] | Absent | Doubtful:
        path = f"{_process(name)}/{_stream(both)}"
        outcome = await self._calls.call(sandbox_id, "GET", path, limit=limit, cut=True)
        return first_lines(outcome) if isinstance(outcome, bytes) else without_refusal(outcome)

    async def follow_output(
        self, sandbox_id: str, name: str, *, silence: float, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> AsyncGenerator[str | OutputEnded | Absent | Doubtful, None]:
        left = limit
        try:
            route = await self._calls.route(sandbox_id)
            if not isinstance(route, Route):
                yield without_refusal(route)
                return
            path = f"{_process(name)}/{_stream(both)}/follow"
            stream = self._wire.events(route, "GET", path, silence=silence, limit=limit, to_the_end=True)
            async with aclosing(stream) as frames:
                async for frame in frames:
                    if isinstance(line := frame.get("line"), str):
                        left -= len(line.encode(errors="surrogatepass")) + 1
                        if left < 0:
                            raise TooLarge(limit)
                        yield line
        except Exception as error:  # the edge: whatever the wire raises is the stream's last word
            yield without_refusal(outcome_of(error))
        else:
            yield OutputEnded()

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState | Absent | Doubtful:
        outcome = await self._calls.call(sandbox_id, "GET", _process(name), limit=LARGEST_STATE)
        return read_as(outcome, lambda answer: state_of(name, answer))

    async def kill(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None:
        return effect_of(await self._calls.call(sandbox_id, "DELETE", _process(name)))

    async def signal(self, sandbox_id: str, name: str, number: int) -> Absent | Refused | Doubtful | None:
        return effect_of(
            await self._calls.call(sandbox_id, "POST", f"{_process(name)}/signal", body={"signal": number})
        )

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
        asked = {**_asked(command, args, env, working_dir, user), "timeout": timeout}
        silence = timeout + CALL_SECONDS  # a program may say nothing until its end
        return await self._calls.routed(
            sandbox_id, lambda route: self._wire.run(route, asked, silence=silence, limit=limit), silence
        )

    async def write_file(self, sandbox_id: str, path: str, data: bytes) -> Absent | Refused | Doubtful | None:
        return effect_of(await self._calls.call(sandbox_id, "PUT", "/api/v1/files", query={"path": path}, body=data))

    async def delete_file(self, sandbox_id: str, path: str) -> Absent | Refused | Doubtful | None:
        return effect_of(await self._calls.call(sandbox_id, "DELETE", "/api/v1/files", query={"path": path}))

    async def read_file(self, sandbox_id: str, path: str, limit: int) -> bytes | Absent | Refused | Doubtful:
        async def call(route: Route) -> bytes | Refused:
            try:
                return await self._wire.call(
                    route, "GET", "/api/v1/files", query={"path": path}, seconds=CALL_SECONDS, limit=limit
                )
            except TooLarge:
                return Refused(413, f"the file is larger than {limit} bytes")

        return await self._calls.routed(sandbox_id, call, CALL_SECONDS)

    async def snapshot(
        self, sandbox_id: str, kind: SnapshotKind = SnapshotKind.FILESYSTEM
    ) -> Snapshot | Absent | Refused | Doubtful:
        async def call() -> Snapshot:
            client = await self._lifecycle()
            from tensorlake.sandbox import SnapshotType

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
            reason = f"the copy is {str(row.status)[:20]}" + (f": {row.reason[:LONGEST_REASON]}" if row.reason else "")
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
        await self._wire.aclose()
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
                    self._retired.add(self._client[1].close)
                self._client = (key, client)
        return self._client[1]

    def _record(self, info: Any) -> SandboxRecord:
        self._calls.saw(info)
        try:
            status = SandboxStatus(info.status.value)
        except ValueError:
            status = SandboxStatus.UNKNOWN
        egress = egress_of(info.network_policy)
        return SandboxRecord(
            info.sandbox_id, info.name, status, info.created_at, egress, info.timeout_secs, info.pool_id
        )

    async def _bounded(
        self,
        call: Callable[[], Awaitable[_T]],
        seconds: float,
        *,
        priority: Priority = Priority.REPAIR,
        describe: bool = False,
    ) -> _T | Absent | Refused | Doubtful:
        """`describe` lets the service's own words into the reason: only for calls that carry no secret."""
        used = self._client
        outcome = await self._tried(call, seconds, priority, describe=describe)
        used = used or self._client
        refused = isinstance(outcome, Refused) and outcome.status == 401
        if not (refused and used and await self._api_key.refused(used[0])):
            return outcome
        await self._lifecycle()  # drops the client that holds the old key
        return await self._tried(call, seconds, priority, describe=describe)  # a refused call changed nothing

    async def _tried(
        self, call: Callable[[], Awaitable[_T]], seconds: float, priority: Priority, *, describe: bool
    ) -> _T | Absent | Refused | Doubtful:
        try:
            async with asyncio.timeout(seconds + 5.0):
                await self._budget.admit(priority)
                return await call()
        except Exception as error:  # the edge: every exception of the SDK becomes an outcome
            return sdk_outcome(error, self._api_url, describe=describe)


def _client_class() -> Any:
    with _IMPORT:
        from tensorlake.sandbox import AsyncSandboxClient

    return AsyncSandboxClient


def _asked(
    command: str, args: Sequence[str], env: Mapping[str, str], working_dir: str | None, user: str | None
) -> dict[str, Any]:
    """docs/wire/tensorlake.md#71-start_process: defaults are left out."""
    asked = {"command": command, "args": list(args), "env": dict(env), "working_dir": working_dir, "user": user}
    return {key: value for key, value in asked.items() if value}


def _stream(both: bool) -> str:
    return "output" if both else "stdout"


def _process(name: str) -> str:
    return f"/api/v1/processes/{quote(name, safe='')}"
