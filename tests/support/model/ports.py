"""ports.WorkQueue and ports.SandboxHost over the model: what the real adapters do for the real services."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from shared.ports import (
    LARGEST_OUTPUT,
    Absent,
    AckOutcome,
    CommandOutput,
    Created,
    CreateOutcome,
    Doubtful,
    Empty,
    FindOutcome,
    ListedItem,
    Listing,
    NameTaken,
    NoCapacity,
    OpenCalls,
    OutputEnded,
    PollOutcome,
    PoolRecord,
    ProcessSpec,
    ProcessState,
    Refused,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
    SessionRecord,
    SessionStatus,
    Snapshot,
    SnapshotKind,
    SnapshotRecord,
    StaleEntry,
    Throttled,
    WorkItem,
)
from tests.support.model.claude import ModelClaude, ModelItem, ModelPhase, StaleError
from tests.support.model.lines import LostError, ModelLine, RefusedError, ThrottledError
from tests.support.model.sandboxes import NO_ROOM, AbsentError, ModelBox, ModelProcess, ModelSandboxes

EPOCH: Final = datetime(2026, 10, 20, 9, 0, tzinfo=UTC)
CALL_SECONDS: Final = 15.0

_T = TypeVar("_T")


@functools.lru_cache(maxsize=1 << 16)
def moment(seconds: float) -> datetime:
    """A moment of the run as the services' clocks tell it. Most are asked for again."""
    return EPOCH + timedelta(seconds=seconds)


def _maybe(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


async def _outcome(line: ModelLine, method: str, effect: Callable[[], Any], about: str, seconds: float) -> Any:
    """What a call comes to, in the words of the ports. It is bounded, as every call of the adapters is."""
    try:
        return await line.call(method, effect, within=seconds, about=about)
    except ThrottledError as error:
        return Throttled(error.reason, error.seconds)
    except LostError as error:
        return Doubtful(error.reason)
    except RefusedError as error:
        return Refused(error.status, f"HTTP {error.status}")


class ModelQueue:
    """One caller's queue of the one environment. `reclaim` is R."""

    def __init__(self, claude: ModelClaude, line: ModelLine, *, reclaim: float, environment_id: str) -> None:
        self._claude = claude
        self._line = line
        self._reclaim = reclaim
        self._environment_id = environment_id

    async def poll(self) -> PollOutcome:
        outcome: PollOutcome = await self._call("poll", self._claim)
        return outcome

    def _claim(self) -> PollOutcome:
        try:
            item = self._claude.claim(self._reclaim)
        except StaleError:
            return StaleEntry()
        if item is None:
            return Empty()
        secret = f"secret-{item.id}-{item.handed_out}" if item.kind == "session" else None
        return WorkItem(item.id, self._environment_id, item.kind, item.session_id, moment(item.created_at), secret)

    async def ack(self, work_id: str) -> AckOutcome:
        outcome: AckOutcome = await self._call("ack", _absent_if_missing(lambda: self._claude.ack(work_id)), work_id)
        return outcome

    async def force_stop(self, work_id: str) -> AckOutcome:
        outcome: AckOutcome = await self._call(
            "force_stop", _absent_if_missing(lambda: self._claude.stop(work_id, self._line.caller)), work_id
        )
        return outcome

    async def list_items(self, pages: int, back_to: datetime | None = None) -> Listing[ListedItem] | Refused | Doubtful:
        def effect() -> Listing[ListedItem]:
            most = pages * 100
            if back_to is not None and len(self._claude.items) > 100:  # else it is one page
                oldest = (back_to - EPOCH).total_seconds()
                newer = sum(item.created_at >= oldest for item in itertools.islice(self._claude.listed(), most))
                most = min(most, (newer // 100 + 1) * 100)
            rows = [_listed(item) for item in itertools.islice(self._claude.listed(), most)]
            return Listing(rows, complete=len(self._claude.items) <= most)

        outcome: Listing[ListedItem] | Refused | Doubtful = await self._call("list_items", effect)
        return outcome

    async def session(self, session_id: str) -> SessionRecord | Absent | Refused | Doubtful:
        def effect() -> SessionRecord | Absent:
            session = self._claude.sessions.get(session_id)
            if session is None or session.over == "deleted":
                return Absent()
            archived = session.over == "archived"
            return SessionRecord(session_id, SessionStatus(session.status), archived, moment(session.updated_at))

        outcome: SessionRecord | Absent | Refused | Doubtful = await self._call("session", effect, session_id)
        return outcome

    async def open_calls(self, session_id: str) -> OpenCalls | Absent | Refused | Doubtful:
        def effect() -> OpenCalls | Absent:
            session = self._claude.sessions.get(session_id)
            if session is None or session.over == "deleted":
                return Absent()
            ids = tuple(session.open_calls if session.phase is ModelPhase.PARKED else ())
            return OpenCalls(ids, given_up=session.given_up and bool(ids))

        outcome: OpenCalls | Absent | Refused | Doubtful = await self._call("open_calls", effect, session_id)
        return outcome

    async def give_up_calls(self, session_id: str, calls: OpenCalls) -> AckOutcome:
        outcome: AckOutcome = await self._call(
            "give_up_calls", _absent_if_missing(lambda: self._claude.give_up(session_id, calls.ids)), session_id
        )
        return outcome

    async def interrupt(self, session_id: str) -> AckOutcome:
        outcome: AckOutcome = await self._call(
            "interrupt", _absent_if_missing(lambda: self._claude.interrupt(session_id)), session_id
        )
        return outcome

    async def aclose(self) -> None:
        return None

    def _call(self, method: str, effect: Callable[[], Any], about: str = "") -> Coroutine[Any, Any, Any]:
        return _outcome(self._line, method, effect, about, CALL_SECONDS)


def _absent_if_missing(effect: Callable[[], None]) -> Callable[[], Absent | None]:
    def guarded() -> Absent | None:
        try:
            effect()
        except KeyError:
            return Absent()
        return None

    return guarded


def _listed(item: ModelItem) -> ListedItem:
    """Most items are listed again as they were."""
    made_of = (item.state, item.acked_at, item.beat_at, item.stopped_at, item.stop_asked_at)
    if item.row is None or item.row[0] != made_of:
        state, *times = made_of
        row = ListedItem(
            item.id, item.kind, item.session_id, state, moment(item.created_at), *(_maybe(time) for time in times)
        )
        item.row = made_of, row
    return item.row[1]


class ModelHost:
    """One caller's view of the project's sandboxes. `bind` bounds a create and a resume."""

    def __init__(
        self, sandboxes: ModelSandboxes, line: ModelLine, *, bind: float, routes: dict[str, int] | None = None
    ) -> None:
        """routes: what this process knows of where each sandbox is reached."""
        self._routes = {} if routes is None else routes
        self._sandboxes = sandboxes
        self._line = line
        self._bind = bind

    async def create(self, spec: SandboxSpec) -> CreateOutcome:
        if spec.snapshot_id is not None:
            return Refused(501, "the model has no snapshots")
        outcome = await self._call("create", lambda: self._sandboxes.create(spec) or NameTaken(), spec.name, self._bind)
        if isinstance(outcome, ModelBox):
            return Created(
                SandboxRecord(outcome.id, spec.name, SandboxStatus.RUNNING, moment(outcome.created_at), spec.egress)
            )
        if outcome is None:
            return Doubtful("the sandbox failed to start")
        if isinstance(outcome, Refused) and outcome.status == NO_ROOM:
            return NoCapacity(outcome.status, outcome.reason)
        result: CreateOutcome = outcome
        return result

    async def find(self, name_or_id: str) -> FindOutcome:
        def effect() -> FindOutcome:
            try:
                return self._record(self._sandboxes.find(name_or_id))
            except AbsentError:
                return Absent()

        outcome: FindOutcome | Refused = await self._call("find", effect, name_or_id)
        return Doubtful(outcome.reason) if isinstance(outcome, Refused) else outcome

    async def pool(self, pool_id: str) -> PoolRecord | Absent | Doubtful:
        def effect() -> PoolRecord | Absent:
            return self._sandboxes.pool if self._sandboxes.pool is not None else Absent()

        outcome: PoolRecord | Absent | Refused | Doubtful = await self._call("pool", effect, pool_id)
        return Doubtful(outcome.reason) if isinstance(outcome, Refused) else outcome

    async def claim_from_pool(self, pool_id: str, seconds: float) -> SandboxRecord | Absent | Refused | Doubtful:
        def effect() -> SandboxRecord | Absent:
            return Absent() if self._sandboxes.pool is None else self._record(self._sandboxes.claim())

        outcome: SandboxRecord | Absent | Refused | Doubtful
        outcome = await self._call("claim_from_pool", effect, pool_id, seconds)
        return outcome

    async def resume(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        return await self._settling("resume", sandbox_id, self._sandboxes.resume, SandboxStatus.RUNNING)

    async def suspend(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        return await self._settling("suspend", sandbox_id, self._sandboxes.suspend, SandboxStatus.SUSPENDED)

    async def _settling(
        self, method: str, sandbox_id: str, act: Callable[[ModelBox], asyncio.Future[None]], wanted: SandboxStatus
    ) -> Absent | Refused | Doubtful | None:
        outcome = await self._call(method, lambda: self._with(sandbox_id, lambda box: act(box)), sandbox_id, self._bind)
        if outcome is None and self._sandboxes.boxes[sandbox_id].status is not wanted:
            return Doubtful("it became something else")
        result: Absent | Refused | Doubtful | None = outcome
        return result

    async def terminate(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        return await self._plain("terminate", sandbox_id, lambda box: self._sandboxes.end(box))

    async def rename(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None:
        return await self._plain("rename", sandbox_id, lambda box: self._sandboxes.rename(box, name))

    async def list_sandboxes(self) -> Listing[SandboxRecord] | Doubtful:
        def effect() -> Listing[SandboxRecord]:
            return Listing([self._record(box) for box in self._sandboxes.boxes.values()], complete=True)

        outcome: Listing[SandboxRecord] | Refused | Doubtful = await self._call("list_sandboxes", effect)
        return Doubtful(outcome.reason) if isinstance(outcome, Refused) else outcome

    # What goes to the inside wakes a sleeper first.

    async def touch(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        outcome: Absent | Refused | Doubtful | None = await self._inside("touch", sandbox_id, lambda box: None)
        return outcome

    async def start(self, sandbox_id: str, process: ProcessSpec) -> Absent | Refused | Doubtful | None:
        outcome = await self._inside("start", sandbox_id, lambda box: self._sandboxes.start(box, process))
        return None if isinstance(outcome, ModelProcess) or outcome == Refused(409, "HTTP 409") else outcome

    async def process_names(self, sandbox_id: str) -> Sequence[ProcessState] | Absent | Doubtful:
        outcome: Sequence[ProcessState] | Absent | Doubtful = _not_refused(
            await self._inside(
                "process_names", sandbox_id, lambda box: [_state(process) for process in box.processes.values()]
            )
        )
        return outcome

    async def process_output(
        self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> Sequence[str] | Absent | Doubtful:
        outcome: Sequence[str] | Absent | Doubtful = _not_refused(
            await self._inside(
                "process_output",
                sandbox_id,
                lambda box: list(box.processes[name].lines) if name in box.processes else Absent(),
            )
        )
        return outcome

    async def follow_output(
        self, sandbox_id: str, name: str, *, silence: float, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> AsyncGenerator[str | OutputEnded | Absent | Doubtful, None]:
        """One call opens the stream; each line is under way for a moment."""
        process = _not_refused(
            await self._inside("process_output", sandbox_id, lambda box: box.processes.get(name, Absent()))
        )
        if not isinstance(process, ModelProcess):
            yield process
            return
        seen = 0
        while True:
            while seen < len(process.lines):
                seen += 1
                yield process.lines[seen - 1]
            if not process.running:
                yield OutputEnded() if process.box.status is SandboxStatus.RUNNING else Doubtful("the stream broke")
                return
            process.heard.clear()
            try:
                async with asyncio.timeout(silence):
                    await process.heard.wait()
            except TimeoutError:
                yield Doubtful("nothing was heard")
                return
            await asyncio.sleep(0.02)
            if self._line.dead:
                raise asyncio.CancelledError

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState | Absent | Doubtful:
        outcome: ProcessState | Absent | Doubtful = _not_refused(
            await self._inside(
                "process_state",
                sandbox_id,
                lambda box: _state(box.processes[name]) if name in box.processes else Absent(),
            )
        )
        return outcome

    async def kill(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None:
        outcome: Absent | Refused | Doubtful | None = await self._inside(
            "kill",
            sandbox_id,
            lambda box: self._sandboxes.cut(box.processes[name]) if name in box.processes else Absent(),
        )
        return outcome

    async def signal(self, sandbox_id: str, name: str, number: int) -> Absent | Refused | Doubtful | None:
        outcome: Absent | Refused | Doubtful | None = await self._inside(
            "signal",
            sandbox_id,
            lambda box: self._sandboxes.signal(box.processes[name], number) if name in box.processes else Absent(),
        )
        return outcome

    async def write_file(self, sandbox_id: str, path: str, data: bytes) -> Absent | Refused | Doubtful | None:
        outcome: Absent | Refused | Doubtful | None = await self._inside(
            "write_file", sandbox_id, lambda box: box.files.update({path: data})
        )
        return outcome

    async def read_file(self, sandbox_id: str, path: str, limit: int) -> bytes | Absent | Refused | Doubtful:
        def effect(box: ModelBox) -> bytes | Absent:
            return box.files.get(path, Absent())

        outcome: bytes | Absent | Refused | Doubtful = await self._inside("read_file", sandbox_id, effect)
        if isinstance(outcome, bytes) and len(outcome) > limit:
            return Refused(413, f"the file is larger than {limit} bytes")
        return outcome

    async def delete_file(self, sandbox_id: str, path: str) -> Absent | Refused | Doubtful | None:
        outcome: Absent | Refused | Doubtful | None = await self._inside(
            "delete_file", sandbox_id, lambda box: None if box.files.pop(path, None) is not None else Absent()
        )
        return outcome

    # What no claim and no repair of sessions needs.

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
        return Refused(501, "the model runs no commands")

    async def snapshot(
        self, sandbox_id: str, kind: SnapshotKind = SnapshotKind.FILESYSTEM
    ) -> Snapshot | Absent | Refused | Doubtful:
        return Refused(501, "the model has no snapshots")

    async def copy(
        self, sandbox_id: str, names: Sequence[str]
    ) -> Sequence[SandboxRecord | Refused | Doubtful] | Absent | Refused | Doubtful:
        return Refused(501, "the model has no copies")

    async def list_snapshots(self, sandbox_id: str | None = None) -> Listing[SnapshotRecord] | Doubtful:
        none: list[SnapshotRecord] = []
        outcome: Listing[SnapshotRecord] | Refused | Doubtful = await self._call(
            "list_snapshots", lambda: Listing(none, complete=True)
        )
        return Doubtful(outcome.reason) if isinstance(outcome, Refused) else outcome

    async def delete_snapshot(self, snapshot_id: str) -> Absent | Refused | Doubtful | None:
        return Absent()

    async def aclose(self) -> None:
        return None

    async def _plain(
        self, method: str, sandbox_id: str, act: Callable[[ModelBox], None]
    ) -> Absent | Refused | Doubtful | None:
        outcome: Absent | Refused | Doubtful | None = await self._call(
            method, lambda: self._with(sandbox_id, act), sandbox_id
        )
        return outcome

    def _inside(self, method: str, sandbox_id: str, act: Callable[[ModelBox], _T]) -> Coroutine[Any, Any, Any]:
        loop = self._line.loop

        def reach() -> Any:
            try:
                box = self._sandboxes.find(sandbox_id)
                waking = self._sandboxes.reach(box)
            except AbsentError:
                return Absent()
            if waking is None:
                return self._by_route(box, act)
            answer: asyncio.Future[Any] = loop.create_future()
            waking.add_done_callback(lambda _: answer.set_result(act(box) if box.exists else Absent()))
            self._routes.pop(box.id, None)
            return answer

        return self._call(method, reach, sandbox_id)

    def _by_route(self, box: ModelBox, act: Callable[[ModelBox], _T]) -> _T | Doubtful:
        """What is known of a sandbox that has moved leads nowhere, once."""
        known = self._routes.get(box.id, box.route)
        self._routes[box.id] = self.route_known_after(known, box)
        return act(box) if known == box.route else Doubtful("no sandbox answers at its old address")

    @staticmethod
    def route_known_after(known: int, box: ModelBox) -> int:
        return box.route

    def _with(self, sandbox_id: str, act: Callable[[ModelBox], _T]) -> _T | Absent:
        try:
            return act(self._sandboxes.find(sandbox_id))
        except AbsentError:
            return Absent()

    def _record(self, box: ModelBox) -> SandboxRecord:
        """Most sandboxes are listed again as they were."""
        made_of = (box.name, self._sandboxes.shown(box))
        if box.row is None or box.row[0] != made_of:
            name, status = made_of
            created, spec = moment(box.created_at), box.spec
            record = SandboxRecord(
                box.id, name or None, status, created, spec.egress, spec.timeout_seconds, box.pool_id
            )
            box.row = made_of, record
        return box.row[1]

    def _call(
        self, method: str, effect: Callable[[], Any], about: str = "", seconds: float | None = None
    ) -> Coroutine[Any, Any, Any]:
        return _outcome(self._line, method, effect, about, CALL_SECONDS if seconds is None else seconds + 5.0)


def _state(process: ModelProcess) -> ProcessState:
    return ProcessState(process.spec.name, process.running, process.exit_code)


def _not_refused(outcome: Any) -> Any:
    return Doubtful(outcome.reason) if isinstance(outcome, Refused) else outcome
