"""One run of a plan, and the judgement on how it ended (docs/architecture.md#rules: I1, I4, I7)."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from unittest.mock import patch

from image.session.archive import build_archive, digest
from image.session.claim import worker_path
from shared import names
from shared.claims import dispatcher as dispatcher_module
from shared.environment_settings import Environment
from shared.ports import SandboxSpec, SandboxStatus
from tests.faults.explorer.explored_copy import ExploredCopy
from tests.faults.explorer.plan import CHAOS, RunPlan, What
from tests.faults.explorer.scaled_settings import ENVIRONMENT, LEASE, pool_of, settings_of
from tests.faults.explorer.watch import GIVEN_UP, RunWatch
from tests.support.model.claude import ModelClaude, ModelPhase, ModelSession
from tests.support.model.lines import Meets, ModelLine, forever
from tests.support.model.loop import VirtualLoop, unlisted
from tests.support.model.ports import moment
from tests.support.model.sandboxes import ModelBox, ModelProcess, ModelSandboxes
from tests.support.model.truth import Truth, Violation
from tests.support.model.worker import Habits, Rules, worker

TICK: Final = 20.0  # seconds between two ticks once the dust settles
TICKS: Final = 64  # so many at most until everything is well
MOST_STEPS: Final = 200_000


@dataclass(frozen=True, slots=True)
class RunResult:
    """`ticks`: how many it took until everything was well, after the last fault."""

    violations: tuple[Violation, ...]
    checks: Counter[str]
    trace: tuple[tuple[float, str, str], ...]
    seconds: float
    ticks: int


def run(plan: RunPlan, loop: VirtualLoop, *, rules: Rules | None = None, tracing: bool = False) -> RunResult:
    """Plays the plan. What the product raises counts as a violation."""
    random.seed(plan.seed)  # the pauses' jitter
    world = ExploredWorld(plan, loop, rules or Rules(), tracing)
    try:
        loop.run(world.play(), most_steps=MOST_STEPS)
    except Exception as error:
        world.truth.check("I7", False, f"the run ends in {type(error).__name__}: {error}", loop.time())
    truth, ticks = world.truth, world.ticks
    world.forget()
    return RunResult(tuple(truth.violations), truth.checks, tuple(truth.trace), loop.time(), ticks)


@contextmanager
def prepared() -> Iterator[VirtualLoop]:
    """A loop for many runs; the product's logs are off, and the worker's digest is computed once."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        with unlisted(), patch.object(dispatcher_module, "digest", functools.cache(digest)):
            yield loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        logging.disable(before)


class ExploredWorld:
    """The run's state: both services, the copies, and what is still to go wrong."""

    def __init__(self, plan: RunPlan, loop: VirtualLoop, rules: Rules, tracing: bool) -> None:
        self.plan = plan
        self.loop: VirtualLoop = loop
        self.rules = rules
        self.truth = Truth(tracing=tracing)
        self.settings = settings_of(eager=plan.eager, resume_suspended=plan.resume_suspended, pooled=plan.pooled)
        self.environment: Environment = self.settings.environments[ENVIRONMENT]
        self.claude = ModelClaude(loop, self.truth, lease=LEASE)
        self.sandboxes = ModelSandboxes(loop, self.truth, plan.manner, self._program, self._boot)
        self.sandboxes.pool = pool_of(self.environment) if plan.pooled else None
        self.sessions = [names.sandbox_name(self.settings.prefix, ENVIRONMENT, session.id) for session in plan.sessions]
        session_of = {name: session.id for name, session in zip(self.sessions, plan.sessions, strict=True)}
        self.watch = RunWatch(self.settings, self.claude, self.sandboxes, self.truth, session_of)
        self.serving: dict[str, list[ModelProcess]] = {}
        self.tool_runs: dict[str, list[ModelProcess]] = {}
        # the latest report says that every session is unknown: nothing is ended then (docs/reconciler.md#limits)
        self.alarmed = False
        self.ticks = 0
        self._index = {session.id: index for index, session in enumerate(plan.sessions)}
        self._faults = {(f.caller, f.method, f.number): f.meets for f in plan.line_faults}
        self._points = {(f.session, f.point, f.number): f.what for f in plan.point_faults}
        self._hooks = {fault.number: fault.delays for fault in plan.hook_faults}
        self._boots = {fault.number: fault for fault in plan.boot_faults}
        self._passed: Counter[tuple[int, str]] = Counter()
        self._hook = 0
        self._chance = random.Random(f"{plan.seed} world")
        self.copies = [ExploredCopy(self, index) for index in range(plan.copies)]
        self.claude.on_run = self._session_runs
        self.claude.on_over = self._session_over

    def forget(self) -> None:
        """Cut what goes round in circles, which else only the collector finds."""
        for box in self.sandboxes.boxes.values():
            for process in box.processes.values():
                process.task = None
            box.processes.clear()
            box.lock = box.desk = None
        for copy in self.copies:
            copy.drains.clear()
            copy.tasks.clear()
        vars(self.sandboxes).clear()
        vars(self.claude).clear()
        vars(self).clear()

    # What the model asks for

    def now(self) -> datetime:
        return moment(self.loop.time())

    def note(self, who: str, what: str) -> None:
        self.truth.note(self.loop.time(), who, what)

    def judge(self, rule: str, holds: bool, what: str) -> None:
        self.truth.check(rule, holds, what, self.loop.time())

    def new_line(self, caller: str, serial: str, on_crash: Callable[[], None] = lambda: None) -> ModelLine:
        return ModelLine(
            caller,
            self.loop,
            self._faults,
            random.Random(f"{self.plan.seed} {caller} {serial}"),
            self.plan.slow,
            self.note,
            on_crash,
        )

    def line(self, process: ModelProcess, session_id: str) -> ModelLine:
        return self.new_line(f"w{self._index[session_id]}", process.serial)

    def habits(self, session_id: str) -> Habits:
        return self.plan.sessions[self._index[session_id]].habits

    def at(self, point: str, process: ModelProcess, session_id: str) -> Awaitable[None] | None:
        index = self._index[session_id]
        if self.truth.tracing:
            self.note(process.serial, f"{point} ({session_id}, {process.box.id})")
        if not self._points:
            return None
        number = self._passed[index, point]
        self._passed[index, point] += 1
        what = self._points.pop((index, point, number), None)
        return None if what is None else self._struck(what, process, session_id)

    async def _struck(self, what: What, process: ModelProcess, session_id: str) -> None:
        self._strike(what, session_id, process)
        if not process.running or process.stands_still:
            await forever()
        await process.awake()

    def _program(self, process: ModelProcess) -> Coroutine[Any, Any, int]:
        return worker(process, self)

    def _boot(self, spec: SandboxSpec, number: int) -> tuple[float, SandboxStatus]:
        box = self.sandboxes.boxes[f"box{number}"]
        if self.plan.manner.worker_on_board:
            box.files[_worker_file()] = b""
        fault = self._boots.pop(number, None)
        if fault is None:
            return self.plan.manner.boot, SandboxStatus.RUNNING
        self.note(box.id, f"will be {fault.becomes} after {fault.seconds:g} s")
        return fault.seconds, fault.becomes

    def _session_runs(self, session: ModelSession) -> None:
        self._deliver(lambda copy: copy.wake())

    def _session_over(self, session: ModelSession) -> None:
        self.note("user", f"{session.id} is {session.over}")
        self._deliver(lambda copy: copy.session_over(session.id))

    def _deliver(self, what: Callable[[ExploredCopy], None]) -> None:
        delays = self._hooks.pop(self._hook, (0.1,))
        self._hook += 1
        for delay in delays:
            self.loop.after(delay, lambda: what(self._chance.choice(self.copies)))

    # What goes wrong

    def _strike(self, what: What, session_id: str, process: ModelProcess | None = None) -> None:
        box = process.box if process is not None else self._box_of(session_id)
        if box is None or not box.exists or box.status is SandboxStatus.PENDING:
            return
        self.note("fate", f"{what} {session_id} in {box.id}")
        match what:
            case "kill":
                for victim in [process] if process is not None else list(box.processes.values()):
                    if victim.running:
                        self.claude.lose_worker(session_id, what)
                        self.sandboxes.cut(victim)
            case "freeze":
                if process is not None:
                    process.stands_still = True
            case "end":
                self.claude.lose_worker(session_id, what)
                self.sandboxes.end(box)
            case "fail":
                self.claude.lose_worker(session_id, what)
                self.sandboxes.end(box, SandboxStatus.FAILED)
            case "suspend":
                self.sandboxes.suspend(box)
            case "stuck":
                self.claude.lose_worker(session_id, what)
                for victim in box.processes.values():  # its memory cannot be had again
                    self.sandboxes.cut(victim)
                box.stuck = True
                self.sandboxes.suspend(box)
            case "expire":
                self.claude.expire(session_id)
            case "stop":
                self.claude.ask_to_stop(session_id)
            case "outage":
                for number in range(40):
                    self._faults.setdefault((f"w{self._index[session_id]}", "beat", number), Meets.LOST_REQUEST)
                self.loop.after(60.0, self._outage_ends, self._index[session_id])

    def _outage_ends(self, index: int) -> None:
        for number in range(40):
            self._faults.pop((f"w{index}", "beat", number), None)

    def _box_of(self, session_id: str) -> ModelBox | None:
        name = self.sessions[self._index[session_id]]
        return next((box for box in self.sandboxes.boxes.values() if box.exists and box.name == name), None)

    # The run

    async def play(self) -> None:
        plan, loop = self.plan, self.loop
        for session in plan.sessions:
            (first, turn), *later = session.turns
            loop.call_at(first, self.claude.open, session.id, turn, session.think)
            for at, turn in later:
                loop.call_at(at, self._say, session.id, turn)
            if session.ends is not None:
                loop.call_at(session.ends[0], self._end, session.id, session.ends[1])
        for at in plan.healthchecks:
            loop.call_at(at, self.claude.enqueue_healthcheck)
        for wake in plan.wakes:
            loop.call_at(wake.at, self._tick_of, wake.copy)
        for crash in plan.crashes:
            loop.call_at(crash.at, self._crash_of, crash.copy)
        for quota in plan.quotas:
            loop.call_at(quota.at, self._fill, quota.seconds)
        for fault in plan.timed_faults:
            loop.call_at(fault.at, self._strike, fault.what, plan.sessions[fault.session].id)
        await asyncio.sleep(CHAOS + 15.0)
        self._faults.clear()
        self._points.clear()
        self._hooks.clear()
        self._boots.clear()
        self.sandboxes.full_until = 0.0
        self.note("fate", "the dust settles")
        for number in range(TICKS):
            self.ticks = number
            if self._well() and number >= 1:
                break
            self._tick_of(number)
            await asyncio.sleep(TICK)
        self._judge_end()
        if not plan.eager and not self.truth.violations:
            await self.copies[0].idles()
        if plan.retire and not self.truth.violations:
            await self._retire()

    def _say(self, session_id: str, turn: tuple[int, ...]) -> None:
        self.note("user", f"says something to {session_id}")
        self.claude.say(self.claude.sessions[session_id], turn)

    def _end(self, session_id: str, how: str) -> None:
        """A running session cannot be ended: try again later."""
        session = self.claude.sessions[session_id]
        ended = self.claude.archive(session) if how == "archived" else self.claude.delete(session)
        if not ended and not session.over:
            self.loop.after(3.0, self._end, session_id, how)

    def _fill(self, seconds: float) -> None:
        self.note("fate", f"no room for another sandbox for {seconds:.0f} s")
        self.sandboxes.full_until = self.loop.time() + seconds
        before = self.sandboxes.turned_away
        self.loop.after(seconds, self._judge_full, before, seconds)

    def _judge_full(self, before: int, seconds: float) -> None:
        """Each process asks again with growing pauses for all of its items; what was under way comes on top."""
        made = self.sandboxes.turned_away - before
        most = len(self.sessions) + (len(self.copies) + len(self.plan.crashes)) * (8 + seconds / 20)
        self.judge("I9", made <= most, f"a full quota is hammered: {made} creates in {seconds:.0f} s")

    def _tick_of(self, number: int) -> None:
        self.copies[number % len(self.copies)].tick()

    def _crash_of(self, number: int) -> None:
        if not self.copies[number].line.dead:
            self.copies[number].crash()

    def _well(self) -> bool:
        return not any(self._troubles())

    def _troubles(self) -> Iterator[tuple[str, str]]:
        for session in self.claude.sessions.values():
            if not session.over and (session.phase is not ModelPhase.AT_REST or session.inbox):
                yield "I1", f"a turn is not finished: {session.id}, {session.phase.name}"
        for item in self.claude.items.values():
            if item.live and not (item.stale and item.state == "queued"):
                yield "I1", f"an item is left: {item.id} of {item.session_id}, {item.state}"
        all_unknown = self.alarmed and all(session.over == "deleted" for session in self.claude.sessions.values())
        for box in self.sandboxes.boxes.values() if not all_unknown else ():
            session_id, gone = self.watch.session_of(box)
            if self.watch.is_kept(box):
                continue
            if not box.exists and box.status is not SandboxStatus.FAILED:
                continue
            over = session_id is None or self.claude.sessions[session_id].over is not None
            if over or gone or box.status is not SandboxStatus.SUSPENDED:
                yield "I4", f"a sandbox is left: {box.id}, {box.status}"

    def _judge_end(self) -> None:
        troubles = list(self._troubles())
        for rule in ("I1", "I4"):
            mine = [what for of, what in troubles if of == rule]
            self.judge(rule, not mine, mine[0] if mine else "")
        for broken in self.claude.broken_off:
            needless = not broken.excuse and not broken.session.over
            self.judge(
                "I1", not needless, f"a turn is broken off that had a worker: {broken.session.id}, {broken.turn}"
            )
            silent = broken.excuse == GIVEN_UP and not broken.told and broken.session.id not in self.watch.unheard
            self.judge("I1", not silent, f"an agent is not told that its work was given up: {broken.session.id}")
        for session in self.claude.sessions.values():
            if not session.over:
                self.judge("I1", session.done == session.said, f"a message has no answer: {session.id}")
        if self.plan.copies > 1:
            self.judge("I8", not troubles, f"{self.plan.copies} copies leave work undone")

    async def _retire(self) -> None:
        """Sleeping sandboxes are ended once they are past their retention, in two steps."""
        await asyncio.sleep(self.settings.reconcile.retention + 10.0)
        for number in range(6 + len(self.sessions) // 2):  # a few are looked up and a few may end in one tick
            if not self._left():
                break
            self._tick_of(number)
            await asyncio.sleep(TICK)
        left = self._left()
        self.judge("I4", self.alarmed or not left, f"a sandbox outlives its retention: {left}")

    def _left(self) -> list[str]:
        return [box.id for box in self.sandboxes.boxes.values() if box.exists and not self.watch.is_kept(box)]


@functools.cache
def _worker_file() -> str:
    return worker_path(digest(build_archive()))
