"""What a race answers: the winner, every branch with its status, score and output tails, and what was reaped.

Times are in seconds. What it was asked is in request.py.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from shared.races.fields import Model

TAIL_CHARACTERS: Final = 4_000
JUDGE_TAIL_CHARACTERS: Final = 1_000

BranchStatus = Literal["ok", "failed", "timed_out", "cancelled", "not_started"]


class Artifact(Model):
    """A file that a branch left: its path below the working directory and its size in bytes. `base64` is its content;
    where it is null, `truncated` says why."""

    path: str
    size: int
    base64: str | None = Field(default=None, repr=False)
    truncated: str | None = None


class BranchReport(Model):
    """What became of one branch. `ok` means that it ended, was scored and may win; `score` and `exit_code` are null
    where there is none. The tails are the last characters of its output, and of what its judge said.
    `scores` are those of several judges, by their names. `failing` are names of failed tests, where a judge tells them.
    `params` are its values. `round` counts from 1; `parent` is the branch of the round
    before that it started from. `diff` is what it changed in the working directory, as a patch in git's format;
    `diff_reason` and `artifacts_reason` say why one is missing or not whole."""

    name: str
    index: int
    round: int = 1
    parent: str | None = None
    status: BranchStatus
    score: float | None = None
    scores: dict[str, float] = Field(default_factory=dict)
    exit_code: int | None = None
    reason: str | None = None
    boot_seconds: float | None = None
    run_seconds: float | None = None
    judge_seconds: float | None = None
    stdout_tail: str = ""
    stderr_tail: str = ""
    judge_tail: str = ""
    failing: tuple[str, ...] = ()
    params: dict[str, str | bool | int | float] | None = None
    diff: str = Field(default="", repr=False)
    diff_reason: str | None = None
    artifacts: tuple[Artifact, ...] = ()
    artifacts_reason: str | None = None


class PromotionReport(Model):
    """What became of the winner's work. Where `done` is false, `reason` says why, and the winner stands all the same.

    For a workspace: counts of paths, and paths below the working directory: `conflicts` that refused it or that
    `on_conflict` decided; `overtaken` by the source while the promotion was at work, and left as they are; `failed`
    with their reasons; `skipped` because their kind is not moved. `sandbox` is a kept sandbox's name.
    """

    kind: Literal["workspace", "snapshot", "keep"]
    done: bool
    reason: str | None = None
    conflicts: tuple[str, ...] = ()
    overtaken: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    added: int = 0
    changed: int = 0
    deleted: int = 0
    snapshot_id: str | None = None
    sandbox: str | None = None
    sandbox_id: str | None = None


Phase = Literal[
    "source", "setup", "checkpoint", "boot", "files", "run", "diff", "judge", "artifacts", "reap", "promote"
]


class RaceSpan(Model):
    """One stretch of the race, in seconds since it began. `branch` is null for what the race does as a whole."""

    phase: Phase
    branch: str | None
    start: float
    end: float


class RoundReport(Model):
    """One round of a race with several: its branches, and which of them the next round started from, the best first."""

    number: int
    branches: tuple[str, ...]
    top: tuple[str, ...] = ()


class RaceReport(Model):
    """One race. `winner` is a branch's name. `checkpoint` is the snapshot that the branches started from. `reaped`,
    `ending` and `leftovers` hold names of sandboxes and ids of snapshots: those that have ended, those whose end goes
    on behind the report, and those whose end could not be confirmed. `speedup` is how many times as long the branches'
    runs and judges would have taken one after the other, null where nothing ran. `promotion` is null where none was
    asked for, or nobody won. `sandbox_seconds` is how long the race's sandboxes lived, all together and
    up to the report; `budget_spent` says that this ended the race (`max_sandbox_seconds`),
    `cancelled` that its caller did: then nobody won.
    `rounds` is empty for a race of one."""

    race_id: str
    winner: str | None
    branches: tuple[BranchReport, ...]
    rounds: tuple[RoundReport, ...] = ()
    checkpoint: str | None
    promotion: PromotionReport | None = None
    reaped: tuple[str, ...]
    ending: tuple[str, ...] = ()
    leftovers: tuple[str, ...]
    timeline: tuple[RaceSpan, ...]
    speedup: float | None = None
    seconds: float
    deadline_passed: bool = False
    sandbox_seconds: float = 0.0
    budget_spent: bool = False
    cancelled: bool = False
    dry_run: bool = False
