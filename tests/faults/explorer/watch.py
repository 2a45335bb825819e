"""What the product asks of the services, judged at the moment when it asks (docs/architecture.md#rules: I2, I5, I7)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from shared import names
from shared.claims.handover import attempt_prefix
from shared.ports import (
    Absent,
    AckOutcome,
    Doubtful,
    PollOutcome,
    ProcessSpec,
    Refused,
    SandboxStatus,
    Throttled,
    WorkItem,
)
from shared.settings import Settings
from tests.support.model.claude import Losses, ModelClaude, ModelItem
from tests.support.model.lines import ModelLine
from tests.support.model.ports import ModelHost, ModelQueue, moment
from tests.support.model.sandboxes import ModelBox, ModelProcess, ModelSandboxes
from tests.support.model.truth import Truth

WIND_DOWN: Final = 240.0  # seconds that a worker has for its last tool
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
    poisoned: Losses = field(init=False)  # sessions with an item that was given up

    def __post_init__(self) -> None:
        self.poisoned = Losses(self.claude)

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

    def marks(self, box: ModelBox, name: str) -> None:
        session_id, gone = self.session_of(box)
        if session_id is None or gone:
            return  # a mark is taken back
        item = self.old_item(session_id)
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
        item = self.old_item(session_id)
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
            times = self.settings.times
            work = WorkItem(item.id, "", item.kind, item.session_id, moment(item.created_at), None)
            failed = sum(
                1
                for box in self.sandboxes.boxes.values()
                for process in box.processes.values()
                if process.spec.name.startswith(attempt_prefix(work)) and not process.running
            )
            self.judge("I1", failed >= times.poison_attempts, f"an item is given up too soon: {work_id}")
            self.poisoned.add(item.session_id)
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

    def starts(self, box: ModelBox) -> None:
        session_id, _ = self.session_of(box)
        if session_id is None:
            return
        self.judge(
            "I2",
            box.session in (None, session_id),
            f"a worker is started in another session's sandbox: {box.id}",
        )

    def claims(self, began: float) -> None:
        cut_off = began + self.settings.drain.deadline - self.settings.times.bind - self.settings.times.handover
        self.judge("I7", self.now() <= cut_off + 0.001, "an item is claimed past the cut-off")


class WatchedQueue(ModelQueue):
    """`began`: when the drain that uses it began."""

    def __init__(self, watch: RunWatch, line: ModelLine, *, dispatcher: bool, environment_id: str) -> None:
        super().__init__(watch.claude, line, reclaim=watch.settings.times.reclaim, environment_id=environment_id)
        self._watch = watch
        self._dispatcher = dispatcher
        self.began = 0.0
        self.held_until = 0.0  # the service said not to poll before
        self.claimed = 0

    async def poll(self) -> PollOutcome:
        if not self._line.dead:
            self._watch.claims(self.began)
            early = self._watch.now() < self.held_until
            self._watch.judge("I9", not early, "a poll comes sooner than the service allowed")
        outcome = await super().poll()
        if isinstance(outcome, Throttled) and self.claimed <= 1:  # the only poll: what others learn, the adapter tells
            self.held_until = self._watch.now() + outcome.seconds - 0.1  # the answer was under way
        self.claimed += isinstance(outcome, WorkItem)
        return outcome

    async def force_stop(self, work_id: str) -> AckOutcome:
        if not self._line.dead:
            self._watch.stops(work_id, dispatcher=self._dispatcher)
        return await super().force_stop(work_id)


class WatchedHost(ModelHost):
    def __init__(self, watch: RunWatch, line: ModelLine, *, dispatcher: bool) -> None:
        super().__init__(watch.sandboxes, line, bind=watch.settings.times.bind)
        self._watch = watch
        self._dispatcher = dispatcher

    def _box(self, sandbox_id: str) -> ModelBox | None:
        return None if self._line.dead else self._watch.sandboxes.boxes.get(sandbox_id)

    async def suspend(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        if (box := self._box(sandbox_id)) is not None:
            self._watch.suspends(box)
        return await super().suspend(sandbox_id)

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
