"""A fresh child of the checkpoint for a judge: it gets the candidate's changes of the working directory, and nothing
else that the candidate has written.

So no file in the home, no configuration, no process and no path of modules of the judge is the candidate's. Changes of
git's own configuration and hooks in the working directory stay out as well: git runs what they name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from image.session.programs.workspace.entries import TreeChange
from shared.ports import SandboxRecord, SandboxSpec
from shared.races.errors import RaceError
from shared.races.fork_point import RaceContext, stamp
from shared.races.resources import NotMade
from shared.races.shell import NotDone
from shared.races.workspace_promotion import PromotionLimits, PromotionRefused, promote_workspace

_STEP_SECONDS: Final = 30.0
_ENTRIES: Final = 100_000


class NoJudgeChild(RaceError):
    """The text is the branch's reason."""


@dataclass(frozen=True, slots=True)
class JudgeChild:
    """How to make the child for one candidate. `stamped`: the checkpoint's files say whose they are."""

    context: RaceContext
    spec: SandboxSpec
    stamped: bool
    candidate: SandboxRecord
    last_resort: asyncio.Lock

    @asynccontextmanager
    async def made(self) -> AsyncIterator[str]:
        """The child's id. Raises RaceError where there is none, or the changes could not be carried into it."""
        context = self.context
        # Whoever waits for room must not wait for this branch, which waits for room itself.
        context.resources.hold(self.candidate.name or "")
        async with AsyncExitStack() as stack:
            try:
                child = await stack.enter_async_context(context.resources.sandbox(self.spec))
            except NotMade as error:
                if error.status is not None:
                    raise
                child = await self._again(stack)
            if self.stamped:
                await stamp(child.id, context)
            running = await context.shell.clear(child.id)
            if isinstance(running, NotDone):
                raise NoJudgeChild(running.reason)
            try:
                carried = await promote_workspace(
                    host=context.host,
                    shell=context.shell,
                    base=child,
                    winner=self.candidate,
                    source=child,
                    on_conflict="theirs",
                    limits=PromotionLimits(entries=_ENTRIES, seconds=_STEP_SECONDS),
                    throwaway=True,
                    leave_out=is_run_by_git,
                )
            except PromotionRefused as error:
                raise NoJudgeChild(f"the branch's changes could not be carried to it: {error.reason}") from None
            if not carried.complete:
                raise NoJudgeChild("only a part of the branch's changes could be carried to it")
            yield child.id

    async def _again(self, stack: AsyncExitStack) -> SandboxRecord:
        """Where all branches of a race hold what room there is and wait for their judges, one gives up after the other,
        so that the rest are judged."""
        resources = self.context.resources
        async with self.last_resort:
            try:
                return await stack.enter_async_context(resources.sandbox(self.spec))
            except NotMade:
                resources.let_go(self.candidate.name or "")
                raise


_READ_BY_GIT: Final = (b"config", b"config.worktree", b"attributes", b"commondir", b"gitdir")


def is_run_by_git(change: TreeChange) -> bool:
    """Whether git runs what this change of the working directory has, or what it names. A `.git` that is no directory,
    a link below one and `commondir` say that the configuration is somewhere else."""
    parts = change.path.split(b"/")
    if b".git" not in parts[:-1]:
        return parts[-1] == b".git" and change.now is not None and change.now.kind != "d"
    return parts[-1] in _READ_BY_GIT or b"hooks" in parts or (change.now is not None and change.now.kind == "l")
