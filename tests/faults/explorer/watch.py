"""What the product asks of the services, judged at the moment when it asks (docs/architecture.md#rules: I2, I5, I7)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from image.session.claim import Exit
from shared import names
from shared.adapters.call_budget import Holds
from shared.claims.claimer import ROUND_SECONDS
from shared.claims.worker_process import attempt_prefix
from shared.ports import (
    Absent,
    AckOutcome,
    Doubtful,
    OpenCalls,
    PollOutcome,
    ProcessSpec,
    Refused,
    SandboxStatus,
    Throttled,
    WorkItem,
)
from shared.settings import Settings
from tests.support.model.claude import ModelClaude, ModelItem
from tests.support.model.lines import ModelLine
from tests.support.model.ports import ModelHost, ModelQueue, moment
from tests.support.model.sandboxes import ModelBox, ModelProcess, ModelSandboxes
from tests.support.model.truth import Truth

WIND_DOWN: Final = 240.0  # seconds that a worker has for its last tool
REFUSALS: Final = 4  # of a resume, until it is taken for the service's last word
_QUICK: Final = 0.25  # seconds; a poll that meets nothing takes at most 0.11
DEATHS: Final = (None, Exit.FAILED, Exit.BAD_CLAIM, Exit.HUNG)  # how workers end that nobody asked to; None: killed
_NO_ANSWER: Final = (Doubtful, Refused)  # as tuples: a union would be made anew at each call
_NO_POLL: Final = (Doubtful, Refused, Throttled)
GIVEN_UP: Final = "it was given up"
LOOK: Final = 5.0  # seconds: no look that a suspension or an end rests on is older (docs/architecture.md#i5)


@dataclass(slots=True, eq=False)
class RunWatch:
    """The whole truth about one run, and the judgements on what a copy is about to do."""

    settings: Settings
    claude: ModelClaude
    sandboxes: ModelSandboxes
    truth: Truth
    sessions: dict[str, str]  # by the proper name of their sandbox
    marked: dict[str, float] = field(default_factory=dict)  # by sandbox: when its first mark was decided
    unheard: set[str] = field(default_factory=set)  # sessions of which the service has refused error results
    refusals: Counter[str] = field(default_factory=Counter)  # by sandbox: resumes that a copy was told no for

    def now(self) -> float:
        return self.claude.time()

    def session_of(self, box: ModelBox) -> tuple[str | None, bool]:
        """The session, and whether the sandbox is marked for its end."""
        parsed = names.parse(self.settings.prefix, box.name)
        if isinstance(parsed, names.GoneSandbox):
            return self.sessions.get(parsed.proper), True
        return self.sessions.get(box.name), False

    def working(self, session_id: str, box: ModelBox | None = None) -> list[ModelProcess]:
        """Workers of a session that live and are not frozen."""
        boxes = self.sandboxes.boxes.values() if box is None else [box]
        return [
            process
            for each in boxes
            if each.status is SandboxStatus.RUNNING and self.session_of(each)[0] == session_id
            for process in each.processes.values()
            if process.running
        ]

    def old_item(self, session_id: str) -> ModelItem | None:
        """The session's item, if it was queued, starting or active at every look that may still be relied on."""
        item = self.claude.live_item(session_id)
        if item is None or item.stale or item.created_at >= self.now() - LOOK:
            return None  # nobody ever gets the item of a deleted session
        return item

    def judge(self, rule: str, holds: bool, what: str) -> None:
        self.truth.check(rule, holds, what, self.now())

    def suspends(self, box: ModelBox) -> None:
        session_id, _ = self.session_of(box)
        if session_id is not None:
            item = self.old_item(session_id)
            self.judge("I5", item is None, f"a sandbox is suspended whose item lives: {box.id}, {item and item.state}")

    def is_kept(self, box: ModelBox) -> bool:
        return isinstance(names.parse(self.settings.prefix, box.name), names.KeptSandbox)

    def marks(self, box: ModelBox, name: str) -> None:
        session_id, gone = self.session_of(box)
        if isinstance(names.parse(self.settings.prefix, name), names.KeptSandbox):
            refused = self.refusals[box.id]
            self.judge(
                "I5", refused >= REFUSALS, f"a sandbox is set aside that may yet be resumed: {box.id}, {refused}"
            )
            for process in box.processes.values():  # asleep for good: nobody wakes what is kept
                self.sandboxes.cut(process)
            if session_id is not None:
                self.claude.lose_worker(session_id, "its sandbox was set aside")
            return
        if session_id is None or gone or name == box.name:
            return  # a mark is taken back, perhaps by two copies
        item = None if self.claude.sessions[session_id].over else self.old_item(session_id)
        self.judge("I5", item is None, f"a sandbox is marked whose item lives: {box.id}, {item and item.state}")
        self.judge("I4", self._over(session_id, box), f"a sandbox is marked without a reason: {box.id}")
        mark = names.parse(self.settings.prefix, name)  # it tells when it was decided: a rename may take long to arrive
        if isinstance(mark, names.GoneSandbox):
            self.marked[box.id] = mark.marked_at

    def ends(self, box: ModelBox, *, dispatcher: bool) -> None:
        session_id, gone = self.session_of(box)
        failed = box.status in (SandboxStatus.FAILED, SandboxStatus.TIMEOUT)
        if session_id is None or failed or not box.exists:
            return
        if dispatcher:
            unwanted = not self.settings.resume_suspended and (
                box.status is not SandboxStatus.RUNNING or box.since > self.now() - LOOK
            )
            self.judge("I5", unwanted, f"a sandbox is ended by a claim: {box.id}, {box.status}")
            return
        self.judge("I5", gone, f"a sandbox is ended without a mark: {box.id}")
        working = [process.serial for process in self.working(session_id, box)]
        idle = not working or self.claude.sessions[session_id].over or self.claude.live_item(session_id) is None
        self.judge("I5", bool(idle), f"a sandbox is ended with a worker in it: {box.id}, {working}")
        holder = any(
            other is not box
            and (other.exists or other.since > self.now() - LOOK)
            and self.session_of(other) == (session_id, False)
            for other in self.sandboxes.boxes.values()
        )
        item = None if self.claude.sessions[session_id].over else self.old_item(session_id)
        self.judge("I5", holder or item is None, f"a session's only sandbox is ended though its item lives: {box.id}")
        now = moment(self.now()).timestamp()
        age = now - self.marked.get(box.id, now)
        early = age < self.settings.reconcile.end_grace - 1.0
        self.judge("I5", not early, f"a sandbox is ended too soon after its mark: {box.id}")

    def _over(self, session_id: str, box: ModelBox) -> bool:
        """Is there a reason for the session's sandbox to go, or was there at a look that may still be relied on?"""
        session = self.claude.sessions[session_id]
        if session.updated_at > self.now() - LOOK:
            return True
        slept = self.now() - max(session.updated_at, box.created_at)
        return session.over is not None or slept > self.settings.reconcile.retention - LOOK

    def stops(self, work_id: str, *, dispatcher: bool) -> None:
        item = self.claude.items.get(work_id)
        if item is None or item.kind != "session" or item.stopped_at is not None:
            return
        if dispatcher:
            self._gives_up(item)
            return
        working = [process.serial for process in self.working(item.session_id)]
        self.judge("I5", not working, f"an item is released that has a worker: {work_id}, {working}")
        if item.stop_asked_at is not None:
            asked = self.now() - item.stop_asked_at
            self.judge("I5", asked > WIND_DOWN - LOOK, f"an item is stopped that was just asked to: {work_id}")
            return
        young = item.acked_at is None or item.acked_at > self.now() - self.settings.times.stranded + LOOK
        self.judge("I5", not young, f"an item is released that is not stranded: {work_id}, {item.state}")
        beaten = item.beat_at is not None and item.beat_at < self.now() - LOOK
        self.judge("I5", not beaten, f"an item is released that has a lease: {work_id}")

    def _gives_up(self, item: ModelItem) -> None:
        """Right only where enough of its workers died in one sandbox, of nothing that has a bound of its own and by
        nobody's order, and none lives."""
        work = WorkItem(item.id, "", item.kind, item.session_id, moment(item.created_at), None)
        most, living = 0, False
        for box in self.sandboxes.boxes.values():
            own = [each for each in box.processes.values() if each.spec.name.startswith(attempt_prefix(work))]
            living = living or (box.exists and any(process.running for process in own))
            counted = [each for each in own if not each.running and each.exit_code in DEATHS and not each.told_of]
            if counted and counted[-1] is own[-1] and counted[-1].in_hand is not None:
                counted.pop()  # nobody knows yet what it died of
            most = max(most, len(counted))
        enough = most >= self.settings.times.poison_attempts and not living
        self.judge("I1", enough, f"an item is given up too soon: {item.id}, {most} deaths, alive: {living}")
        item.excuse = GIVEN_UP

    def starts(self, box: ModelBox) -> None:
        session_id, gone = self.session_of(box)
        if session_id is None:
            return
        now = moment(self.now()).timestamp()
        late = gone and now - self.marked.get(box.id, now) > LOOK
        self.judge("I2", not late, f"a worker is started in a sandbox that is marked: {box.id}")
        self.judge(
            "I2",
            box.session in (None, session_id),
            f"a worker is started in another session's sandbox: {box.id}",
        )

    def claims(self, began: float) -> None:
        cut_off = began + self.settings.drain.deadline - self.settings.times.bind - self.settings.times.handover
        self.judge("I7", self.now() <= cut_off + 0.001, "an item is claimed past the cut-off")


class Polling:
    """What one process has met while it polled.

    holds: until when the service said not to call, as shared/adapters/anthropic_queue.py keeps it.
    trouble: polls that were answered late or with nothing to rely on.
    """

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self.holds = Holds(time)
        self.held_until = 0.0
        self.trouble = 0
        self.round_began = -ROUND_SECONDS
        self._flying: dict[object, float] = {}

    def hangs(self) -> bool:
        """A poll is under way for longer than a healthy one takes."""
        return any(self._time() - sent > _QUICK for sent in self._flying.values())

    def sent(self) -> object:
        """A poll is under way now, until `over`."""
        me = object()
        self._flying[me] = self._time()
        return me

    def over(self, poll: object) -> None:
        self.trouble += self._time() - self._flying.pop(poll) > _QUICK


class WatchedQueue(ModelQueue):
    """`began`: when the round, or the pass, that uses it began."""

    def __init__(
        self,
        watch: RunWatch,
        line: ModelLine,
        *,
        dispatcher: bool,
        environment_id: str,
        polling: Polling,
        began: float,
    ) -> None:
        super().__init__(watch.claude, line, reclaim=watch.settings.times.reclaim, environment_id=environment_id)
        self._watch = watch
        self._dispatcher = dispatcher
        self._polling = polling
        self._began = began

    async def poll(self) -> PollOutcome:
        if not self._line.dead:
            self._watch.claims(self._began)
        sent = self._polling.sent()
        try:
            outcome = await super().poll()
        finally:
            self._polling.over(sent)
        self._polling.trouble += isinstance(outcome, _NO_POLL)
        return outcome

    async def _call(self, method: str, effect: Callable[[], Any], about: str = "") -> Any:
        """As the adapter does for all who share the credential."""
        polling = self._polling
        left = polling.holds.left(self._environment_id)
        if left:
            return Throttled("the service said to wait", left)
        if polling.held_until and not self._line.dead:
            early = self._watch.now() < polling.held_until
            self._watch.judge("I9", not early, f"a call comes sooner than the service allowed: {method}")
        outcome = await super()._call(method, effect, about)
        if isinstance(outcome, Throttled):
            polling.holds.hold(self._environment_id, outcome.seconds)
            polling.held_until = self._watch.now() + outcome.seconds - 0.1
        elif not isinstance(outcome, _NO_ANSWER):
            polling.holds.answered(self._environment_id)
        return outcome

    async def give_up_calls(self, session_id: str, calls: OpenCalls) -> AckOutcome:
        outcome = await super().give_up_calls(session_id, calls)
        if isinstance(outcome, Refused):
            self._watch.unheard.add(session_id)
        return outcome

    async def force_stop(self, work_id: str) -> AckOutcome:
        if not self._line.dead:
            self._watch.stops(work_id, dispatcher=self._dispatcher)
        return await super().force_stop(work_id)


class WatchedHost(ModelHost):
    def __init__(self, watch: RunWatch, line: ModelLine, *, dispatcher: bool, routes: dict[str, int]) -> None:
        super().__init__(watch.sandboxes, line, bind=watch.settings.times.bind, routes=routes)
        self._watch = watch
        self._dispatcher = dispatcher

    def _box(self, sandbox_id: str) -> ModelBox | None:
        return None if self._line.dead else self._watch.sandboxes.boxes.get(sandbox_id)

    async def suspend(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        if (box := self._box(sandbox_id)) is not None:
            self._watch.suspends(box)
        return await super().suspend(sandbox_id)

    async def resume(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        outcome = await super().resume(sandbox_id)
        self._watch.refusals[sandbox_id] += isinstance(outcome, Refused)
        return outcome

    async def terminate(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        if (box := self._box(sandbox_id)) is not None:
            self._watch.ends(box, dispatcher=self._dispatcher)
        return await super().terminate(sandbox_id)

    async def rename(self, sandbox_id: str, name: str) -> Absent | Refused | Doubtful | None:
        if (box := self._box(sandbox_id)) is not None:
            self._watch.marks(box, name)
        return await super().rename(sandbox_id, name)

    async def start(self, sandbox_id: str, process: ProcessSpec) -> Absent | Refused | Doubtful | None:
        if (box := self._box(sandbox_id)) is not None:
            self._watch.starts(box)
        return await super().start(sandbox_id, process)
