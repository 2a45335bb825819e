"""One branch in its sandbox: its program runs, its judges work, its outputs are taken.

What goes wrong here is that branch's result. Which branches there are, and what ends the race, is race.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from shared.ports import SandboxRecord
from shared.races import copies, judges, panel, plugins, scores
from shared.races.branch import BranchRunner
from shared.races.branch_outputs import BranchOutputs
from shared.races.errors import SourceUnknown
from shared.races.fork_point import ForkPoint, RaceContext, stamp
from shared.races.judge_child import JudgeChild
from shared.races.progress import RaceProgress
from shared.races.race_names import RaceNames
from shared.races.request import MOST_BRANCHES, Branch, CommandJudge, JunitJudge, PluginJudge, RaceRequest
from shared.races.shell import NotDone, NotRun, Ran, new_mark

_JUDGES: Final = 500  # from here on: a judge's position times MOST_BRANCHES, and the branch's index


class BranchTrial:
    """`deadline`: the race's, in seconds. `loaded`: its plug-in judges by name."""

    def __init__(
        self,
        race_id: str,
        request: RaceRequest,
        context: RaceContext,
        names: RaceNames,
        progress: RaceProgress,
        outputs: BranchOutputs,
        loaded: Mapping[str, plugins.Plugin],
        deadline: float,
    ) -> None:
        self._race_id = race_id
        self._request = request
        self._context = context
        self._names = names
        self._progress = progress
        self._outputs = outputs
        self._loaded = loaded
        self._deadline = deadline
        self._last_resort = asyncio.Lock()

    async def run(self, runner: BranchRunner, fork_point: ForkPoint, root: ForkPoint, child: SandboxRecord) -> bool:
        """Decides the branch in its sandbox `child`, made of `fork_point`; its judges' children are made of `root`.
        Whether its score ends the race (`accept`)."""
        verdict = await self._verdict(runner, fork_point, root, child)
        return verdict is not None and self._decide(runner, verdict)

    def longest(self, branch: Branch) -> float:
        """For how long a child may go without traffic: one that is to be promoted waits for the race's end."""
        if self._request.promote != "none":
            return self._deadline + self._context.timeouts.promote
        programs = (CommandJudge, JunitJudge, PluginJudge)
        judging = sum(step.judge.timeout for step in self._request.panel if isinstance(step.judge, programs))
        return max(self._timeout(branch), judging)

    async def _verdict(
        self, runner: BranchRunner, fork_point: ForkPoint, root: ForkPoint, child: SandboxRecord
    ) -> judges.Score | judges.Unjudged | None:
        """None where the branch is decided without a judge."""
        branch = runner.branch
        env = {f"PARAM_{name}": copies.as_text(value) for name, value in (branch.params or {}).items()}
        env |= {"BRANCH_INDEX": str(runner.index), "BRANCH_NAME": branch.name, "RACE_ID": self._race_id}
        if self._request.rounds > 1:
            env |= {"BRANCH_ROUND": str(runner.round), "BRANCH_PARENT": runner.parent or ""}
        if self._request.diff:
            with self._context.timeline.span("diff", branch.name):
                await self._outputs.keep_base(runner, child)
        with self._context.timeline.span("files", branch.name):
            if fork_point.holds_identity:
                try:
                    await stamp(child.id, self._context)
                except SourceUnknown as error:
                    runner.fail(str(error))
                    return None
            written = await self._context.shell.install(child.id, branch.files)
        if isinstance(written, NotDone):
            runner.fail(written.reason)
            return None
        mark = new_mark()
        with self._context.timeline.span("run", branch.name):
            async with self._progress.watching(branch.name, child.id, mark):
                ran = await self._context.shell.run(
                    child.id,
                    branch.argv,
                    env={**branch.env, **env},
                    timeout=self._timeout(branch),
                    stdin=branch.stdin,
                    mark=mark,
                )
        if isinstance(ran, NotRun):
            runner.fail(ran.reason)
            return None
        runner.ran(ran)
        if runner.base is not None:
            with self._context.timeline.span("diff", branch.name):
                await self._outputs.take_diff(runner, runner.base, child)
        if ran.timed_out:
            await self._outputs.collect_artifacts(runner, child)
            runner.status, runner.reason = "timed_out", f"did not end within {self._timeout(branch):g} s"
            return None
        runner.exit_code = ran.exit_code
        verdict = await self._judge(runner, ran, root, child, env)
        await self._outputs.collect_artifacts(runner, child)
        return verdict

    async def _judge(
        self, runner: BranchRunner, ran: Ran, root: ForkPoint, child: SandboxRecord, env: dict[str, str]
    ) -> judges.Score | judges.Unjudged:
        steps = self._request.panel

        def input_of(position: int) -> judges.JudgeInput:
            by = steps[position].judge
            return judges.JudgeInput(
                shell=self._context.shell,
                sandbox_id=child.id,
                branch=runner.branch.name,
                env=env,
                restores=self._request.promote != "none" or position < len(steps) - 1,
                plugin=self._loaded[by.name] if isinstance(by, PluginJudge) else None,
                child=self._judge_child(runner, root, child, position),
            )

        began = self._context.clock()
        with self._context.timeline.span("judge", runner.branch.name):
            judged = await panel.judge(steps, ran, input_of, higher_is_better=self._request.higher_is_better)
        verdict = judged.verdict
        runner.scores = judged.parts if self._request.judges is not None else {}
        runner.judge_seconds = round(self._context.clock() - began, 3)
        runner.judged = runner.budget.of_judge(verdict.tail)
        runner.failing = judged.failing
        return verdict

    def _judge_child(
        self, runner: BranchRunner, root: ForkPoint, candidate: SandboxRecord, position: int
    ) -> JudgeChild | None:
        if root.kind == "live":
            return None
        name = self._names.sandbox(_JUDGES + position * MOST_BRANCHES + runner.index)
        spec = root.spec(name, self._context.environment, self.longest(runner.branch))
        return JudgeChild(self._context, spec, root.holds_identity, candidate, self._last_resort)

    def _decide(self, runner: BranchRunner, verdict: judges.Score | judges.Unjudged) -> bool:
        """Whether its score ends the race."""
        higher = self._request.higher_is_better
        least, enough = self._request.min_score, self._request.accept
        if isinstance(verdict, judges.Unjudged):
            runner.score = verdict.score
            runner.fail(verdict.reason)
            return False
        runner.score = verdict.value
        if least is not None and not scores.reaches(verdict.value, least, higher_is_better=higher):
            runner.fail(f"score {verdict.value:g} does not reach min_score {least:g}")
            return False
        runner.status = "ok"
        return enough is not None and scores.reaches(verdict.value, enough, higher_is_better=higher)

    def _timeout(self, branch: Branch) -> float:
        return branch.timeout or self._request.branch_timeout
