"""Several judges of one branch, in order: each may be a gate, and their scores are weighed into one.

A gate that is not passed ends it: what comes later does not run, which is where cheap judges belong before dear ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.races import judges, scores
from shared.races.judges import JudgeInput, Score, Unjudged
from shared.races.request import PanelJudge
from shared.races.shell import Ran


@dataclass(slots=True)
class PanelVerdict:
    """`parts` are the scores by the judges' names, and `failing` the names of failed tests, as far as it came."""

    verdict: Score | Unjudged
    parts: dict[str, float]
    failing: tuple[str, ...]


async def judge(
    panel: Sequence[PanelJudge], ran: Ran, input_of: Callable[[int], JudgeInput], *, higher_is_better: bool
) -> PanelVerdict:
    """`input_of` is asked for each judge's place, by its position. A judge that fails is the branch's failure."""
    parts: dict[str, float] = {}
    tails: list[str] = []
    failing: tuple[str, ...] = ()
    for position, step in enumerate(panel):
        verdict = await judges.judge(step.judge, ran, input_of(position))
        if verdict.tail:
            tails.append(verdict.tail if len(panel) == 1 else f"[{step.name}] {verdict.tail}")
        tail = "\n".join(tails)
        if isinstance(verdict, Unjudged):
            reason = verdict.reason if len(panel) == 1 else f"{step.name}: {verdict.reason}"
            return PanelVerdict(Unjudged(reason, verdict.score if len(panel) == 1 else None, tail), parts, failing)
        parts[step.name] = verdict.value
        failing = (*failing, *verdict.failing)
        if step.gate is not None and not scores.reaches(verdict.value, step.gate, higher_is_better=higher_is_better):
            reason = f"{step.name}: score {verdict.value:g} does not pass its gate {step.gate:g}"
            return PanelVerdict(Unjudged(reason, tail=tail), parts, failing)
    weights = sum(step.weight for step in panel)
    total = sum(parts[step.name] * (step.weight / weights) for step in panel)
    return PanelVerdict(Score(total, tail, failing), parts, failing)
