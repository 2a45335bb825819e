"""An environment with a crowd in it: thousands of sandboxes and live items, many copies, a working load, virtual time.

The functions and the workers that are started are the explorer's; the sessions that are at work for the whole time beat
by the minute, all of them in one step, since a beat of each would be most of a run and tell nothing of the functions.
"""

from __future__ import annotations

import asyncio
import gc
import random
import re
from collections import Counter
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from image.session.archive import build_archive, digest
from image.session.claim import worker_path
from shared import names
from shared.claims.capacity import Capacity
from shared.claims.claimer import Claimer
from shared.claims.dispatcher import Dispatcher
from shared.claims.known_sandboxes import KnownSandboxes
from shared.ports import SandboxSpec, SandboxStatus
from shared.reconcile.reconciler import Reconciler
from shared.settings import Settings
from tests.support.model.claude import ModelClaude, ModelPhase, ModelSession
from tests.support.model.lines import ModelLine
from tests.support.model.loop import VirtualLoop
from tests.support.model.ports import ModelHost, ModelQueue, moment
from tests.support.model.sandboxes import Manner, ModelBox, ModelProcess, ModelSandboxes
from tests.support.model.truth import Truth
from tests.support.model.worker import Habits, Rules, worker

ENVIRONMENT: Final = "env_01Crowded"
PAGE: Final = 100  # rows: of a list of work items or of sandboxes
LATE: Final = 300.0  # seconds; an item that waits for longer is starved
_MINUTE: Final = 60.0
_OF_CLAUDE: Final = frozenset(
    {"poll", "ack", "force_stop", "list_items", "session", "open_calls", "give_up_calls", "interrupt"}
)


@dataclass(frozen=True, slots=True)
class Size:
    """sandboxes: of which `live` have an item at work all the time, the others sleep. turns: of sleepers, a minute."""

    sandboxes: int
    live: int
    copies: int
    seconds: float
    turns: float


@dataclass(slots=True)
class CrowdFigures:
    """calls: by service, for each minute. waits: seconds from queued to handed over. late: starved items."""

    calls: dict[str, list[int]] = field(default_factory=lambda: {"Claude": [], "Tensorlake": []})
    waits: list[float] = field(default_factory=list)
    tick_calls: list[int] = field(default_factory=list)
    late: int = 0
    put_to_sleep: int = 0  # live sessions whose sandbox was found asleep, summed over the minutes
    turns: int = 0
    alarms: Counter[str] = field(default_factory=Counter)


def settings() -> Settings:
    """The product's own defaults, whatever the size."""
    return Settings.from_environ(
        {
            "ANTHROPIC_ENVIRONMENT_ID": ENVIRONMENT,
            "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
            "TENSORLAKE_API_KEY": "no-key",
        }
    )


class Crowd:
    """Plays `size` on a VirtualLoop. It is what a worker needs around it, too."""

    def __init__(self, size: Size, loop: VirtualLoop, seed: str = "1") -> None:
        self.size = size
        self.loop = loop
        self.truth = Truth()
        self.rules = Rules()
        self.settings = settings()
        self.claude = ModelClaude(loop, self.truth, lease=300.0)
        self.sandboxes = ModelSandboxes(loop, self.truth, Manner(), self._program)
        self.serving: dict[str, list[ModelProcess]] = {}
        self.tool_runs: dict[str, list[ModelProcess]] = {}
        self.figures = CrowdFigures()
        self._chance = random.Random(seed)
        self._counts: Counter[str] = Counter()
        self._worker_file = worker_path(digest(build_archive()))
        self._copies = [_CrowdCopy(self, index) for index in range(size.copies)]
        self._names = [f"sesn_Crowd{number}" for number in range(size.sandboxes)]
        self._busy: list[str] = []
        self._at_work: list[ModelBox] = []
        self._late: set[str] = set()
        self.claude.on_run = self._runs

    # What a worker asks for

    def line(self, process: ModelProcess, session_id: str) -> ModelLine:
        return ModelLine(session_id, self.loop, {}, random.Random(process.serial), 1.0, lambda who, what: None)

    def habits(self, session_id: str) -> Habits:
        return Habits()

    def at(self, point: str, process: ModelProcess, session_id: str) -> Awaitable[None] | None:
        return None

    # The run

    async def play(self) -> CrowdFigures:
        self._fill()
        gc.collect()
        gc.freeze()  # they stay to the end: nothing is found among them
        minutes = int(self.size.seconds / _MINUTE)
        for minute in range(minutes):
            self._beat()
            for _ in range(self._due(self.size.turns)):
                self.loop.after(_MINUTE * self._chance.random(), self._speak)
            self._copies[minute % len(self._copies)].tick()
            await asyncio.sleep(_MINUTE)
            self._count()
        for item in self.claude.items.values():
            if item.session_id not in self._busy and item.acked_at is not None:
                self.figures.waits.append(item.acked_at - item.created_at)
        return self.figures

    def now(self) -> datetime:
        return moment(self.loop.time())

    def calls(self, method: str, count: int = 1) -> None:
        self._counts["Claude" if method in _OF_CLAUDE else "Tensorlake"] += count

    def pages(self) -> int:
        return -(-len(self.sandboxes.boxes) // PAGE)

    def copy(self) -> _CrowdCopy:
        return self._chance.choice(self._copies)

    def _due(self, mean: float) -> int:
        return int(mean) + (self._chance.random() < mean % 1)

    def _fill(self) -> None:
        environment = self.settings.environments[ENVIRONMENT]
        now = self.loop.time()
        for number, session_id in enumerate(self._names):
            name = names.sandbox_name(self.settings.prefix, ENVIRONMENT, session_id)
            box = self.sandboxes.place(SandboxSpec(name=name, timeout_seconds=environment.timeout_seconds))
            box.files[self._worker_file] = b""
            session = self.claude.sessions[session_id] = ModelSession(session_id, now)
            if number < self.size.live:
                self._busy.append(session_id)
                self._at_work.append(box)
                session.phase = ModelPhase.THINKING
                self.claude.place(session_id)
            else:
                self.sandboxes.sleep(box)
        self._beat()

    def _beat(self) -> None:
        now = self.loop.time()
        for session_id in self._busy:
            item = self.claude.live_of(session_id)
            if item is not None:
                item.beat_at = now

    def _speak(self) -> None:
        session = self.claude.sessions[self._names[self._chance.randrange(self.size.live, self.size.sandboxes)]]
        self.figures.turns += 1
        self.claude.say(session, (1,))

    def _runs(self, session: ModelSession) -> None:
        self.loop.after(0.1, self.copy().wake)

    def _count(self) -> None:
        self.figures.put_to_sleep += sum(box.status is not SandboxStatus.RUNNING for box in self._at_work)
        for service, counts in self.figures.calls.items():
            counts.append(self._counts[service])
        self._counts.clear()
        now = self.loop.time()
        waiting = (item for item in self.claude.waiting() if now - item.created_at > LATE)
        self._late.update(item.id for item in waiting)
        self.figures.late = len(self._late)

    def _program(self, process: ModelProcess) -> Coroutine[Any, Any, int]:
        return worker(process, self)


class _CrowdCopy:
    """One process of the functions."""

    def __init__(self, crowd: Crowd, index: int) -> None:
        self._crowd = crowd
        self._index = index
        self.line = _CountingLine(
            f"c{index}", crowd.loop, {}, random.Random(index), 1.0, lambda who, what: None, crowd=crowd
        )
        room, known = Capacity(ENVIRONMENT, crowd.loop.time), KnownSandboxes(crowd.loop.time)
        self._claimer = Claimer(lambda: self._dispatcher(room, known))
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        self._claimer.wake()

    def tick(self) -> None:
        self._claimer.wake()
        task = self._crowd.loop.create_task(self._reconcile())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reconcile(self) -> None:
        crowd = self._crowd
        queue, host = self._services()
        environment = crowd.settings.environments[ENVIRONMENT]
        place = self._index / crowd.size.copies
        before = self.line.counted
        report = await Reconciler(
            crowd.settings, environment, queue, host, crowd.loop.time, crowd.now, place
        ).reconcile()
        crowd.figures.tick_calls.append(self.line.counted - before)
        crowd.figures.alarms.update(re.sub(r"\d+", "N", alarm.split(":")[0]) for alarm in report.alarms)

    def _dispatcher(self, room: Capacity, known: KnownSandboxes) -> Dispatcher:
        crowd = self._crowd
        queue, host = self._services()
        environment = crowd.settings.environments[ENVIRONMENT]
        return Dispatcher(crowd.settings, environment, queue, host, crowd.loop.time, crowd.now, room, known)

    def _services(self) -> tuple[ModelQueue, ModelHost]:
        crowd, times = self._crowd, self._crowd.settings.times
        queue = ModelQueue(crowd.claude, self.line, reclaim=times.reclaim, environment_id=ENVIRONMENT)
        return queue, ModelHost(crowd.sandboxes, self.line, bind=times.bind)


class _CountingLine(ModelLine):
    """Counts requests as the wire has them: one for each page of a list."""

    def __init__(self, *args: Any, crowd: Crowd) -> None:
        super().__init__(*args)
        self._crowd = crowd
        self.counted = 0

    async def call(self, method: str, effect: Any, *, within: float, about: str = "") -> Any:
        result = await super().call(method, effect, within=within, about=about)
        count = 1
        if method == "list_sandboxes":
            count = self._crowd.pages()
        elif method == "list_items" and hasattr(result, "rows"):
            count = max(1, -(-len(result.rows) // PAGE))
        self.counted += count
        self._crowd.calls(method, count)
        return result
