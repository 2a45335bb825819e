"""One race, from its source to its report (design: fork_best_of_n).

What goes wrong in one branch is that branch's result. What ends the whole race (a deadline, an accepted branch, the
caller's cancellation) cancels the branches, and each ends its own sandbox before the race returns: no task and, but
for the report's leftovers, no sandbox and no snapshot outlives `run_race` (tests/shared/races/test_race_faults.py).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from image.session.claim import STATE_DIRECTORY
from shared.deadline import Clock
from shared.ports import SandboxHost, SandboxRecord
from shared.races import judges, ranking
from shared.races.children import Children, NotMade, Pace
from shared.races.commands import NotRun, Shell
from shared.races.errors import BadRace, SourceAbsent, SourceUnknown
from shared.races.models import (
    TAIL_CHARACTERS,
    Branch,
    BranchReport,
    BranchStatus,
    CommandJudge,
    RaceReport,
    RaceRequest,
)
from shared.races.naming import new_race_id, race_sandbox_name
from shared.races.source import Origin, Workshop, look, prepare, stamp
from shared.races.timeline import Timeline
from shared.settings import Environment, RaceLimits, Settings

IDENTITY_FILE: Final = f"{STATE_DIRECTORY}/session"
_DEAD_MAN_SLACK: Final = 120.0


def environment_for(request: RaceRequest, settings: Settings) -> Environment:
    """The environment that the request means. Raises BadRace where it means none, or does not say which of several."""
    if request.environment_id is not None:
        environment = settings.environments.get(request.environment_id)
        if environment is None:
            raise BadRace("environment_id", "no such environment is configured here")
        return environment
    if len(settings.environments) > 1:
        raise BadRace("environment_id", "several environments are configured here: say which")
    return next(iter(settings.environments.values()))


def check_limits(request: RaceRequest, limits: RaceLimits) -> None:
    """Raises BadRace for more than the settings allow."""
    if len(request.candidates()) > limits.max_branches:
        field = "n" if request.n is not None else "branches"
        raise BadRace(field, f"at most {limits.max_branches} branches are allowed here")
    if request.max_parallel is not None and request.max_parallel > limits.max_parallel:
        raise BadRace("max_parallel", f"at most {limits.max_parallel} are allowed here")
    if request.promote != "none":
        raise BadRace("promote", "not available yet")
    if request.checkpoint != "filesystem":
        raise BadRace("checkpoint", "only filesystem checkpoints are available yet")
    if request.source.sandbox_id is not None:
        raise BadRace("source.sandbox_id", "not available yet")
    if request.artifacts:
        raise BadRace("artifacts", "not available yet")
    if request.deadline is not None and request.deadline > limits.deadline:
        raise BadRace("deadline", f"at most {limits.deadline:g} seconds are allowed here")


async def run_race(
    request: RaceRequest,
    *,
    host: SandboxHost,
    settings: Settings,
    environment: Environment,
    pace: Pace | None = None,
    clock: Clock = time.monotonic,
    now: Clock = time.time,
) -> RaceReport:
    """Runs the race to its report, within its deadline plus the time to end what it made (`pace.reap`, twice).

    Raises BadRace, SourceAbsent, SourceNotReady, SourceUnknown or SetupFailed when no branch could be begun, and
    CancelledError when it was cancelled; everything it made is ended then too.
    """
    check_limits(request, settings.races)
    pace = pace or Pace(boot=settings.times.bind)
    return await _Race(request, host, settings, environment, pace, clock, now).run()


@dataclass(slots=True)
class _Runner:
    """One branch on its way to its report."""

    index: int
    branch: Branch
    begun: bool = False
    status: BranchStatus | None = None
    score: float | None = None
    exit_code: int | None = None
    reason: str | None = None
    refused: int | None = None
    boot_seconds: float | None = None
    run_seconds: float | None = None
    stdout: str = ""
    stderr: str = ""

    def fail(self, reason: str) -> None:
        self.status, self.reason = "failed", reason

    def report(self, why_not: str | None) -> BranchReport:
        undecided: BranchStatus = "cancelled" if self.begun else "not_started"
        return BranchReport(
            name=self.branch.name,
            index=self.index,
            status=self.status or undecided,
            score=self.score,
            exit_code=self.exit_code,
            reason=self.reason if self.status else why_not,
            boot_seconds=self.boot_seconds,
            run_seconds=self.run_seconds,
            stdout_tail=self.stdout[-TAIL_CHARACTERS:],
            stderr_tail=self.stderr[-TAIL_CHARACTERS:],
        )


class _Race:
    def __init__(
        self,
        request: RaceRequest,
        host: SandboxHost,
        settings: Settings,
        environment: Environment,
        pace: Pace,
        clock: Clock,
        now: Clock,
    ) -> None:
        self._request = request
        self._settings = settings
        self._environment = environment
        self._clock = clock
        self._id = new_race_id()
        self._deadline = request.deadline or settings.races.deadline
        self._dead_man = math.ceil(now() + self._deadline + 2 * pace.reap + pace.boot + _DEAD_MAN_SLACK)
        self._timeline = Timeline(clock)
        self._children = Children(host, pace, clock)
        self._shell = Shell(host, settings.sandbox_user, settings.workdir, clock)
        self._shop = Workshop(
            host=host,
            environment=environment,
            prefix=settings.prefix,
            children=self._children,
            shell=self._shell,
            pace=pace,
            timeline=self._timeline,
            clock=clock,
            base_name=self._name(None),
            identity_file=IDENTITY_FILE,
            identity=f"race {self._id}\n",
        )
        self._runners = [_Runner(index, branch) for index, branch in enumerate(request.candidates())]
        self._slots = asyncio.Semaphore(request.max_parallel or settings.races.max_parallel)
        self._tasks: list[asyncio.Task[None]] = []
        self._accepted: str | None = None
        self._checkpoint: str | None = None

    async def run(self) -> RaceReport:
        if self._request.dry_run:
            await look(self._request, self._shop)
            return self._report("this is a dry run", deadline_passed=False)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._deadline) as scope:
                    origin = await prepare(self._request, self._shop, stack)
                    self._checkpoint = origin.snapshot_id
                    await self._run_all(origin)
            except TimeoutError:
                if not scope.expired():
                    raise
        if all(runner.refused == 404 for runner in self._runners):
            raise SourceAbsent("the source is not there: the service knows no such snapshot or image")
        why_not = f"{self._accepted} was accepted" if self._accepted else "the race's deadline passed"
        return self._report(why_not, deadline_passed=scope.expired())

    async def _run_all(self, origin: Origin) -> None:
        async with asyncio.TaskGroup() as group:
            for runner in self._runners:
                self._tasks.append(group.create_task(self._run_one(runner, origin)))

    async def _run_one(self, runner: _Runner, origin: Origin) -> None:
        async with self._slots:
            runner.begun = True
            name = runner.branch.name
            spec = origin.spec(self._name(runner.index), self._environment, self._longest(runner.branch))
            ending: float | None = None
            try:
                async with AsyncExitStack() as stack:
                    began = self._clock()
                    with self._timeline.span("boot", name):
                        child = await stack.enter_async_context(self._children.sandbox(spec))
                    runner.boot_seconds = round(self._clock() - began, 3)
                    try:
                        await self._try(runner, origin, child)
                    finally:
                        ending = self._timeline.now()
            except NotMade as error:
                runner.refused = error.status
                runner.fail(str(error))
            finally:
                if ending is not None:
                    self._timeline.add("reap", name, ending)

    async def _try(self, runner: _Runner, origin: Origin, child: SandboxRecord) -> None:
        """The branch in its own sandbox, up to its verdict."""
        branch = runner.branch
        env = {"BRANCH_INDEX": str(runner.index), "BRANCH_NAME": branch.name, "RACE_ID": self._id}
        with self._timeline.span("files", branch.name):
            if origin.holds_identity:
                try:
                    await stamp(child.id, self._shop)
                except SourceUnknown as error:
                    return runner.fail(str(error))
            lost = await self._shell.install(child.id, branch.files)
        if lost is not None:
            return runner.fail(lost)
        with self._timeline.span("run", branch.name):
            ran = await self._shell.run(
                child.id, branch.argv, env={**branch.env, **env}, timeout=self._timeout(branch), stdin=branch.stdin
            )
        if isinstance(ran, NotRun):
            return runner.fail(ran.reason)
        runner.run_seconds, runner.stdout, runner.stderr = round(ran.seconds, 3), ran.stdout, ran.stderr
        if ran.timed_out:
            runner.status, runner.reason = "timed_out", f"did not end within {self._timeout(branch):g} s"
            return None
        runner.exit_code = ran.exit_code
        with self._timeline.span("judge", branch.name):
            verdict = await judges.judge(self._request.judge, ran, shell=self._shell, sandbox_id=child.id, env=env)
        return self._decide(runner, verdict)

    def _decide(self, runner: _Runner, verdict: judges.Score | judges.Unjudged) -> None:
        higher = self._request.higher_is_better
        least, enough = self._request.min_score, self._request.accept
        if isinstance(verdict, judges.Unjudged):
            runner.score = verdict.score
            return runner.fail(verdict.reason)
        runner.score = verdict.value
        if least is not None and not ranking.reaches(verdict.value, least, higher_is_better=higher):
            return runner.fail(f"score {verdict.value:g} does not reach min_score {least:g}")
        runner.status = "ok"
        if enough is not None and ranking.reaches(verdict.value, enough, higher_is_better=higher):
            self._accept(runner)
        return None

    def _accept(self, runner: _Runner) -> None:
        """Cancels every other branch; each ends its sandbox, all at once."""
        self._accepted = self._accepted or runner.branch.name
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _report(self, why_not: str, *, deadline_passed: bool) -> RaceReport:
        branches: Sequence[BranchReport] = [runner.report(why_not) for runner in self._runners]
        best = ranking.winner(branches, higher_is_better=self._request.higher_is_better)
        return RaceReport(
            race_id=self._id,
            winner=best.name if best else None,
            branches=tuple(branches),
            checkpoint=self._checkpoint,
            reaped=tuple(self._children.reaped),
            leftovers=tuple(dict.fromkeys(self._children.leftovers)),
            timeline=self._timeline.spans(),
            seconds=self._timeline.now(),
            deadline_passed=deadline_passed,
            dry_run=self._request.dry_run,
        )

    def _name(self, index: int | None) -> str:
        return race_sandbox_name(self._settings.prefix, self._environment.id, self._id, index, self._dead_man)

    def _timeout(self, branch: Branch) -> float:
        return branch.timeout or self._request.branch_timeout

    def _longest(self, branch: Branch) -> float:
        by = self._request.judge
        return max(self._timeout(branch), by.timeout if isinstance(by, CommandJudge) else 0.0)
