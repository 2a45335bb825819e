"""Sandboxes, their names and their processes (docs/wire/tensorlake.md#4-statuses,
docs/wire/tensorlake.md#5-lifecycle-endpoints, docs/wire/tensorlake.md#7-processes).

A create takes its name at once and answers when the sandbox runs; suspend and resume take a while; a request to what
runs inside wakes a sleeper; nothing asked for a while puts it to sleep; what is ended stays readable by id. A program
is a coroutine of the test's; it runs while its sandbox does (`Process.awake`) and is cut off with it.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from image.session import claim as wire
from shared.ports import PoolRecord, ProcessSpec, SandboxRecord, SandboxSpec, SandboxStatus
from tests.support.model.lines import RefusedError, forever
from tests.support.model.loop import VirtualLoop
from tests.support.model.truth import Truth

NO_ROOM = 429  # the status of a create for which there is none

OVER = (SandboxStatus.TERMINATED, SandboxStatus.FAILED, SandboxStatus.TIMEOUT)


class AbsentError(Exception):
    """404."""


@dataclass(slots=True, eq=False)
class ModelProcess:
    box: ModelBox
    spec: ProcessSpec
    serial: str
    lines: list[str] = field(default_factory=list)
    running: bool = True
    exit_code: int | None = None
    stop_asked: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[int] | None = None
    heard: asyncio.Event = field(default_factory=asyncio.Event)  # it has said something, or ended
    may_be_given_up: bool = False  # it hears that signal, and has not said that it is ready
    given_up: bool = False
    stands_still: bool = False
    in_hand: str | None = None  # the call that it runs, or died in
    told_of: bool = False  # the next worker has said that this one died in a call

    def says(self, line: str) -> None:
        self.lines.append(line)
        self.heard.set()

    async def awake(self) -> None:
        """Returns while the sandbox runs; never where it has ended, since its processes have ended with it."""
        while self.box.status is not SandboxStatus.RUNNING:
            if not self.box.exists:
                await forever()
            await self.box.woken.wait()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.box.status is not SandboxStatus.RUNNING:
            await self.awake()


@dataclass(slots=True, eq=False)
class ModelBox:
    id: str
    name: str
    spec: SandboxSpec
    created_at: float
    status: SandboxStatus = SandboxStatus.PENDING
    since: float = 0.0  # when it took this status
    active_at: float = 0.0
    processes: dict[str, ModelProcess] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    session: str | None = None  # written down by the first worker
    lock: ModelProcess | None = None
    at_work: ModelProcess | None = None  # as the notes on its disk tell: it runs a call, or died in one
    deaths: dict[str, int] = field(default_factory=dict)  # of workers, by call
    desk: Any = None  # the lock holder's
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    settled: list[asyncio.Future[None]] = field(default_factory=list)
    route: int = 0  # where it is reached; another one each time that it comes to run
    stuck: bool = False  # refuses to be resumed, for good
    pool_id: str | None = None
    row: tuple[tuple[str, SandboxStatus], SandboxRecord] | None = None  # of the list, and what it was made of

    @property
    def exists(self) -> bool:
        return self.status not in OVER


@dataclass(frozen=True, slots=True)
class Manner:
    """How the service behaves. Times in seconds."""

    boot: float = 0.5
    suspend: float = 0.3
    resume: float = 0.5
    name_release: float = 0.0
    failed_keeps_name: bool = False
    worker_on_board: bool = True  # the image has the bundle's own worker file
    idle_timer: bool = True


Boot = Callable[[SandboxSpec, int], tuple[float, SandboxStatus]]
"""For each create, by its number: how long it is pending, and what it becomes then."""


class ModelSandboxes:
    """The service. `program` is what every process runs; its return is the exit code."""

    def __init__(
        self,
        loop: VirtualLoop,
        truth: Truth,
        manner: Manner,
        program: Callable[[ModelProcess], Coroutine[Any, Any, int]],
        boot: Boot | None = None,
    ) -> None:
        self._loop = loop
        self._truth = truth
        self._manner = manner
        self._program = program
        self._boot = boot or (lambda spec, number: (manner.boot, SandboxStatus.RUNNING))
        self._names: dict[str, ModelBox] = {}
        self.boxes: dict[str, ModelBox] = {}
        self.pool: PoolRecord | None = None
        self.full_until = 0.0  # no room for another sandbox before
        self.turned_away = 0  # creates for want of room
        self._numbers = itertools.count(1)
        self._serials = itertools.count(1)

    # Lifecycle. What takes time answers a future.

    def create(self, spec: SandboxSpec) -> asyncio.Future[ModelBox | None] | None:
        """None: the name is taken. The future's None: it did not come to run. Raises RefusedError(NO_ROOM)."""
        if spec.name in self._names:
            return None
        if self._loop.time() < self.full_until:
            self.turned_away += 1
            raise RefusedError(NO_ROOM)
        number = next(self._numbers)
        box = ModelBox(f"box{number}", spec.name, spec, self._loop.time(), since=self._loop.time())
        self.boxes[box.id] = self._names[spec.name] = box
        self._note(box, f"made as {spec.name}")
        answer: asyncio.Future[ModelBox | None] = self._loop.create_future()
        seconds, status = self._boot(spec, number)
        self._loop.after(seconds, self._booted, box, status, answer)
        return answer

    def claim(self) -> ModelBox:
        """A warm one of the pool: it runs, and has no name. Raises RefusedError(NO_ROOM)."""
        assert self.pool is not None
        if self._loop.time() < self.full_until:
            self.turned_away += 1
            raise RefusedError(NO_ROOM)
        pool, number = self.pool, next(self._numbers)
        spec = SandboxSpec(name="", image=pool.image, timeout_seconds=pool.timeout_seconds, egress=pool.egress)
        box = ModelBox(f"box{number}", "", spec, self._loop.time(), since=self._loop.time(), pool_id=pool.id)
        self.boxes[box.id] = box
        self._note(box, "claimed from the pool")
        self._runs(box)
        return box

    def place(self, spec: SandboxSpec) -> ModelBox:
        """A sandbox that ran before the run began."""
        number = next(self._numbers)
        box = ModelBox(f"box{number}", spec.name, spec, self._loop.time(), since=self._loop.time())
        self.boxes[box.id] = self._names[spec.name] = box
        self._runs(box)
        return box

    def sleep(self, box: ModelBox) -> None:
        """It slept before the run began."""
        box.woken.clear()
        self._become(box, SandboxStatus.SUSPENDED)

    def _booted(self, box: ModelBox, status: SandboxStatus, answer: asyncio.Future[ModelBox | None]) -> None:
        if box.status is SandboxStatus.PENDING:
            if status is SandboxStatus.RUNNING:
                self._runs(box)
            else:
                self.end(box, status)
        if not answer.done():
            answer.set_result(box if box.status is SandboxStatus.RUNNING else None)

    def find(self, name_or_id: str) -> ModelBox:
        """Raises AbsentError."""
        box = self.boxes.get(name_or_id) or self._names.get(name_or_id)
        if box is None:
            raise AbsentError
        return box

    def suspend(self, box: ModelBox) -> asyncio.Future[None]:
        if not box.exists or box.status is SandboxStatus.PENDING:
            raise RefusedError(409)
        if box.status is SandboxStatus.RUNNING:
            box.woken.clear()
            self._become(box, SandboxStatus.SUSPENDING)
            self._loop.after(self._manner.suspend, self._asleep, box)
        return self._settled(box, SandboxStatus.SUSPENDED)

    def resume(self, box: ModelBox) -> asyncio.Future[None]:
        if not box.exists or box.status is SandboxStatus.PENDING:
            raise RefusedError(409)
        if box.stuck:
            raise RefusedError(400)
        if box.status in (SandboxStatus.SUSPENDED, SandboxStatus.SUSPENDING):
            self._loop.after(self._manner.resume, self._awake, box)
        return self._settled(box, SandboxStatus.RUNNING)

    def rename(self, box: ModelBox, name: str) -> None:
        if not box.exists or (name in self._names and name != box.name):
            raise RefusedError(409)
        self._names.pop(box.name, None)
        self._note(box, f"renamed to {name}")
        box.name = name
        self._names[name] = box

    def end(self, box: ModelBox, status: SandboxStatus = SandboxStatus.TERMINATED) -> None:
        if box.status is SandboxStatus.TERMINATED:
            return
        self._become(box, status)
        for process in box.processes.values():
            self.cut(process)
        box.lock = box.desk = None
        if status is SandboxStatus.TERMINATED or not self._manner.failed_keeps_name:
            if self._manner.name_release and self._names.get(box.name) is box:
                self._loop.after(self._manner.name_release, self._free, box)
            else:
                self._free(box)

    def shown(self, box: ModelBox) -> SandboxStatus:
        """As a look-up tells it: for about a second an ended one reads as running under its name
        (docs/wire/tensorlake.md#4-statuses)."""
        ended = box.status is SandboxStatus.TERMINATED and self._names.get(box.name) is box
        return SandboxStatus.RUNNING if ended else box.status

    # Inside

    def reach(self, box: ModelBox) -> asyncio.Future[None] | None:
        """For traffic into it: None if it runs, else a future for when it does. Raises AbsentError, RefusedError."""
        if not box.exists:
            raise AbsentError
        box.active_at = self._loop.time()
        return None if box.status is SandboxStatus.RUNNING else self.resume(box)

    def start(self, box: ModelBox, spec: ProcessSpec) -> ModelProcess:
        """A name that is taken already is the same start once more."""
        if spec.name in box.processes:
            return box.processes[spec.name]
        process = ModelProcess(box, spec, f"p{next(self._serials)}")
        box.processes[spec.name] = process
        self._note(box, f"starts {process.serial}")
        process.task = self._loop.create_task(self._program(process))
        process.task.add_done_callback(lambda task: self._ended(process, task))
        return process

    def cut(self, process: ModelProcess) -> None:
        """As SIGKILL does: no further step of it."""
        if process.running:
            process.running = False
            process.heard.set()
            if process.box.lock is process:
                process.box.lock = process.box.desk = None
            if process.task is not None:
                process.task.cancel()
            self._note(process.box, f"{process.serial} is killed")

    def signal(self, process: ModelProcess, number: int) -> None:
        match number:
            case signal.SIGKILL:
                self.cut(process)
            case wire.GIVE_UP_SIGNAL:
                process.given_up = True
                if process.running and process.may_be_given_up and not process.stands_still:
                    self.cut(process)
                    process.exit_code = wire.Exit.GIVEN_UP
            case _:
                process.stop_asked.set()

    def _ended(self, process: ModelProcess, task: asyncio.Task[int]) -> None:
        if task.cancelled():
            if process.running:
                process.running = False
            return
        error = task.exception()
        if error is not None and process.running:
            self._loop.call_exception_handler({"message": "a program failed", "exception": error})
        if process.running:
            process.running = False
            process.heard.set()
            process.exit_code = None if error is not None else task.result()
            self._note(process.box, f"{process.serial} exits {process.exit_code}")

    # Transitions

    def _become(self, box: ModelBox, status: SandboxStatus) -> None:
        box.status, box.since = status, self._loop.time()
        self._note(box, status)
        waiting, box.settled = box.settled, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _runs(self, box: ModelBox) -> None:
        box.active_at = self._loop.time()
        box.route += 1
        self._become(box, SandboxStatus.RUNNING)
        box.woken.set()
        if self._manner.idle_timer and box.spec.timeout_seconds:
            self._loop.after(box.spec.timeout_seconds, self._idle, box, box.since)

    def _idle(self, box: ModelBox, since: float) -> None:
        if box.status is not SandboxStatus.RUNNING or box.since != since:
            return
        left = box.active_at + (box.spec.timeout_seconds or 0) - self._loop.time()
        if left > 0:
            self._loop.after(left, self._idle, box, since)
        else:
            self.suspend(box)

    def _asleep(self, box: ModelBox) -> None:
        if box.status is SandboxStatus.SUSPENDING:
            self._become(box, SandboxStatus.SUSPENDED)

    def _awake(self, box: ModelBox) -> None:
        if box.status is SandboxStatus.SUSPENDED:
            self._runs(box)
        elif box.status is SandboxStatus.SUSPENDING:
            self._loop.after(self._manner.suspend, self._awake, box)

    def _settled(self, box: ModelBox, status: SandboxStatus) -> asyncio.Future[None]:
        """Done at the wanted status, or when that cannot come any more."""
        answer: asyncio.Future[None] = self._loop.create_future()

        def look(_: object = None) -> None:
            if answer.done():
                return
            if box.status is status or not box.exists:
                answer.set_result(None)
                return
            change: asyncio.Future[None] = self._loop.create_future()
            change.add_done_callback(look)
            box.settled.append(change)

        look()
        return answer

    def _free(self, box: ModelBox) -> None:
        if self._names.get(box.name) is box:
            del self._names[box.name]

    def _note(self, box: ModelBox, what: str) -> None:
        if self._truth.tracing:
            self._truth.note(self._loop.time(), box.id, what)
