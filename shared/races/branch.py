"""One branch on its way to its report."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.races.patches import DiffBase
from shared.races.report import JUDGE_TAIL_CHARACTERS, TAIL_CHARACTERS, Artifact, BranchReport, BranchStatus
from shared.races.request import Branch
from shared.races.shell import Ran


@dataclass(frozen=True, slots=True)
class OutputBudget:
    """How much of a branch's output its report holds. `share` is in bytes, of all three tails together."""

    share: int

    def of_program(self, text: str) -> str:
        return _tail(text, TAIL_CHARACTERS, self.share * 2 // 5)

    def of_judge(self, text: str) -> str:
        return _tail(text, JUDGE_TAIL_CHARACTERS, self.share // 5)


@dataclass(slots=True)
class BranchRunner:
    """`status` is None until the branch is decided; `told` once its report has been passed on."""

    index: int
    branch: Branch
    budget: OutputBudget
    round: int = 1
    parent: str | None = None
    begun: bool = False
    told: bool = False
    status: BranchStatus | None = None
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    exit_code: int | None = None
    reason: str | None = None
    refused: int | None = None
    boot_seconds: float | None = None
    run_seconds: float | None = None
    judge_seconds: float | None = None
    stdout: str = field(default="", repr=False)
    stderr: str = field(default="", repr=False)
    judged: str = field(default="", repr=False)
    failing: tuple[str, ...] = ()
    base: DiffBase | None = None
    diff: str = field(default="", repr=False)
    diff_reason: str | None = None
    artifacts: tuple[Artifact, ...] = ()
    artifacts_reason: str | None = None

    def fail(self, reason: str) -> None:
        self.status, self.reason = "failed", reason

    def ran(self, ran: Ran) -> None:
        """Takes over what its program said."""
        self.run_seconds = round(ran.seconds, 3)
        self.stdout, self.stderr = self.budget.of_program(ran.stdout), self.budget.of_program(ran.stderr)

    def report(self, why_not: str | None = None) -> BranchReport:
        """`why_not` is the reason of a branch that was never decided."""
        undecided: BranchStatus = "cancelled" if self.begun else "not_started"
        return BranchReport(
            name=self.branch.name,
            index=self.index,
            round=self.round,
            parent=self.parent,
            status=self.status or undecided,
            score=self.score,
            scores=self.scores,
            exit_code=self.exit_code,
            reason=self.reason if self.status else why_not,
            boot_seconds=self.boot_seconds,
            run_seconds=self.run_seconds,
            judge_seconds=self.judge_seconds,
            stdout_tail=self.stdout,
            stderr_tail=self.stderr,
            judge_tail=self.judged,
            failing=self.failing,
            params=self.branch.params,
            diff=self.diff,
            diff_reason=self.diff_reason,
            artifacts=self.artifacts,
            artifacts_reason=self.artifacts_reason,
        )


def _tail(text: str, characters: int, size: int) -> str:
    """The end of a text, in valid UTF-8: a program may write anything."""
    if size <= 0:
        return ""
    return text[-characters:].encode(errors="replace")[-size:].decode(errors="ignore")
