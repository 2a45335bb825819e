"""What a race is asked and what it answers (design: fork_best_of_n).

Sizes and counts are bounded here where they need no setting; `limits` in race.py checks those that do. Everything is
strict: an unknown field, a number in quotes or a value that this version cannot serve is an error that names the
field, never something that is passed over. Times are in seconds. Errors never show the values that they are about.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LONGEST_ARGUMENT: Final = 100_000  # bytes; Linux takes 131,072 for one argument
MOST_BRANCHES: Final = 64
LONGEST_SECONDS: Final = 86_400.0
TAIL_CHARACTERS: Final = 4_000
OUR_VARIABLES: Final = ("BRANCH_INDEX", "BRANCH_NAME", "RACE_ID", "RACE_RUN")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


def _argument(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character")
    if len(text.encode(errors="surrogatepass")) > LONGEST_ARGUMENT:
        raise ValueError(f"is longer than {LONGEST_ARGUMENT} bytes")
    return text


def _path(text: str) -> str:
    if text.startswith("/") or any(part in ("", ".", "..") for part in text.split("/")):
        raise ValueError("a path is relative to the working directory, without empty, . or .. parts")
    if any(ord(character) < 32 for character in text):
        raise ValueError("a path holds no control characters")
    return text


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("a variable's name has letters, digits and _, and no digit first")
    if name in OUR_VARIABLES:
        raise ValueError("this variable is set by the race")
    return name


def _executable(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command[0] or "=" in command[0]:
        raise ValueError("begins with the name of a program, without =")
    return command


Argument = Annotated[str, AfterValidator(_argument)]
Script = Annotated[str, Field(min_length=1), AfterValidator(_argument)]
# Not strict about list or tuple: behind a validator function pydantic no longer knows that a list came from JSON.
Command = Annotated[
    tuple[Argument, ...], Field(min_length=1, max_length=256, strict=False), AfterValidator(_executable)
]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_SECONDS)]
BranchName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Variables = Annotated[
    dict[
        Annotated[str, Field(max_length=128), AfterValidator(_variable)], Annotated[Argument, Field(max_length=8_192)]
    ],
    Field(max_length=64),
]


class File(_Model):
    """A file's content: `text`, or `base64` for bytes."""

    text: str | None = None
    base64: str | None = Field(default=None, repr=False)
    executable: bool = False

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if (self.text is None) == (self.base64 is None):
            raise ValueError("needs exactly one of text and base64")
        self.data()
        return self

    def data(self) -> bytes:
        if self.text is not None:
            try:
                return self.text.encode()
            except UnicodeEncodeError:
                raise ValueError("text holds half a character; use base64 for bytes") from None
        try:
            return base64.b64decode(self.base64 or "", validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("is not base64") from None


def _file(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


Files = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_path)],
        Annotated[File, BeforeValidator(_file)],
    ],
    Field(max_length=200),
]


class _Program(_Model):
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
    """One candidate. A `timeout` of its own wins over the race's `branch_timeout`."""

    name: BranchName
    stdin: Annotated[str, Field(max_length=1_000_000)] | None = None
    timeout: Seconds | None = None


class ExitCodeJudge(_Model):
    """A branch that ends with 0 scores 1, any other has failed with score 0."""

    type: Literal["exit_code"] = "exit_code"


class CommandJudge(_Program):
    """The last number that this prints is the score. It runs in the branch's own sandbox and working directory, when
    the branch has ended with 0; its files are written only then. A branch can leave modules in the working directory
    that an interpreter would load by name: score with `python -I` and the like."""

    type: Literal["command"]
    timeout: Seconds = 60.0


_LATER_JUDGES: Final = ("regex", "file", "json", "plugin", "module")


def _known_judge(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") in _LATER_JUDGES:
        raise ValueError("this type of judge is not available yet; there are exit_code and command")
    return value


Judge = Annotated[
    Annotated[ExitCodeJudge | CommandJudge, Field(discriminator="type")],
    BeforeValidator(_known_judge),
]


def _not_yet(value: str | None) -> str | None:
    if value is not None:
        raise ValueError("not available yet")
    return value


def _no_promotion(value: str) -> str:
    if value != "none":
        raise ValueError("promotion is not available yet; leave it out or say none")
    return value


def _filesystem(value: str) -> str:
    if value != "filesystem":
        raise ValueError("only filesystem checkpoints are available yet")
    return value


Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,199}$")]
ImageName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,199}$")]


class Source(_Model):
    """What the branches start from: exactly one of a session (its sandbox), a snapshot, and a registered image."""

    session_id: Identifier | None = None
    snapshot_id: Identifier | None = None
    image: ImageName | None = None
    sandbox_id: Annotated[Identifier | None, AfterValidator(_not_yet)] = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(value is not None for value in (self.session_id, self.snapshot_id, self.image)) != 1:
            raise ValueError("needs exactly one of session_id, snapshot_id and image")
        return self


class RaceRequest(_Model):
    """One race. Either `branches`, or `n` copies of one `command` or `script` in which `{i}` is the copy's index."""

    source: Source
    environment_id: Identifier | None = None
    setup: Script | None = None
    setup_timeout: Seconds = 300.0
    branches: Annotated[tuple[Branch, ...], Field(min_length=1, max_length=MOST_BRANCHES)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_BRANCHES)] | None = None
    command: Command | None = None
    script: Script | None = None
    files: Files = Field(default_factory=dict)
    env: Variables = Field(default_factory=dict)
    judge: Judge = Field(default_factory=ExitCodeJudge)
    higher_is_better: bool = True
    accept: float | None = None
    min_score: float | None = None
    max_parallel: Annotated[int, Field(ge=1, le=MOST_BRANCHES)] | None = None
    branch_timeout: Seconds = 300.0
    deadline: Seconds | None = None
    checkpoint: Annotated[Literal["filesystem", "memory", "live"], AfterValidator(_filesystem)] = "filesystem"
    promote: Annotated[Literal["none", "workspace", "snapshot", "keep"], AfterValidator(_no_promotion)] = "none"
    dry_run: bool = False

    @model_validator(mode="after")
    def _one_way_to_say_the_branches(self) -> Self:
        if (self.branches is None) == (self.n is None):
            raise ValueError("needs exactly one of branches and n")
        if self.n is not None and (self.command is None) == (self.script is None):
            raise ValueError("n needs exactly one of command and script")
        if self.branches is not None:
            if self.command is not None or self.script is not None or self.files or self.env:
                raise ValueError("command, script, files and env belong to n; with branches each has its own")
            names = [branch.name for branch in self.branches]
            if len(set(names)) != len(names):
                raise ValueError("two branches have the same name")
        return self

    def candidates(self) -> tuple[Branch, ...]:
        """The branches in order, the `n` copies written out (their names are b0, b1, …)."""
        if self.branches is not None:
            return self.branches
        return tuple(
            Branch(
                name=f"b{index}",
                command=self.command and tuple(part.replace("{i}", str(index)) for part in self.command),
                script=self.script and self.script.replace("{i}", str(index)),
                files=self.files,
                env=self.env,
            )
            for index in range(self.n or 0)
        )


BranchStatus = Literal["ok", "failed", "timed_out", "cancelled", "not_started"]


class BranchReport(_Model):
    """What became of one branch. `ok` means that it ended, was scored and may win; `score` and `exit_code` are null
    where there is none. The tails are the last characters of its output."""

    name: str
    index: int
    status: BranchStatus
    score: float | None = None
    exit_code: int | None = None
    reason: str | None = None
    boot_seconds: float | None = None
    run_seconds: float | None = None
    stdout_tail: str = ""
    stderr_tail: str = ""


Phase = Literal["source", "setup", "checkpoint", "boot", "files", "run", "judge", "reap"]


class Span(_Model):
    """One stretch of the race, in seconds since it began. `branch` is null for what the race does as a whole."""

    phase: Phase
    branch: str | None
    start: float
    end: float


class RaceReport(_Model):
    """One race. `winner` is a branch's name. `checkpoint` is the snapshot that the branches started from. `reaped`
    and `leftovers` hold names of sandboxes and ids of snapshots; a leftover is one whose end could not be confirmed."""

    race_id: str
    winner: str | None
    branches: tuple[BranchReport, ...]
    checkpoint: str | None
    reaped: tuple[str, ...]
    leftovers: tuple[str, ...]
    timeline: tuple[Span, ...]
    seconds: float
    deadline_passed: bool = False
    dry_run: bool = False
