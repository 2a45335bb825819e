"""One race, from its source to its report (docs/races.md).

What goes wrong in one branch is that branch's result. What ends the whole race (a deadline, an accepted branch, the
caller's cancellation) cancels the branches at once. Their sandboxes end behind the race, in tasks that whoever runs the
race sees to their end; the report names them, and the dead-man time in their names is renewed while the race lives
(tests/shared/races/test_race_faults.py, test_race_ends.py).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, Literal

from image.session.claim import IDENTITY_FILE
from shared import tracing
from shared.byte_budget import Share, within
from shared.deadline import Clock, Deadline
from shared.environment_settings import Environment
from shared.names import PRISTINE, new_race_id
from shared.ports import Absent, Doubtful, SandboxHost, SandboxRecord
from shared.races import events, plugins, rounds, scores
from shared.races.branch import BranchRunner, OutputBudget
from shared.races.branch_outputs import BranchOutputs
from shared.races.ends import InBackground, RaceTimeouts
from shared.races.errors import BadRace, RaceError, SourceAbsent, SourceUnknown
from shared.races.fork_point import ForkPoint, RaceContext, look, prepare
from shared.races.leader import Leader
from shared.races.limits import check_limits, check_pattern
from shared.races.progress import RaceProgress, Timeline
from shared.races.race_names import RENEW_SECONDS, RaceNames
from shared.races.report import BranchReport, PromotionReport, RaceReport
from shared.races.request import PluginJudge, RaceRequest, RegexJudge
from shared.races.resources import NotMade, RaceResources
from shared.races.shell import SandboxShell, as_base64
from shared.races.trial import BranchTrial
from shared.settings import Settings
from shared.tasks import drop, shielded

# What a race, and each of its branches, may hold of sandboxes' answers at once, its artifacts apart. A promotion
# carries four parts of a megabyte at once, a judge reads a file of one (shared/byte_budget.py).
_RACE_BYTES: Final = 16 * 1024 * 1024
_BRANCH_BYTES: Final = 8 * 1024 * 1024
_WHY: Final = {
    None: "the race's deadline passed",
    "budget": "its max_sandbox_seconds are spent",
    "caller": "the race was cancelled",
}


async def run_race(
    request: RaceRequest,
    *,
    host: SandboxHost,
    settings: Settings,
    environment: Environment,
    on_event: events.OnEvent | None = None,
    timeouts: RaceTimeouts | None = None,
    clock: Clock = time.monotonic,
    now: Clock = time.time,
    in_background: InBackground | None = None,
    race_id: str | None = None,
    cancelled: asyncio.Event | None = None,
) -> RaceReport:
    """Runs the race to its report, within its deadline plus the time to promote the winner (`timeouts.promote`).

    What it made is ended by tasks of `in_background`: the report waits `timeouts.linger` for them and says what is
    still ending. Without `in_background` all ends are over first (`timeouts.reap` each, a few times, and no longer than
    `timeouts.ends` in all).

    Raises BadRace, SourceAbsent, SourceNotReady, SourceUnknown or SetupFailed when no branch could be begun,
    SettingsError for a configured judge that is none, and CancelledError when it was cancelled; what it made is ended
    then in the same way. Once `cancelled` is set the race ends as at its deadline, without a winner and a promotion;
    one whose winner is being promoted goes on to its report. `on_event` is told what happens as it happens, and must
    not raise; it is told nothing of a race that is refused before anything was begun.
    """
    check_limits(request, settings.races)
    loaded: dict[str, plugins.Plugin] = {}
    for by in (step.judge for step in request.panel):
        if isinstance(by, PluginJudge):
            loaded[by.name] = plugins.load(by.name, settings.races.judges[by.name])
        elif isinstance(by, RegexJudge):
            await check_pattern(by)
    timeouts = timeouts or RaceTimeouts(boot=settings.times.bind)
    return await _Race(
        request, host, settings, environment, loaded, on_event, timeouts, clock, now, in_background, race_id, cancelled
    ).run()


class _Race:
    def __init__(
        self,
        request: RaceRequest,
        host: SandboxHost,
        settings: Settings,
        environment: Environment,
        loaded: Mapping[str, plugins.Plugin],
        on_event: events.OnEvent | None,
        timeouts: RaceTimeouts,
        clock: Clock,
        now: Clock,
        in_background: InBackground | None,
        race_id: str | None,
        cancelled: asyncio.Event | None,
    ) -> None:
        self._request = request
        self._settings = settings
        self._environment = environment
        self._clock = clock
        self._host = host
        self._timeouts = timeouts
        self._id = race_id or new_race_id()
        self._deadline = request.deadline or settings.races.deadline
        self._names = RaceNames(settings.prefix, environment.id, self._id, now)
        self._linger = math.inf if in_background is None else timeouts.linger
        self._shell = SandboxShell(host, settings.sandbox_user, settings.workdir, clock)
        self._progress = RaceProgress(on_event, self._shell, self._now)
        self._timeline = Timeline(clock, self._progress.phase_began)
        promoting = timeouts.promote if request.promote != "none" else 0.0
        ends = Deadline.after(self._deadline + promoting + timeouts.ends, clock)
        self._resources = RaceResources(host, timeouts, clock, in_background or asyncio.create_task, ends)
        self._context = RaceContext(
            host=host,
            environment=environment,
            prefix=settings.prefix,
            resources=self._resources,
            shell=self._shell,
            timeouts=timeouts,
            timeline=self._timeline,
            clock=clock,
            base_name=lambda taken: self._names.sandbox(None, taken),
            identity_file=IDENTITY_FILE,
            identity=f"race {self._id}\n",
            server_sandbox=settings.server_sandbox,
        )
        candidates = request.candidates()
        self._budget = OutputBudget(settings.races.output_bytes // request.most_branches)
        self._artifact_bytes = settings.races.artifact_bytes // request.most_branches
        outputs = BranchOutputs(self._shell, self._timeline, request.artifacts, self._artifact_bytes)
        self._trial = BranchTrial(
            self._id, request, self._context, self._names, self._progress, outputs, loaded, self._deadline
        )
        self._runners = [BranchRunner(index, branch, self._budget) for index, branch in enumerate(candidates)]
        self._root: ForkPoint | None = None
        self._finalists: rounds.Finalists | None = None
        self._slots = asyncio.Semaphore(request.max_parallel or settings.races.max_parallel)
        self._tasks: list[asyncio.Task[None]] = []
        self._copies: list[str] = []
        self._leader: Leader | None = None
        self._accepted: str | None = None
        self._cancel = cancelled
        self._ended_by: Literal["budget", "caller"] | None = None
        self._checkpoint: str | None = None
        self._promotion: PromotionReport | None = None

    def _now(self) -> float:
        return self._timeline.now()

    async def run(self) -> RaceReport:
        with within(Share(_RACE_BYTES + as_base64(self._settings.races.artifact_bytes))):
            return await self._reported()

    async def _reported(self) -> RaceReport:
        renewing = asyncio.create_task(self._renew())
        try:
            branches, best, deadline_passed = await self._run()
            await self._resources.ends.settle(self._linger)
        except asyncio.CancelledError:
            if self._leader is not None:
                self._leader.undo()
            await shielded(self._resources.ends.settle(self._linger if math.isinf(self._linger) else 0.0))
            raise
        except Exception:
            await self._resources.ends.settle(self._linger)
            raise
        finally:
            await drop(renewing)
        report = self._report(branches, best, deadline_passed=deadline_passed)
        self._progress.tell(events.Reported(report=report))
        return report

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            await self._resources.renew(self._names.renewed)

    async def _run(self) -> tuple[tuple[BranchReport, ...], BranchReport | None, bool]:
        """The branches, the winner, and whether the deadline passed."""
        async with AsyncExitStack() as stack:
            try:
                try:
                    async with asyncio.timeout(self._deadline) as scope:
                        source = await look(self._request, self._context)
                        await self._check_kept_name()
                        self._begin()
                        if not self._request.dry_run:
                            async with self._ended_early(scope):
                                await self._race(source, stack)
                except TimeoutError:
                    if not scope.expired():
                        raise
                    self._begin()
                if not self._request.dry_run and all(runner.refused == 404 for runner in self._runners):
                    raise SourceAbsent("the source is not there: the service knows no such snapshot or image")
                why_not = "this is a dry run" if self._request.dry_run else _WHY[self._ended_by]
                branches = self._conclude(f"{self._accepted} was accepted" if self._accepted else why_not)
                best = scores.winner(branches, higher_is_better=self._request.higher_is_better)
                if self._ended_by == "caller":
                    best = None
                if best is not None and self._leader is not None:
                    self._promotion = await self._leader.promote(best)
                    self._progress.tell(events.Promoted(promotion=self._promotion, at=self._timeline.now()))
            finally:
                self._resources.ends.hurry()  # before the stack ends anything
        return branches, best, scope.expired() and self._ended_by is None

    @asynccontextmanager
    async def _ended_early(self, scope: asyncio.Timeout) -> AsyncIterator[None]:
        """Ends the block as the deadline does when the race's sandbox-seconds are spent, or its caller cancels it."""

        async def watch(cause: Awaitable[object], by: Literal["budget", "caller"]) -> None:
            await cause
            if self._ended_by is None:
                self._ended_by = by
                scope.reschedule(asyncio.get_running_loop().time())

        watching: list[asyncio.Task[None]] = []
        if self._request.max_sandbox_seconds is not None:
            spent = self._resources.meter.spent(self._request.max_sandbox_seconds)
            watching.append(asyncio.create_task(watch(spent, "budget")))
        if self._cancel is not None:
            watching.append(asyncio.create_task(watch(self._cancel.wait(), "caller")))
        try:
            yield
        finally:
            for each in watching:
                await drop(each)

    async def _check_kept_name(self) -> None:
        """Raises BadRace for a name that somebody has, SourceUnknown where that cannot be said."""
        if self._request.keep is None:
            return
        match await self._host.find(self._request.keep.sandbox_name):
            case SandboxRecord():
                raise BadRace("keep.name", "a sandbox of this name exists")
            case Doubtful(reason=reason):
                raise SourceUnknown(f"it is not known whether the name to keep is free: {reason}")
            case Absent():
                return

    def _begin(self) -> None:
        self._progress.began(self._id, [runner.branch.name for runner in self._runners])

    async def _race(self, source: SandboxRecord | None, stack: AsyncExitStack) -> None:
        self._copies = [self._names.sandbox(runner.index) for runner in self._runners]
        fork_point = await prepare(self._request, source, self._context, stack, self._copies)
        self._checkpoint, self._names.taken = fork_point.snapshot_id, fork_point.taken
        if self._request.promote != "none":
            leader = Leader(
                self._request,
                self._context,
                fork_point,
                pristine_name=lambda: self._names.sandbox(PRISTINE),
                kept_name=self._names.kept_snapshot,
            )
            self._leader = await stack.enter_async_context(leader)
        self._root = fork_point
        begun = [(runner, fork_point) for runner in self._runners]
        for left in reversed(range(self._request.rounds)):
            higher = self._request.higher_is_better
            self._finalists = rounds.Finalists(self._request.top, higher_is_better=higher) if left else None
            async with asyncio.TaskGroup() as group:
                for runner, point in begun:
                    self._tasks.append(group.create_task(self._run_one(runner, point, stack)))
            if self._finalists is None or self._accepted or not self._finalists.best:
                return
            number, first = self._request.rounds - left + 1, len(self._runners)
            best = self._finalists.best
            begun = rounds.following(number, best, self._request.candidates(), fork_point, first, self._budget)
            self._runners += [runner for runner, _ in begun]

    async def _run_one(self, runner: BranchRunner, fork_point: ForkPoint, stack: AsyncExitStack) -> None:
        with tracing.span("branch", {"hands.race.branch": runner.index}) as span:
            try:
                await self._run_branch(runner, fork_point, stack)
            finally:
                span.set({tracing.OUTCOME: runner.status or "undecided"})

    async def _keep_finalist(self, runner: BranchRunner, child: SandboxRecord, stack: AsyncExitStack) -> None:
        """A branch among the best of its round: its files are what branches of the next one start from."""
        report = runner.report()
        if self._finalists is None or self._accepted or not self._finalists.wants(report):
            return
        with self._timeline.span("checkpoint", runner.branch.name):
            try:
                kept = await stack.enter_async_context(self._resources.snapshots.checkpoint(child.id, "a branch"))
            except RaceError as error:
                runner.reason = f"no round starts from it: {error}"
            else:
                self._finalists.add(rounds.Finalist(report, kept))

    async def _run_branch(self, runner: BranchRunner, fork_point: ForkPoint, race: AsyncExitStack) -> None:
        async with self._slots:
            runner.begun = True
            name = runner.branch.name
            ending: float | None = None
            try:
                async with AsyncExitStack() as stack:
                    began = self._clock()
                    with self._timeline.span("boot", name):
                        child = await stack.enter_async_context(self._child(runner, fork_point))
                    runner.boot_seconds = round(self._clock() - began, 3)
                    try:
                        with within(Share(_BRANCH_BYTES + as_base64(self._artifact_bytes))):
                            accepted = await self._trial.run(runner, fork_point, self._root or fork_point, child)
                        if accepted:
                            self._accept(runner)
                        self._progress.decided(runner)
                        if runner.status == "ok":
                            await self._keep_finalist(runner, child, race)
                        if runner.status == "ok" and self._leader is not None:
                            await self._leader.offer(runner.report(), child, stack)
                    finally:
                        ending = self._timeline.now()
            except NotMade as error:
                runner.refused = error.status
                runner.fail(str(error))
                self._progress.decided(runner)
            finally:
                if ending is not None and not (self._leader is not None and self._leader.had(name)):
                    self._timeline.add("reap", name, ending)

    def _child(self, runner: BranchRunner, fork_point: ForkPoint) -> AbstractAsyncContextManager[SandboxRecord]:
        if fork_point.kind == "live":
            return self._resources.copied(self._copies[runner.index])
        name = self._names.sandbox(runner.index)
        return self._resources.sandbox(fork_point.spec(name, self._environment, self._trial.longest(runner.branch)))

    def _accept(self, runner: BranchRunner) -> None:
        """Cancels every other branch. Their sandboxes end behind the race."""
        self._resources.ends.hurry()
        self._accepted = self._accepted or runner.branch.name
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _conclude(self, why_not: str) -> tuple[BranchReport, ...]:
        for runner in self._runners:
            self._progress.decided(runner, why_not)
        return tuple(runner.report(why_not) for runner in self._runners)

    def _report(
        self, branches: Sequence[BranchReport], best: BranchReport | None, *, deadline_passed: bool
    ) -> RaceReport:
        return RaceReport(
            race_id=self._id,
            winner=best.name if best else None,
            branches=tuple(branches),
            rounds=rounds.told(branches) if self._request.rounds > 1 else (),
            checkpoint=self._checkpoint,
            promotion=self._promotion,
            reaped=tuple(self._resources.ends.reaped),
            ending=self._resources.ends.ending,
            leftovers=tuple(dict.fromkeys(self._resources.ends.leftovers)),
            timeline=self._timeline.spans(),
            speedup=self._speedup(branches),
            seconds=self._timeline.now(),
            deadline_passed=deadline_passed,
            sandbox_seconds=round(self._resources.meter.seconds(), 3),
            budget_spent=self._ended_by == "budget",
            cancelled=self._ended_by == "caller",
            dry_run=self._request.dry_run,
        )

    def _speedup(self, branches: Sequence[BranchReport]) -> float | None:
        """The branches' runs and judges one after the other, over the time from the first boot until now."""
        worked = sum((branch.run_seconds or 0.0) + (branch.judge_seconds or 0.0) for branch in branches)
        boots = [span.start for span in self._timeline.spans() if span.phase == "boot"]
        took = self._timeline.now() - min(boots, default=math.inf)
        return round(worked / took, 2) if worked > 0 and took > 0 else None
