"""What a race is asked (docs/races.md).

Sizes and counts are bounded here where they need no setting; limits.py checks those that do. Everything is strict: an
unknown field, a number in quotes or a value that cannot be served is an error that names the field, never something
that is passed over. Times are in seconds. Errors never show the values that they are about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from shared.races import copies, fields
from shared.races.fields import (
    LONGEST_SECONDS,
    BranchName,
    Command,
    Files,
    Glob,
    Identifier,
    ImageName,
    JsonPath,
    KeptName,
    Model,
    Parameters,
    Path,
    PluginName,
    Script,
    Seconds,
    Variables,
    WebhookUrl,
)

MOST_BRANCHES: Final = 64
MOST_GLOBS: Final = 20
MOST_JUDGES: Final = 5
MOST_ROUNDS: Final = 10


class _Program(Model):
    """Something to run: `command` (argv, no shell) or `script` (for `sh -c`), with files written before it."""

    command: Command | None = None
    script: Script | None = None
    files: Files = Field(default_factory=dict)
    env: Variables = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_program(self) -> Self:
        if (self.command is None) == (self.script is None):
            raise ValueError("needs exactly one of command and script")
        return self

    @property
    def argv(self) -> tuple[str, ...]:
        return self.command or ("sh", "-c", self.script or "")


class Branch(_Program):
    """One candidate. A `timeout` of its own wins over the race's `branch_timeout`. `params` are values: `{name}` in its
    command or script stands for one, and the variable PARAM_name holds it."""

    name: BranchName
    params: Parameters | None = None
    stdin: Annotated[str, Field(max_length=1_000_000)] | None = None
    timeout: Seconds | None = None


# ----------------------------------------------------------------------------------------------------------- judges


class _Judge(Model):
    """`score_range` is the least and the largest score there can be: another one disqualifies its branch."""

    score_range: Annotated[tuple[float, float], Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.score_range is not None and self.score_range[0] > self.score_range[1]:
            raise ValueError("score_range is the least and the largest score")
        return self


class _JudgeInSandbox(_Judge):
    """`in` says where it works. `child`: in a fresh child of the checkpoint that gets the branch's changes of the
    working directory and nothing else of it. `branch`: in the branch's own sandbox, which is quicker by one boot; there
    the branch has written every file that its user may write, and a judge may read one (a configuration, a module)."""

    place: Literal["child", "branch"] = Field(default="child", alias="in")


class ExitCodeJudge(_Judge):
    """A branch that ends with 0 scores 1, any other has failed with score 0."""

    type: Literal["exit_code"] = "exit_code"


class CommandJudge(_Program, _JudgeInSandbox):
    """Runs in the working directory when the branch has ended with 0. The score is what it writes to the file
    `$SCORE_FILE`, else what `json_path` names in the JSON that it prints (all of its standard output, else its last
    line), else its last line `score=<number>`, else its last line where that is one number.

    It has an empty HOME, and the working directory is on no path of modules: what it needs of the branch's code it
    names (`env: {"PYTHONPATH": "."}`), and runs best in a process of its own. In a child its files are links to
    read-only ones outside the working directory."""

    type: Literal["command"]
    json_path: JsonPath | None = None
    timeout: Seconds = 60.0


class JunitJudge(_Program, _JudgeInSandbox):
    """Runs a test suite as `command` does; the score is the share of passed tests (skipped ones do not count) in the
    JUnit XML that it leaves at `path`, whatever its exit code. The report names the tests that failed."""

    type: Literal["junit"]
    path: Path = "junit.xml"
    timeout: Seconds = 60.0


class RegexJudge(_Judge):
    """Looks for `pattern` (Python's re, multi-line) in the last of what a branch that ended with 0 has written. The
    last match's `group` is the score (a number or a name; 1 where there is one); a pattern without groups scores 1
    where it matches. Where it does not match, the branch has failed with score 0."""

    type: Literal["regex"]
    pattern: Annotated[str, Field(min_length=1, max_length=1_000)]
    stream: Literal["stdout", "stderr"] = "stdout"
    group: Annotated[int, Field(ge=0, le=99)] | Annotated[str, Field(pattern=r"^[A-Za-z_]\w{0,63}$")] | None = None


class FileJudge(_JudgeInSandbox):
    """The number in a file that a branch which ended with 0 has left in its working directory: what `json_path` names
    in it, else its last line `score=<number>`, else its last line where that is one number."""

    type: Literal["file"]
    path: Path
    json_path: JsonPath | None = None


class PluginJudge(_JudgeInSandbox):
    """A plug-in that the operator has configured under this name (RACE_JUDGES). `options` is passed on to it."""

    type: Literal["plugin"]
    name: PluginName
    options: Annotated[dict[Annotated[str, Field(max_length=128)], Any], Field(max_length=64)] = Field(
        default_factory=dict
    )
    timeout: Seconds = 60.0


Judge = Annotated[
    ExitCodeJudge | CommandJudge | JunitJudge | RegexJudge | FileJudge | PluginJudge, Field(discriminator="type")
]


class PanelJudge(Model):
    """One of several judges. The branch's score is the mean of theirs by `weight`; where one does not reach its `gate`,
    the branch has failed and later judges do not run. A `weight` of 0 only bars the way."""

    name: BranchName
    judge: Judge
    weight: Annotated[float, Field(ge=0, le=1_000_000)] = 1.0
    gate: float | None = None


# ---------------------------------------------------------------------------------------------------------- request


class Source(Model):
    """What the branches start from: exactly one of a session (its sandbox), a sandbox by id or name, a snapshot, and a
    registered image."""

    session_id: Identifier | None = None
    sandbox_id: Identifier | None = None
    snapshot_id: Identifier | None = None
    image: ImageName | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = (self.session_id, self.sandbox_id, self.snapshot_id, self.image)
        if sum(value is not None for value in given) != 1:
            raise ValueError("needs exactly one of session_id, sandbox_id, snapshot_id and image")
        return self

    @property
    def is_sandbox(self) -> bool:
        return self.session_id is not None or self.sandbox_id is not None


class Keep(Model):
    """How the winner's sandbox lives on: as `keep-<name>`, asleep after `timeout` seconds without traffic."""

    name: KeptName
    timeout: Annotated[int, Field(ge=60, le=86_400)] = 3_600

    @property
    def sandbox_name(self) -> str:
        return f"keep-{self.name}"


Checkpoint = Literal["filesystem", "memory", "live"]
Promote = Literal["none", "workspace", "snapshot", "keep"]
OnConflict = Literal["refuse", "theirs", "ours"]


class RaceRequest(Model):
    """One race. Either `branches`, or copies of one `command` or `script`: `n` of them, or one for each of `params`,
    whose values stand where `{name}` does and are in the variables PARAM_name. `{i}` is the copy's index. `diff` asks
    for each branch's changes of the working directory as a patch. `max_sandbox_seconds` ends the race as a deadline
    does, when its sandboxes have lived for so long, all together; a promotion comes after that.

    `on_conflict`, for what the source changed since the checkpoint as well: `refuse` promotes nothing, `theirs` takes
    the winner's, `ours` leaves the source's. `artifacts` are globs below the working directory (`**` for any depth).
    With `rounds` the branches run again from each of the `top` best of the round before; all bounds count over all of
    them. `on_finish` is called when the race is over, signed with the operator's key; the operator lists the hosts
    (RACE_WEBHOOK_HOSTS).
    """

    source: Source
    environment_id: Identifier | None = None
    setup: Script | None = None
    setup_timeout: Seconds = 300.0
    branches: Annotated[tuple[Branch, ...], Field(min_length=1, max_length=MOST_BRANCHES)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_BRANCHES)] | None = None
    params: Annotated[tuple[Parameters, ...], Field(min_length=1, max_length=MOST_BRANCHES)] | None = None
    command: Command | None = None
    script: Script | None = None
    files: Files = Field(default_factory=dict)
    env: Variables = Field(default_factory=dict)
    judge: Judge = Field(default_factory=ExitCodeJudge)
    judges: Annotated[tuple[PanelJudge, ...], Field(min_length=1, max_length=MOST_JUDGES)] | None = None
    higher_is_better: bool = True
    accept: float | None = None
    min_score: float | None = None
    max_parallel: Annotated[int, Field(ge=1, le=MOST_BRANCHES)] | None = None
    branch_timeout: Seconds = 300.0
    deadline: Seconds | None = None
    max_sandbox_seconds: Annotated[float, Field(gt=0, le=MOST_BRANCHES * LONGEST_SECONDS)] | None = None
    checkpoint: Checkpoint = "filesystem"
    promote: Promote = "none"
    on_conflict: OnConflict = "refuse"
    keep: Keep | None = None
    artifacts: Annotated[tuple[Glob, ...], Field(max_length=MOST_GLOBS)] = ()
    diff: bool = False
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS)] = 1
    top: Annotated[int, Field(ge=1, le=MOST_BRANCHES)] = 1
    on_finish: WebhookUrl | None = Field(default=None, repr=False)
    dry_run: bool = False
    _candidates: tuple[Branch, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _one_way_to_say_the_branches(self) -> Self:
        if sum(way is not None for way in (self.branches, self.n, self.params)) != 1:
            raise ValueError("needs exactly one of branches, n and params")
        if self.branches is None and (self.command is None) == (self.script is None):
            raise ValueError("n and params need exactly one of command and script")
        if self.params is not None and any(values.keys() != self.params[0].keys() for values in self.params):
            raise ValueError("all params have the same names")
        if self.branches is not None:
            if self.command is not None or self.script is not None or self.files or self.env:
                raise ValueError("command, script, files and env belong to n or params; with branches each has its own")
            names = [branch.name for branch in self.branches]
            if len(set(names)) != len(names):
                raise ValueError("two branches have the same name")
        self._candidates = self._written_out()
        return self

    @model_validator(mode="after")
    def _judges_that_can_be(self) -> Self:
        if self.judges is None:
            return self
        if "judge" in self.model_fields_set:
            raise ValueError("takes judge or judges, not both")
        names = [step.name for step in self.judges]
        if len(set(names)) != len(names):
            raise ValueError("two judges have the same name")
        if not any(step.weight for step in self.judges):
            raise ValueError("at least one of the judges has a weight above 0")
        return self

    @model_validator(mode="after")
    def _a_promotion_that_can_be(self) -> Self:
        if (self.promote == "keep") != (self.keep is not None):
            raise ValueError("promote keep and keep (a name, a timeout) go together")
        if self.on_conflict != "refuse" and self.promote != "workspace":
            raise ValueError("on_conflict belongs to promote workspace")
        if self.promote == "workspace" and not self.source.is_sandbox:
            raise ValueError("promote workspace needs a source with a workspace: a session_id or a sandbox_id")
        return self

    @model_validator(mode="after")
    def _a_checkpoint_that_can_be(self) -> Self:
        if self.checkpoint == "filesystem":
            return self
        if not self.source.is_sandbox:
            raise ValueError("checkpoint memory and live need a source that runs: a session_id or a sandbox_id")
        if self.setup is not None:
            raise ValueError("checkpoint memory and live leave no place for a setup: run it in the source before")
        if self.checkpoint == "live" and any(getattr(step.judge, "place", "branch") == "child" for step in self.panel):
            raise ValueError("checkpoint live takes no checkpoint that a judge could start from: say judge.in branch")
        if self.checkpoint == "live" and self.promote == "workspace":
            raise ValueError("promote workspace needs a checkpoint to compare with, which live does not take")
        if self.checkpoint == "live" and self.promote == "keep":
            raise ValueError("promote keep gives a time-out, which live copies do not take")
        return self

    @model_validator(mode="after")
    def _rounds_that_can_be(self) -> Self:
        if self.rounds == 1 and self.top != 1:
            raise ValueError("top belongs to rounds")
        if self.rounds > 1 and self.checkpoint != "filesystem":
            raise ValueError("rounds start from files: checkpoint is filesystem then")
        if self.most_branches > MOST_BRANCHES:
            raise ValueError(
                f"rounds and top make {self.most_branches} branches: at most {MOST_BRANCHES} in all rounds"
            )
        return self

    @property
    def most_branches(self) -> int:
        """How many there may be in all rounds."""
        first = len(self._candidates)
        return first + (self.rounds - 1) * min(self.top, first) * first

    @property
    def panel(self) -> tuple[PanelJudge, ...]:
        """The judges in order; `judge` alone where there are no `judges`."""
        return self.judges or (PanelJudge(name="judge", judge=self.judge),)

    @property
    def branches_field(self) -> str:
        """The field that says the branches."""
        return next(name for name in ("branches", "n", "params") if getattr(self, name) is not None)

    def candidates(self) -> tuple[Branch, ...]:
        """The branches in order, the copies written out (their names are b0, b1, …)."""
        return self._candidates

    def _written_out(self) -> tuple[Branch, ...]:
        """Raises ValueError for a copy that is no command, or is too long."""
        if self.branches is not None:
            return tuple(
                _copies(branch, [branch.params], numbered=False)[0] if branch.params else branch
                for branch in self.branches
            )
        one = Branch(name="b", command=self.command, script=self.script, files=self.files, env=self.env)
        return _copies(one, self.params or [None] * (self.n or 0), numbered=True)


def _copies(branch: Branch, params: Sequence[Parameters | None], *, numbered: bool) -> tuple[Branch, ...]:
    """The branch with each of these values. `numbered`: `{i}` is the index, and the names are b0, b1, …"""
    values = [{name: copies.as_text(value) for name, value in (each or {}).items()} for each in params]
    if numbered:
        values = [{**each, "i": str(index)} for index, each in enumerate(values)]
    filled = copies.written_out(branch.command or (branch.script or "",), values)
    if branch.command and not all(fields.begins_with_a_program(written) for written in filled):
        raise ValueError("with its values, a command does not begin with the name of a program, without =")
    return tuple(
        branch.model_copy(
            update={
                "name": f"b{index}" if numbered else branch.name,
                "command": tuple(written) if branch.command else None,
                "script": None if branch.command else written[0],
                "params": each,
            }
        )
        for index, (each, written) in enumerate(zip(params, filled, strict=True))
    )
