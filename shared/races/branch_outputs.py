"""What a branch leaves in its sandbox, for its report: its changes as a diff, and its artifacts (docs/races.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.ports import SandboxRecord
from shared.races import artifacts, patches
from shared.races.branch import BranchRunner
from shared.races.progress import Timeline
from shared.races.shell import NotDone, SandboxShell


@dataclass(frozen=True, slots=True)
class BranchOutputs:
    """`budget`: bytes of one branch, its diff and its artifacts together."""

    shell: SandboxShell
    timeline: Timeline
    globs: Sequence[str]
    budget: int

    async def keep_base(self, runner: BranchRunner, child: SandboxRecord) -> None:
        match await patches.keep_base(self.shell, child.id):
            case NotDone(reason=reason):
                runner.diff_reason = f"diff: {reason}"
            case base:
                runner.base = base

    async def take_diff(self, runner: BranchRunner, base: patches.DiffBase, child: SandboxRecord) -> None:
        running = await self.shell.clear(child.id)
        if isinstance(running, NotDone):
            runner.diff_reason = f"diff: {running.reason}"
            return
        budget = min(patches.MOST_BYTES, self.budget)
        match await patches.take(self.shell, child.id, base, budget):
            case NotDone(reason=reason):
                runner.diff_reason = f"diff: {reason}"
            case patch:
                runner.diff = patch.text
                left_out = patches.LEFT_OUT if base.too_many else None
                runner.diff_reason = f"diff: only its first {budget} bytes are here" if patch.cut else left_out

    async def collect_artifacts(self, runner: BranchRunner, child: SandboxRecord) -> None:
        if not self.globs:
            return
        with self.timeline.span("artifacts", runner.branch.name):
            running = await self.shell.clear(child.id)
            if isinstance(running, NotDone):
                runner.artifacts_reason = f"artifacts: {running.reason}"
                return
            left = max(0, self.budget - len(runner.diff.encode()))
            runner.artifacts, runner.artifacts_reason = await artifacts.collect(
                self.globs, shell=self.shell, sandbox_id=child.id, budget=left
            )
