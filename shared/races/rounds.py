"""Several rounds of one race: the next one starts from the files of the best branches of the round before.

Each of the `top` best of a round is checkpointed when it is decided, and every branch runs again from each of these
states. What judges a branch, and what a promotion compares with, starts from the race's own checkpoint in every round:
no branch of an earlier round can have written it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared.races import scores
from shared.races.branch import BranchRunner, OutputBudget
from shared.races.fork_point import ForkPoint
from shared.races.report import BranchReport, RoundReport
from shared.races.request import Branch


@dataclass(frozen=True, slots=True)
class Finalist:
    """A branch from whose state the next round starts."""

    report: BranchReport
    snapshot_id: str


class Finalists:
    """The best `top` of one round, the best first."""

    def __init__(self, top: int, *, higher_is_better: bool) -> None:
        self._top = top
        self._higher = higher_is_better
        self.best: list[Finalist] = []

    def wants(self, report: BranchReport) -> bool:
        """Whether this branch is among the best of those that are decided."""
        return len(self.best) < self._top or self._rank(report) < self._rank(self.best[-1].report)

    def add(self, finalist: Finalist) -> None:
        self.best = sorted([*self.best, finalist], key=lambda each: self._rank(each.report))[: self._top]

    def _rank(self, report: BranchReport) -> tuple[float, float, int]:
        return scores.rank(report, higher_is_better=self._higher)


def following(
    number: int,
    finalists: Sequence[Finalist],
    candidates: Sequence[Branch],
    root: ForkPoint,
    first: int,
    budget: OutputBudget,
) -> list[tuple[BranchRunner, ForkPoint]]:
    """The branches of round `number` with what each starts from; `first` is the index of the first one."""
    begun: list[tuple[BranchRunner, ForkPoint]] = []
    for place, finalist in enumerate(finalists, 1):
        point = replace(root, snapshot_id=finalist.snapshot_id, image=None)
        for branch in candidates:
            named = branch.model_copy(update={"name": f"r{number}.{place}-{branch.name}"})
            runner = BranchRunner(first + len(begun), named, budget, round=number, parent=finalist.report.name)
            begun.append((runner, point))
    return begun


def told(branches: Sequence[BranchReport]) -> tuple[RoundReport, ...]:
    """The rounds that these branches were of."""
    last = max((branch.round for branch in branches), default=0)
    return tuple(
        RoundReport(
            number=number,
            branches=tuple(branch.name for branch in branches if branch.round == number),
            top=tuple(dict.fromkeys(each.parent for each in branches if each.round == number + 1 and each.parent)),
        )
        for number in range(1, last + 1)
    )
