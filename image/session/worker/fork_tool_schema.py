"""The agent's own tool `fork_best_of_n`: what it is called, what it takes, and what the agent is told afterwards.

The one definition: `make agent` gives it to the agent, and the worker answers to it. Standard library only; the call
itself is in forking.py. The functions check every value once more, so what is said here is for a model to read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

NAME: Final = "fork_best_of_n"
# seconds; the rest of a tool call's 150 (docs/wire/anthropic.md#5-session-tool-runner) is for its ends
LONGEST_RACE: Final = 120.0
LONGEST_RACE_TO_PROMOTE: Final = 105.0  # bringing the changes back takes time, too
_LONGEST_TEXT: Final = 12_000  # characters of all output tails together
_LONGEST_TAIL: Final = 1_500
_LONGEST_MESSAGE: Final = 1_500
_LONGEST_DIFFS: Final = 12_000  # characters of all patches together
_LONGEST_FINDING: Final = 500

DESCRIPTION: Final = f"""\
Try several candidates side by side, each in its own copy of this sandbox's files, and learn which one is best. Use it \
where you have two or more ideas (fixes, prompts, parameters) and a way to score them. The copies start from the files \
as they are now; running processes, shell variables and anything outside the disk are not in them. Nothing that a \
candidate does reaches your own files, unless you ask for promote: workspace, which brings the winner's changes to \
the working directory back. With rounds the candidates build on the best of the round before. A race takes at most \
{LONGEST_RACE:g} seconds, {LONGEST_RACE_TO_PROMOTE:g} with promote, in all rounds together. One race at a time."""

_TEXT: Final = {"type": "string"}
_FILES: Final = {
    "type": "object",
    "additionalProperties": _TEXT,
    "description": "Files to write before it runs: path below the working directory -> text.",
}
_ENV: Final = {"type": "object", "additionalProperties": _TEXT, "description": "Environment variables."}
_SECONDS: Final = {"type": "number", "exclusiveMinimum": 0}
_SCRIPT: Final = {"type": "string", "description": "Shell script, run by sh in the working directory."}

_PARAMETERS: Final = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean"]},
    "description": "Values: {name} in the script stands for one, and the variable PARAM_name holds it.",
}
_JUDGE: Final = {
    "type": "object",
    "description": (
        "How a candidate that ended with exit code 0 is scored. exit_code (the default): 1 for it. command: "
        "script runs in a fresh copy with the candidate's changes; the score is what it writes to the file "
        "$SCORE_FILE, or its last line (one number, or score=NUMBER), or what json_path names in the JSON that "
        "it prints. junit: script runs tests in such a copy and leaves JUnit XML at path; the score is the share of "
        "tests that passed. regex: the pattern's group in the candidate's output. file: the number in a file of the "
        "candidate, at json_path if given."
    ),
    "properties": {
        "type": {"type": "string", "enum": ["exit_code", "command", "junit", "regex", "file"]},
        "script": _SCRIPT,
        "files": {**_FILES, "description": "Written when the candidate and all that it started have ended."},
        "env": _ENV,
        "timeout": _SECONDS,
        "pattern": _TEXT,
        "stream": {"type": "string", "enum": ["stdout", "stderr"]},
        "group": {"type": ["integer", "string"]},
        "path": _TEXT,
        "json_path": _TEXT,
    },
    "required": ["type"],
}

INPUT_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "branches": {
            "type": "array",
            "minItems": 1,
            "description": (
                "The candidates. Each needs a name of its own and a script (or a command). Or leave them out and give "
                "params and one script."
            ),
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "Letters, digits, dot, dash and underscore."},
                    "script": _SCRIPT,
                    "command": {"type": "array", "items": _TEXT, "description": "Program and arguments, no shell."},
                    "files": _FILES,
                    "env": _ENV,
                    "params": _PARAMETERS,
                    "timeout": {**_SECONDS, "description": "Seconds that this candidate may run."},
                },
                "required": ["name"],
            },
        },
        "params": {
            "type": "array",
            "minItems": 1,
            "items": _PARAMETERS,
            "description": (
                "Instead of branches: one candidate for each of these objects, named b0, b1 and so on, all with this "
                "script. All have the same names, and the script uses each."
            ),
        },
        "script": {**_SCRIPT, "description": "With params: the script of every candidate, run by sh."},
        "files": {**_FILES, "description": "With params: files of every candidate, path -> text."},
        "env": {**_ENV, "description": "With params: environment variables of every candidate."},
        "judge": _JUDGE,
        "judges": {
            "type": "array",
            "minItems": 1,
            "maxItems": 5,
            "description": (
                "Instead of judge: several, in order. The score is the mean by weight; a candidate that misses a gate "
                "has failed, and later judges do not run for it."
            ),
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "A name of its own."},
                    "judge": _JUDGE,
                    "weight": {"type": "number", "minimum": 0, "description": "Default 1; 0: a gate alone."},
                    "gate": {"type": "number", "description": "The score that must be reached."},
                },
                "required": ["name", "judge"],
            },
        },
        "diff": {
            "type": "boolean",
            "description": "true: show each candidate's changes of the working directory as a patch, the end cut off.",
        },
        "higher_is_better": {"type": "boolean", "description": "false: the lowest score wins. Default true."},
        "accept": {"type": "number", "description": "The first candidate that reaches this score ends the race."},
        "min_score": {"type": "number", "description": "A candidate that does not reach this cannot win."},
        "setup": {"type": "string", "description": "Shell script that runs once, before the candidates are forked."},
        "branch_timeout": {**_SECONDS, "description": "Seconds that each candidate may run."},
        "rounds": {
            "type": "integer",
            "minimum": 1,
            "maximum": 10,
            "description": (
                "The candidates run again, so many times in all, each time from the files of the best of the round "
                "before (BRANCH_ROUND says which round it is). The candidates of all rounds together count. Default 1."
            ),
        },
        "top": {
            "type": "integer",
            "minimum": 1,
            "description": "With rounds: the next round starts from so many of the best. Default 1.",
        },
        "max_sandbox_seconds": {
            **_SECONDS,
            "description": "The race ends when its copies have lived for so long, in all rounds together.",
        },
        "deadline": {**_SECONDS, "description": f"Seconds for the whole race, at most {LONGEST_RACE:g}."},
        "promote": {
            "type": "string",
            "enum": ["none", "workspace"],
            "description": "workspace: bring the winner's changes to the working directory into yours. Default none.",
        },
        "on_conflict": {
            "type": "string",
            "enum": ["refuse", "theirs", "ours"],
            "description": (
                "For promote workspace, where you changed the same file meanwhile. refuse (the default): promote "
                "nothing; theirs: the winner's version; ours: yours."
            ),
        },
    },
}


class Unusable(ValueError):
    """An input that is not sent. The text is for the agent."""


def definition() -> dict[str, Any]:
    """The tool as the agents API takes it (docs/wire/anthropic.md#7-agents-api)."""
    return {"type": "custom", "name": NAME, "description": DESCRIPTION, "input_schema": dict(INPUT_SCHEMA)}


def request_of(given: object) -> dict[str, Any]:
    """The body to send for the agent's input. The functions fill in the session, and a deadline where there is none.

    Raises Unusable.
    """
    if not isinstance(given, dict):
        raise Unusable("the input must be an object with branches, or with params and a script")
    known = INPUT_SCHEMA["properties"]
    unknown = sorted(str(name)[:80] for name in given if name not in known)
    if unknown:
        raise Unusable(f"unknown field {unknown[0]!r}; there are {', '.join(known)}")
    if not given.get("branches") and not given.get("params"):
        raise Unusable("branches: give at least one candidate, each with a name and a script; or params and one script")
    deadline = given.get("deadline")
    if isinstance(deadline, int | float) and deadline > LONGEST_RACE:
        raise Unusable(
            f"deadline: a tool call ends after 150 seconds, so a race may take {LONGEST_RACE:g} at most; "
            f"try fewer or shorter candidates"
        )
    return {name: value for name, value in given.items() if value is not None}


def text_of(report: Mapping[str, Any]) -> str:
    """What the agent reads of a race's report: the winner first, then every candidate with the end of its output."""
    branches: Sequence[Mapping[str, Any]] = report["branches"]
    winner = report["winner"]
    lines = [f"Winner: {winner}" if winner else "No candidate won."]
    if report.get("deadline_passed"):
        lines[0] += " (The race's deadline passed: this is what finished by then.)"
    if report.get("budget_spent"):
        lines[0] += " (Its max_sandbox_seconds are spent: this is what finished by then.)"
    if report.get("cancelled"):
        lines[0] += " (The race was cancelled: this is what finished by then.)"
    if report.get("promotion"):
        lines.append(_promotion(report["promotion"]))
    longest = min(_LONGEST_TAIL, _LONGEST_TEXT // max(1, len(branches)) // 2)
    # The winner before the others, which keep their order.
    for branch in sorted(branches, key=lambda branch: branch["name"] != winner):
        lines.append("")
        lines.append(_headline(branch))
        for stream in ("stdout", "stderr", "judge"):
            tail = str(branch.get(f"{stream}_tail") or "").rstrip()
            if tail:
                cut = "…" if len(tail) > longest else ""
                lines.append(f"{stream}: {cut}{tail[-longest:]}")
        lines += _findings(branch, _LONGEST_DIFFS // max(1, len(branches)))
    return "\n".join(lines)


def text_of_refusal(status: int, body: bytes) -> str:
    """What the agent reads where no race was run. Our messages quote no secret (functions/requests.py)."""
    try:
        error = json.loads(body)["error"]
        message = f"{error['message']}"
    except (ValueError, TypeError, KeyError, RecursionError):
        message = "no reason given"
    return f"No race was run (HTTP {status}): {message[:_LONGEST_MESSAGE]}"


def _headline(branch: Mapping[str, Any]) -> str:
    facts = [f"[{branch['name']}] {branch['status']}"]
    if branch.get("score") is not None:
        facts.append(f"score {branch['score']:g}")
    if branch.get("exit_code") is not None:
        facts.append(f"exit code {branch['exit_code']}")
    if branch.get("parent"):
        facts.append(f"from {branch['parent']}")
    if branch.get("run_seconds") is not None:
        facts.append(f"{branch['run_seconds']:.1f} s")
    if branch.get("reason"):
        facts.append(str(branch["reason"])[:_LONGEST_MESSAGE])
    return ", ".join(facts)


def _findings(branch: Mapping[str, Any], longest_diff: int) -> list[str]:
    """What the report says beside the outputs: values, each judge's score, failed tests, changes."""
    lines = []
    for title, values in (("params", branch.get("params")), ("scores", branch.get("scores"))):
        if values:
            said = ", ".join(f"{name}={value}" for name, value in values.items())
            lines.append(f"{title}: {said[:_LONGEST_FINDING]}")
    if branch.get("failing"):
        lines.append(f"failed tests: {', '.join(map(str, branch['failing']))[:_LONGEST_FINDING]}")
    diff = str(branch.get("diff") or "").rstrip()
    if diff:
        cut = "\n…" if len(diff) > longest_diff else ""
        lines.append(f"changes:\n{diff[:longest_diff]}{cut}")
    if branch.get("diff_reason"):
        lines.append(str(branch["diff_reason"])[:_LONGEST_FINDING])
    return lines


def _promotion(promotion: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{promotion.get(kind, 0)} {kind}" for kind in ("added", "changed", "deleted"))
    conflicts = [str(path) for path in promotion.get("conflicts") or ()]
    named = f" Conflicts: {', '.join(conflicts[:20])[:_LONGEST_MESSAGE]}" if conflicts else ""
    if promotion["done"]:
        return f"The winner's changes are in your working directory now: {counts}.{named}"
    return f"The winner's changes were NOT brought into your working directory: {promotion.get('reason')}.{named}"
