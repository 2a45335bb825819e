"""A worker as the sandbox runs it: the steps of image/session/worker in their order, in virtual time.

Lease and desk are the real ones, since they hold the rules that are easy to get wrong; what is written anew is what
waits (lock, gate, the SDK's beats and tool loop), because the real ones sleep in threads. Each step is a point where
a plan can kill the process, its sandbox, or its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import random
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from image.session import claim as wire
from image.session.claim import Claim, Ended, Exit, Notice, Word
from image.session.worker.call_notes import MOST_DEATHS
from image.session.worker.claim_registry import ClaimRegistry, ClaimReply
from image.session.worker.lease import Lease, Verdict
from shared.ports import ItemState, SandboxStatus
from tests.support.model.claude import ModelClaude, ModelItem, ModelPhase, ModelSession
from tests.support.model.lines import LostError, ModelLine, RefusedError
from tests.support.model.loop import VirtualLoop
from tests.support.model.sandboxes import ModelProcess
from tests.support.model.truth import Truth

CALL_SECONDS: Final = 5.0
_SDK: Final = importlib.metadata.version("anthropic")
_SEND_WINDOW: Final = 300.0
_ON_ITS_WAY: Final = 5.0  # seconds that an ack may take which saw the worker wait
_AGAIN: Final = 0.5


@dataclass(slots=True)
class Rules:
    """What the worker's own code decides, so that a mutant can leave a rule out."""

    lock: bool = True
    gate: bool = True


@dataclass(frozen=True, slots=True)
class Habits:
    """Of the workers of one session. Times in seconds."""

    start: float = 0.4
    load: float = 1.0
    tool: float = 0.5
    broken: bool = False  # ends before it is ready, as without its SDK


class Surroundings(Protocol):
    """What a worker needs of the run it is in."""

    claude: ModelClaude
    truth: Truth
    rules: Rules
    loop: VirtualLoop
    serving: dict[str, list[ModelProcess]]
    tool_runs: dict[str, list[ModelProcess]]

    def line(self, process: ModelProcess, session_id: str) -> ModelLine: ...

    def habits(self, session_id: str) -> Habits: ...

    def at(self, point: str, process: ModelProcess, session_id: str) -> Awaitable[None] | None:
        """Something of the plan's may happen here, and end the caller."""
        ...


async def worker(process: ModelProcess, around: Surroundings) -> int:
    """The program of every process: its claim comes in the environment, its end is the exit status."""
    if process.spec.args[-1] not in process.box.files:
        await process.sleep(0.05)
        return Exit.UNREADABLE
    claim = Claim.from_json(process.spec.env[wire.CLAIM_VARIABLE])
    return await _Worker(process, claim, around).run()


@dataclass(slots=True, eq=False)
class _Worker:
    process: ModelProcess
    claim: Claim
    around: Surroundings
    lease: Lease = field(default_factory=Lease)
    nudged: asyncio.Event = field(default_factory=asyncio.Event)
    over: Verdict | None = None  # of the lease, while serving
    line: ModelLine = field(init=False)
    desk: ClaimRegistry = field(init=False)
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.line = self.around.line(self.process, self.claim.session_id)
        self.chance = self.line.chance

    # The process

    async def run(self) -> int:
        try:
            end = await self._work()
        except Ended as ended:
            end = ended
        finally:
            self.line.dead = True
            if self.process.box.lock is self.process:
                self.process.box.lock = self.process.box.desk = None
        self._say(Word.ENDED, end.detail)
        return int(end.exit_status)

    async def _work(self) -> Ended:
        habits = self.around.habits(self.claim.session_id)
        self.process.may_be_given_up = True
        await self.process.sleep(habits.start * (0.5 + self.chance.random()))
        await self._at("started")
        if habits.broken:
            return Ended(Exit.FAILED, "the anthropic package is not installed here")
        box = self.process.box
        box.session = box.session or self.claim.session_id
        if box.session != self.claim.session_id:
            return Ended(Exit.BAD_CLAIM, "this sandbox belongs to another session")
        if self.around.rules.lock:
            await self._enter()
        await self._at("locked")
        self.desk = ClaimRegistry(self.claim, on_claim=lambda newer: self.nudged.set(), clock=self.around.loop.time)
        if self.around.rules.lock:
            box.desk = self.desk
        try:
            if self.process.given_up:
                raise Ended(Exit.GIVEN_UP, "before it was ready")
            self.process.may_be_given_up = False
            self._say(Word.READY, self._last_death())
            self.desk.announced(self.claim.gate)
            await self._at("ready")
            if self.around.rules.gate:
                await self._pass_gate()
            return await self._serve(habits)
        finally:
            self.desk.close()

    def _say(self, word: Word, detail: str = "", *, on_behalf: bool = False) -> None:
        digest = self.claim.worker_digest
        notice = Notice(
            word, self.claim.work_id, wire.PROTOCOL_VERSION, digest, _SDK, 1, detail, on_behalf, self.claim.nonce
        )
        self.process.says(notice.to_json())

    def _last_death(self) -> str:
        """As CallNotes has it."""
        box = self.process.box
        dead, box.at_work = box.at_work, None
        if dead is None or dead.in_hand is None:
            return ""
        box.deaths[dead.in_hand] = box.deaths.get(dead.in_hand, 0) + 1
        dead.told_of = True
        return f"{wire.LAST_DEATH}{dead.in_hand}"

    async def _at(self, point: str) -> None:
        happens = self.around.at(point, self.process, self.claim.session_id)
        if happens is not None:
            await happens

    async def _call(self, method: str, effect: Any, *, within: float = CALL_SECONDS) -> Any:
        """Raises LostError, also where the sandbox slept while the answer was on its way."""
        answer = await self.line.call(method, effect, within=within, about=self.claim.work_id)
        if self.process.box.status is not SandboxStatus.RUNNING:
            await self.process.awake()
            raise LostError("the connection did not outlive the sleep")
        return answer

    # Lock and gate, as entry.py and gate.py have them

    async def _enter(self) -> None:
        box, loop = self.process.box, self.around.loop
        deadline = loop.time() + self.claim.lock_wait
        pause, waiting = 0.02, False
        while box.lock is not None:
            if self.process.stop_asked.is_set():
                raise Ended(Exit.STOPPED, "asked to")
            await self.process.sleep(0.005)
            desk: ClaimRegistry | None = box.desk
            reply = desk.offer(self.claim) if desk is not None else None
            await self.process.sleep(0.005)
            match reply:
                case ClaimReply.TAKEN:
                    await self._at("passed")
                    self._say(Word.READY, on_behalf=True)
                    raise Ended(Exit.PASSED_ON, "the lock's holder has the claim now")
                case ClaimReply.LEASED | ClaimReply.OTHER if not waiting:
                    waiting = True
                    self._say(Word.WAITING, f"the lock's holder answers: {reply}")
            remaining = deadline - loop.time()
            if remaining <= 0:
                raise Ended(Exit.LOCKED_OUT, f"the lock's holder answers: {reply or 'nothing'}")
            await self.process.sleep(min(remaining, self.chance.uniform(pause / 2, pause)))
            pause = min(pause * 1.5, 0.25)
        box.lock = self.process

    async def _pass_gate(self) -> None:
        pause = 0.1
        while True:
            if self.process.stop_asked.is_set():
                raise Ended(Exit.STOPPED, "asked to")
            secret = self.desk.secret()
            match await self._beat():
                case Verdict.HELD:
                    self.desk.leased()
                    self._say(Word.LEASED)
                    await self._at("leased")
                    return
                case Verdict.OURS:
                    continue
                case Verdict.LOST:
                    self.desk.close()
                    raise Ended(Exit.LEASE_LOST, f"the item is {self.lease.state}")
                case Verdict.STOPPED:
                    self.desk.close()
                    if self.lease.state == "stopping":
                        with contextlib.suppress(LostError, RefusedError):  # one attempt
                            await self._call("stop", self._stop)
                    raise Ended(Exit.STOPPED, f"the item is {self.lease.state}")
                case Verdict.REFUSED:
                    if not self.desk.discard(secret):
                        raise Ended(Exit.REFUSED, "the service refuses the work item's credential")
                    continue
                case Verdict.NOT_ACKED | Verdict.DOUBTFUL:
                    if self.desk.give_up():
                        item = self.around.claude.items.get(self.claim.work_id)
                        if item is not None:
                            self.around.loop.after(_ON_ITS_WAY, self._left, item)
                        raise Ended(Exit.NEVER_ACKED, "asked in vain")
            try:
                async with asyncio.timeout(self.chance.uniform(0.75 * pause, pause)):
                    await self.nudged.wait()
                self.nudged.clear()
                pause = 0.1
            except TimeoutError:
                pause = min(pause * 1.3, 2.0)
            if self.process.box.status is not SandboxStatus.RUNNING:
                await self.process.awake()

    def _left(self, item: ModelItem) -> None:
        """Unheard for the whole time of the gate, or with an ack on its way that had seen the worker wait."""
        if item.state is ItemState.STARTING:
            item.excuse = "its worker gave up before the ack"

    async def _settled(self) -> Verdict:
        """As LeaseTransport: a beat, and once more where an earlier one of ours is found."""
        verdict = await self._beat()
        return await self._beat() if verdict is Verdict.OURS else verdict

    async def _beat_to_keep(self) -> Verdict:
        verdict = await self._settled()
        return await self._beat() if verdict is Verdict.ACKED_ANEW else verdict

    async def _beat(self) -> Verdict:
        expected, process = self.lease.sending(), self.process
        try:
            status, body = await self._call(
                "beat", lambda: self.around.claude.heartbeat(self.claim.work_id, expected, process.serial)
            )
        except LostError:
            return Verdict.DOUBTFUL
        except RefusedError as error:
            status, body = error.status, {}
        return self.lease.judge(status, json.dumps(body).encode())

    # Serving, as the SDK does under the lease-keeping transport

    async def _serve(self, habits: Habits) -> Ended:
        await self.process.sleep(habits.load * (0.5 + self.chance.random()))
        around, session_id = self.around, self.claim.session_id
        among = around.serving.setdefault(session_id, [])
        others = [
            other.serial
            for other in among
            if other.running and other.box.status is SandboxStatus.RUNNING and other is not self.process
        ]
        around.truth.check(
            "I3", not others, f"two workers serve one session: {session_id}, beside {others}", around.loop.time()
        )
        among.append(self.process)
        poke = asyncio.Event()
        beats = around.loop.create_task(self._keep_beating(poke))
        session: ModelSession | None = None
        try:
            await self._at("serving")
            self._leased_before("session call")
            session = await self._session()
            if session is not None and not session.over:
                session.watchers[poke] = None
                await self._run_tools(session, habits, poke)
        finally:
            beats.cancel()
            among.remove(self.process)
            if session is not None:
                session.watchers.pop(poke, None)
        return await self._end()

    async def _end(self) -> Ended:
        if self.over is Verdict.LOST:
            return Ended(Exit.LEASE_LOST, "a heartbeat met another state of the item")
        if self.over is Verdict.DOUBTFUL:
            return Ended(Exit.LEASE_LOST, "no heartbeat was answered for a whole lease")
        await self._at("stopping")
        for attempt in range(3):
            verdict = await self._settled()
            if verdict in (Verdict.LOST, Verdict.NOT_ACKED, Verdict.ACKED_ANEW):
                return Ended(Exit.LEASE_LOST, "the item was not ours any more at its end")
            if verdict is not Verdict.DOUBTFUL:
                try:
                    await self._call("stop", self._stop)
                    break
                except (LostError, RefusedError):
                    pass
            await self.process.sleep(_AGAIN * 2**attempt)
        await self._at("stopped")
        if self.over is Verdict.STOPPED:
            return Ended(Exit.STOPPED, "the item was stopped")
        return Ended(Exit.SERVED)

    def _stop(self) -> None:
        if self.claim.work_id in self.around.claude.items:
            self.around.claude.stop(self.claim.work_id, self.process.serial)

    async def _session(self) -> ModelSession | None:
        sessions = self.around.claude.sessions
        for attempt in range(9):
            try:
                found: ModelSession = await self._call("session", lambda: sessions[self.claim.session_id])
                return found
            except LostError:
                await self.process.sleep(min(_AGAIN * 2**attempt, 5.0))
            except RefusedError:
                return None
        # The SDK gives the item up and stops it, whatever calls wait (docs/wire/anthropic.md#44-when-it-ends): a turn
        # may be broken off.
        item = self.around.claude.items.get(self.claim.work_id)
        if item is not None and item.holder == self.process.serial:
            item.excuse = "its worker could not look at the session"
        return None

    async def _keep_beating(self, poke: asyncio.Event) -> None:
        loop = self.around.loop
        last = loop.time()
        while self.over is None:
            verdict = Verdict.DOUBTFUL
            for _ in range(3):
                verdict = await self._beat_to_keep()
                if verdict is not Verdict.DOUBTFUL:
                    break
                await self.process.sleep(_AGAIN)
            if verdict is Verdict.HELD:
                last = loop.time()
            elif verdict is not Verdict.DOUBTFUL or loop.time() - last >= self.lease.ttl:
                self.over = verdict
                poke.set()
                return
            await self.process.sleep(self.lease.interval)

    async def _run_tools(self, session: ModelSession, habits: Habits, poke: asyncio.Event) -> None:
        """Until the lease is over, the session is, or it has been idle for long. A tool under way is finished and
        its result posted, whatever happens to the lease meanwhile (docs/wire/anthropic.md#44-when-it-ends)."""
        handled: set[str] = set()
        idle_since = self.around.loop.time()
        while self.over is None and not session.over and not self.process.stop_asked.is_set():
            poke.clear()
            waiting = [call for call in session.open_calls if call not in handled]
            if waiting:
                handled.add(waiting[0])
                await self._run_tool(session, waiting[0], habits)
                idle_since = self.around.loop.time()
                continue
            if session.phase is not ModelPhase.AT_REST:
                idle_since = self.around.loop.time()
            left = idle_since + (self.claim.max_idle or 1e9) - self.around.loop.time()
            if left <= 0:
                await self._at("idle")
                return
            try:
                async with asyncio.timeout(left):
                    await poke.wait()
            except TimeoutError:
                pass
            if self.process.box.status is not SandboxStatus.RUNNING:
                await self.process.awake()

    async def _run_tool(self, session: ModelSession, call: str, habits: Habits) -> None:
        around, box = self.around, self.process.box
        self._leased_before("tool run")
        if box.deaths.get(call, 0) < MOST_DEATHS:
            self.process.in_hand, box.at_work = call, self.process
            await self._really_run_tool(call, habits)
            self.process.in_hand = box.at_work = None
            await self._at("tool done")
        began = around.loop.time()
        while around.loop.time() - began < _SEND_WINDOW:
            try:
                await self._call("result", lambda: around.claude.result(session.id, call))
                break
            except LostError:
                await self.process.sleep(_AGAIN)
            except RefusedError:
                break
        await self._at("posted")

    async def _really_run_tool(self, call: str, habits: Habits) -> None:
        around = self.around
        earlier = around.tool_runs.setdefault(call, [])
        unfinished = [other.serial for other in earlier if other.running or other.exit_code is not None]
        around.truth.check(
            "I3", not unfinished, f"a tool ran twice, nobody having died: {call}, {unfinished}", around.loop.time()
        )
        earlier.append(self.process)
        await self._at("tool")
        await self.process.sleep(habits.tool * (0.5 + self.chance.random()))

    def _leased_before(self, what: str) -> None:
        around, serial = self.around, self.process.serial
        around.truth.check(
            "I3",
            serial in around.claude.granted,
            f"{what} before the first granted heartbeat: {serial}",
            around.loop.time(),
        )
