"""The small language the scripted brain understands: one line, one step (or a sentence of a few steps).

    $ COMMAND                        bash, exactly as written
    run COMMAND                      the same
    read F                           also: show, print, cat, open
    write F: TEXT                    `\\n` stands for a new line
    edit F: OLD => NEW
    glob PATTERN
    grep PATTERN [in DIRECTORY]
    list [the] files [in DIRECTORY]  glob
    search the web for QUERY         web_search, answered by the server
    fetch URL                        web_fetch, answered by the server
    call TOOL {JSON}                 any tool by name, the agent's custom tools included
    fork {YAML}                      fork_best_of_n with this input, on one line: fork {branches: [{name: a,
                                     script: make}, {name: b, script: make fast}], promote: workspace}
    create F with 'TEXT' then read it back
                                     and variants: make/write/add, containing/that says, and then, double quotes

Words are matched without regard to case, `it` and `the file` mean the file named last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import yaml

from infra.local.claude.brain import ToolCall

HELP = __doc__.split("\n\n")[1]


@dataclass(frozen=True)
class ScriptedCalls:
    """The calls to make, one after another, and the lines nobody understood."""

    calls: tuple[ToolCall, ...]
    ignored: tuple[str, ...]


_FILE = r"[`'\"]?(?P<file>[^\s`'\":,]*[^\s`'\":,.!?])[`'\"]?"
_QUOTED = r"(?:'(?P<a>[^']*)'|\"(?P<b>[^\"]*)\"|`(?P<c>[^`]*)`|‘(?P<d>[^’]*)’|“(?P<e>[^”]*)”)"
_POLITE = re.compile(r"^(?:please|now|first|next|finally|can you|could you|and)[\s,]+", re.IGNORECASE)
_CLAUSES = re.compile(
    r"[\s,;.]*\b(?:and\s+)?then\b[\s,]*|[\s,;.]+and\s+(?=(?:read|show|print|cat|run|list|create|edit|open)\b)",
    re.IGNORECASE,
)
_IT = ("it", "it back", "the file", "the file back", "that file", "it again")

_Build = Callable[[re.Match[str], str | None], ToolCall | None]


def parse(text: str) -> ScriptedCalls:
    """What a message asks for; `calls` is empty if nothing in it was understood."""
    calls: list[ToolCall] = []
    ignored: list[str] = []
    last_file: str | None = None
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("```"):
            continue
        steps = _line(line, last_file)
        if steps is None:
            ignored.append(line)
            continue
        calls += steps
        last_file = next((c.input["file_path"] for c in reversed(calls) if "file_path" in c.input), last_file)
    return ScriptedCalls(tuple(calls), tuple(ignored))


def _line(line: str, last_file: str | None) -> list[ToolCall] | None:
    if line.startswith("$ "):
        return [ToolCall("bash", {"command": line[2:].strip()})]
    whole = _clause(line, last_file, _LINES)
    if whole is not None:
        return [whole]
    steps: list[ToolCall] = []
    for clause in _split(line):
        step = _clause(clause, last_file, _SENTENCES) or _clause(clause, last_file, _LINES)
        if step is None:
            return None
        steps.append(step)
        last_file = step.input.get("file_path", last_file)
    return steps or None


def _split(line: str) -> list[str]:
    """Cut at `then` and `and read ...`, but not inside quotes."""
    hidden = re.sub(_QUOTED, lambda match: "\x00" * len(match.group()), line)
    clauses, start = [], 0
    for cut in _CLAUSES.finditer(hidden):
        clauses.append(line[start : cut.start()])
        start = cut.end()
    clauses.append(line[start:])
    return [clause.strip() for clause in clauses if clause.strip(" .,;!")]


def _clause(clause: str, last_file: str | None, patterns: list[tuple[re.Pattern[str], _Build]]) -> ToolCall | None:
    text = clause
    while (polite := _POLITE.sub("", text)) != text:
        text = polite
    for pattern, build in patterns:
        match = pattern.fullmatch(text)
        if match is not None:
            return build(match, last_file)
    return None


def _quoted(match: re.Match[str]) -> str:
    return next(value for name in "abcde" if (value := match.group(name)) is not None)


def _file(match: re.Match[str], last_file: str | None) -> str | None:
    return last_file if match["file"].lower() in _IT else match["file"]


def _read(match: re.Match[str], last_file: str | None) -> ToolCall | None:
    path = last_file if match["it"] else match["file"]
    return ToolCall("read", {"file_path": path}) if path else None


def _write(match: re.Match[str], _: str | None) -> ToolCall:
    content = match["text"].replace("\\n", "\n")
    return ToolCall("write", {"file_path": match["file"], "content": content})


def _edit(match: re.Match[str], _: str | None) -> ToolCall:
    pair = {"old_string": match["old"], "new_string": match["new"]}
    return ToolCall("edit", {"file_path": match["file"], **pair})


def _create(match: re.Match[str], last_file: str | None) -> ToolCall | None:
    path = _file(match, last_file)
    return ToolCall("write", {"file_path": path, "content": _quoted(match)}) if path else None


def _grep(match: re.Match[str], _: str | None) -> ToolCall:
    where = {"path": match["where"]} if match["where"] else {}
    return ToolCall("grep", {"pattern": match["pattern"].strip("'\"`"), **where})


def _list(match: re.Match[str], _: str | None) -> ToolCall:
    where = {"path": match["where"]} if match["where"] else {}
    return ToolCall("glob", {"pattern": "*", **where})


def _call(match: re.Match[str], _: str | None) -> ToolCall | None:
    try:
        given = json.loads(match["json"] or "{}")
    except ValueError:
        return None
    return ToolCall(match["name"], given) if isinstance(given, dict) else None


def _fork(match: re.Match[str], _: str | None) -> ToolCall | None:
    try:
        given = yaml.safe_load(match["yaml"])
    except yaml.YAMLError:
        return None
    return ToolCall("fork_best_of_n", given) if isinstance(given, dict) else None


def _bash(match: re.Match[str], _: str | None) -> ToolCall:
    return ToolCall("bash", {"command": match["command"].strip("`")})


def _input(tool: str, key: str) -> _Build:
    return lambda match, _: ToolCall(tool, {key: match["value"].strip("'\"`")})


def _patterns(table: dict[str, _Build]) -> list[tuple[re.Pattern[str], _Build]]:
    return [(re.compile(text, re.IGNORECASE | re.DOTALL), build) for text, build in table.items()]


_IT_WORDS = r"(?P<it>it|the file|that file)(?:\s+(?:back|again))?"
_LINES = _patterns(
    {
        rf"(?:read|show|print|cat|open)\s+(?:me\s+)?(?:{_IT_WORDS}|(?:the\s+file\s+)?{_FILE})(?:\s+back)?[.!?]?": _read,
        r"write\s+(?P<file>[^\s:]+):\s?(?P<text>.*)": _write,
        r"edit\s+(?P<file>[^\s:]+):\s?(?P<old>.*?)\s=>\s(?P<new>.*)": _edit,
        r"glob\s+(?P<value>\S+)": _input("glob", "pattern"),
        r"grep\s+(?P<pattern>'[^']*'|\"[^\"]*\"|.+?)(?:\s+in\s+(?P<where>\S+))?": _grep,
        r"list\s+(?:the\s+|all\s+)?files(?:\s+in\s+(?P<where>\S+))?[.!?]?": _list,
        r"(?:search\s+(?:the\s+)?web\s+for|web_search)\s+(?P<value>.+)": _input("web_search", "query"),
        r"(?:web_fetch|fetch)\s+(?P<value>https?://\S+)": _input("web_fetch", "url"),
        r"call\s+(?P<name>[A-Za-z0-9_-]+)\s*(?P<json>\{.*\})?": _call,
        r"fork\s+(?P<yaml>\{.*\})": _fork,
        r"run:?\s+(?P<command>.+)": _bash,
    }
)
_KIND = r"(?:a\s+|the\s+)?(?:new\s+)?(?:text\s+)?(?:file\s+)?(?:called\s+|named\s+)?"
_WITH = r"(?:with|containing|that\s+(?:says|contains)|saying)\s+(?:the\s+)?(?:text|contents?|words?|line)?\s*"
_SENTENCES = _patterns(
    {
        rf"(?:create|make|write|add)\s+{_KIND}{_FILE}\s+{_WITH}{_QUOTED}(?:\s+in(?:side)?\s+it)?[.!?]?": _create,
        rf"(?:write|put)\s+{_QUOTED}\s+(?:in|into|to)\s+{_KIND}{_FILE}[.!?]?": _create,
    }
)
