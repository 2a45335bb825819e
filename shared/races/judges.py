"""From a branch that ended to its score. A judge that fails is that branch's failure, with the judge's reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shared.races.commands import NotRun, Ran, Shell
from shared.races.models import CommandJudge, ExitCodeJudge, Judge

# A number that stands by itself: not a part of a word, a version or a longer number. `nan` and `inf` are seen too, so
# that a command that prints them last does not score by an earlier number.
_NUMBER: Final = re.compile(
    r"(?<![\w.])[-+]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?|nan|inf(?:inity)?)(?!\w)(?!\.\d)",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Score:
    """What the judge says; finite."""

    value: float


@dataclass(frozen=True, slots=True)
class Unjudged:
    """The branch is not in the running. `score` is there where it has one all the same."""

    reason: str
    score: float | None = None


async def judge(by: Judge, ran: Ran, *, shell: Shell, sandbox_id: str, env: Mapping[str, str]) -> Score | Unjudged:
    """Scores a branch whose program has ended (not one whose time was up)."""
    match by:
        case ExitCodeJudge():
            return Score(1.0) if ran.exit_code == 0 else Unjudged(_ended_with(ran), 0.0)
        case CommandJudge():
            return await _by_command(by, shell, sandbox_id, env) if ran.exit_code == 0 else Unjudged(_ended_with(ran))
        case _:
            return Unjudged("judge: not available yet")


def last_number(text: str) -> float | None:
    """The last number in a text; None where there is none. It may be infinite or not a number."""
    numbers = _NUMBER.findall(text)
    return float(numbers[-1]) if numbers else None


async def _by_command(by: CommandJudge, shell: Shell, sandbox_id: str, env: Mapping[str, str]) -> Score | Unjudged:
    # Written only now, when nothing of the branch runs any more: a candidate cannot replace its judge.
    lost = await shell.install(sandbox_id, by.files)
    if lost is not None:
        return Unjudged(f"judge: {lost}")
    scored = await shell.run(sandbox_id, by.argv, env={**by.env, **env}, timeout=by.timeout)
    match scored:
        case NotRun(reason=reason):
            return Unjudged(f"judge: {reason}")
        case Ran(timed_out=True):
            return Unjudged(f"judge: the score command did not end within {by.timeout:g} s")
        case Ran(exit_code=code) if code != 0:
            tail = scored.stderr.strip()[-200:]
            return Unjudged(f"judge: the score command ended with {code}" + (f": {tail}" if tail else ""))
    number = last_number(scored.stdout)
    if number is None:
        return Unjudged("judge: the score command printed no number")
    if not math.isfinite(number):
        return Unjudged("judge: the score is not a finite number")
    return Score(number)


def _ended_with(ran: Ran) -> str:
    return f"ended with exit code {ran.exit_code}"
