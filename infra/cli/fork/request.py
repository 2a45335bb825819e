"""What `fork` was asked for: a file and flags, put together into one request of the model in shared/races/request.py.

A flag wins over the file's field. Where a flag says another kind of thing than the file (a source, the branches, a
promotion), the file's fields that belong to the old kind go with it. What is wrong is said by its field, as the served
function says it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from functions.requests import BODY_LIMIT, HttpError, read_model
from shared.errors import HandsError
from shared.races.request import RaceRequest

STANDARD_INPUT: Final = "-"


class BadInput(HandsError):
    """What was asked for cannot be a race. The text names the field, the flag or the file."""


@dataclass(frozen=True, slots=True)
class Flags:
    """The command line. None and () mean that the flag was not given; seconds where it is a time."""

    session: str | None = None
    sandbox: str | None = None
    snapshot: str | None = None
    image: str | None = None
    environment: str | None = None
    setup: str | None = None
    tries: Sequence[str] = ()
    score: str | None = None
    lower: bool = False
    accept: float | None = None
    min_score: float | None = None
    timeout: float | None = None
    deadline: float | None = None
    parallel: int | None = None
    promote: str | None = None
    on_conflict: str | None = None
    keep: str | None = None
    artifacts: Sequence[str] = ()
    diff: bool = False
    dry_run: bool = False


def read_request(file: str, flags: Flags) -> RaceRequest:
    """The race. `file` is a path, `-` for standard input, or empty for flags alone. Raises BadInput."""
    fields = _with_flags(_fields_of(file) if file else {}, flags)
    if not fields:
        raise BadInput("nothing was asked for: name a file, or --session and --try 'name=command' (--help lists all)")
    fields.setdefault("source", {})
    try:
        body = json.dumps(fields).encode()
    except (TypeError, ValueError, RecursionError):
        raise BadInput(f"{_name(file)} holds a value that JSON cannot say, such as a date: put it in quotes") from None
    if len(body) > BODY_LIMIT:
        raise BadInput(f"the request may have at most {BODY_LIMIT} bytes")
    try:
        return read_model(RaceRequest, body)
    except HttpError as error:
        raise BadInput(error.message) from None


# ------------------------------------------------------------------------------------------------------------ the file


class _Loader(yaml.SafeLoader):
    """YAML's plain types. A name that is there twice is an error: one of the two would be passed over in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(getattr(key, "value", ""))
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, "a field is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _fields_of(file: str) -> dict[str, Any]:
    """JSON is YAML, too."""
    text = _text_of(file)
    try:
        found = yaml.load(text, _Loader)  # noqa: S506  # it is a SafeLoader: plain types only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise BadInput(f"{_name(file)} is not YAML or JSON:{where} {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise BadInput(f"{_name(file)} is not YAML or JSON") from None
    if not isinstance(found, dict):
        raise BadInput(f"{_name(file)} must hold fields, such as `source: {{session_id: sesn_...}}`")
    return found


def _text_of(file: str) -> str:
    try:
        if file == STANDARD_INPUT:
            data = sys.stdin.buffer.read(BODY_LIMIT + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(BODY_LIMIT + 1)
    except OSError as error:
        raise BadInput(f"{_name(file)} cannot be read ({error.strerror})") from None
    if len(data) > BODY_LIMIT:
        raise BadInput(f"{_name(file)} has more than {BODY_LIMIT} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadInput(f"{_name(file)} is not UTF-8") from None


def _name(file: str) -> str:
    return "standard input" if file == STANDARD_INPUT else file or "the command line"


# ----------------------------------------------------------------------------------------------------------- the flags


def _with_flags(fields: dict[str, Any], flags: Flags) -> dict[str, Any]:
    source = _given(session_id=flags.session, sandbox_id=flags.sandbox, snapshot_id=flags.snapshot, image=flags.image)
    if source:
        fields["source"] = source
    if flags.tries:
        for name in ("n", "params", "command", "script"):
            fields.pop(name, None)
        fields["branches"] = [_branch(each) for each in flags.tries]
    if flags.score is not None:
        fields.pop("judges", None)
        fields["judge"] = {"type": "command", "script": flags.score}
    _promotion(fields, flags)
    fields |= _given(
        environment_id=flags.environment,
        setup=flags.setup,
        higher_is_better=False if flags.lower else None,
        accept=flags.accept,
        min_score=flags.min_score,
        branch_timeout=flags.timeout,
        deadline=flags.deadline,
        max_parallel=flags.parallel,
        artifacts=list(flags.artifacts) or None,
        diff=flags.diff or None,
        dry_run=flags.dry_run or None,
    )
    return fields


def _promotion(fields: dict[str, Any], flags: Flags) -> None:
    promote = flags.promote or ("keep" if flags.keep is not None else None)
    if promote is not None:
        fields["promote"] = promote
        if promote != "keep":
            fields.pop("keep", None)
        if promote != "workspace":
            fields.pop("on_conflict", None)
    if flags.keep is not None:
        kept = fields.get("keep")
        fields["keep"] = {**(kept if isinstance(kept, dict) else {}), "name": flags.keep}
    if flags.on_conflict is not None:
        fields["on_conflict"] = flags.on_conflict


def _branch(text: str) -> dict[str, str]:
    name, equals, script = text.partition("=")
    if not equals or not name.strip() or not script.strip():
        raise BadInput("--try: is written 'name=command', such as --try 'fast=make -j4 test'")
    return {"name": name.strip(), "script": script.strip()}


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
