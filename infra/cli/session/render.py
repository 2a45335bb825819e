"""What a session's event looks like to a person: one event in, at most a few short lines out.

Events are the JSON objects of docs/wire/anthropic.md#82-event-json. Nothing here knows where they come from. Tool
output is the agent's, so it may hold anything: control characters are taken out before a terminal sees them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

Event = Mapping[str, Any]

_INPUT_LIMIT: Final = 160
_RESULT_LIMIT: Final = 500
_RESULT_LINES: Final = 8
_MAIN_INPUTS: Final = ("command", "file_path", "path", "pattern", "query", "url")
_CONTROLS: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b.|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Look(StrEnum):
    """How a line stands out; also the name of its rich style."""

    QUIET = "dim"
    STRONG = "bold"
    PLAIN = "none"
    WRONG = "red"


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    look: Look = Look.PLAIN


@dataclass
class Renderer:
    """Remembers just enough to say nothing twice: where the turn is, and the calls whose result was shown."""

    _in_turn: bool = False
    _thinking: bool = False
    _answered: set[str] = field(default_factory=set)

    def lines(self, event: Event) -> Iterator[Line]:
        """The lines for one event; none for the types that say nothing to a person, and for unknown ones."""
        shown = list(self._lines(event))
        if shown:
            self._thinking = event.get("type") == "agent.thinking"
        yield from shown

    def _lines(self, event: Event) -> Iterator[Line]:
        match event.get("type"):
            case "session.status_running":
                # Each tool round parks and resumes the session (docs/wire/anthropic.md#81-a-self-hosted-turn): saying
                # so each time is noise.
                if not self._in_turn:
                    yield Line("· running", Look.QUIET)
                self._in_turn = True
            case "agent.thinking":
                if not self._thinking:
                    yield Line("· thinking", Look.QUIET)
            case "agent.message":
                text = clean(text_of(event.get("content"))).strip()
                if text:
                    yield Line(f"\n{text}\n")
            case "agent.tool_use" | "agent.custom_tool_use" | "agent.mcp_tool_use":
                yield from self._call(event)
            case "user.tool_result" | "agent.tool_result" | "user.custom_tool_result" | "agent.mcp_tool_result":
                yield from self._result(event)
            case "session.status_idle":
                yield from self._idle(event)
            case "session.status_rescheduled":
                yield Line("· waiting to try again", Look.QUIET)
            case "session.status_terminated":
                yield Line("· the session has ended (terminated)", Look.WRONG)
            case "session.deleted":
                yield Line("· the session was deleted", Look.WRONG)
            case "session.error":
                yield Line(f"✗ session error: {_error(event)}", Look.WRONG)
            case "user.interrupt":
                yield Line("· interrupted", Look.QUIET)

    def _call(self, event: Event) -> Iterator[Line]:
        summary = summarise(event.get("input"))
        yield Line(f"→ {clean(str(event.get('name', '?')))}" + (f"  {summary}" if summary else ""), Look.STRONG)
        if event.get("evaluated_permission") == "ask":
            yield Line("  needs a confirmation, which this command cannot give", Look.WRONG)

    def _result(self, event: Event) -> Iterator[Line]:
        # The service may repeat a client's result as its own (docs/wire/anthropic.md#81-a-self-hosted-turn): one of
        # them is enough.
        call = str(_first(event, "tool_use_id", "custom_tool_use_id", "mcp_tool_use_id"))
        if call in self._answered:
            return
        self._answered.add(call)
        wrong = bool(event.get("is_error"))
        body = shorten(clean(text_of(event.get("content"))).strip("\n"), _RESULT_LIMIT, _RESULT_LINES)
        mark = "✗" if wrong else "←"
        yield Line(f"{mark} {body or '(no output)'}".replace("\n", "\n  "), Look.WRONG if wrong else Look.QUIET)

    def _idle(self, event: Event) -> Iterator[Line]:
        reason = stop_reason(event)
        if reason == "requires_action":
            return
        self._in_turn = False
        yield Line("· done" if reason == "end_turn" else f"· done ({reason})", Look.QUIET)


def stop_reason(event: Event) -> str:
    """`stop_reason.type` of an idle event; a missing one is `unknown`."""
    reason = event.get("stop_reason")
    return str(reason.get("type", "unknown")) if isinstance(reason, Mapping) else "unknown"


def text_of(content: Any) -> str:
    """The text in an event's content: blocks of other kinds appear as `[image]`, `[redacted]`, ..."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        text = content.get("text")
        return text if isinstance(text, str) else f"[{content.get('type', 'block')}]"
    if isinstance(content, list | tuple):
        return "".join(text_of(block) for block in content)
    return ""


def summarise(arguments: Any) -> str:
    """A tool's input on one line: its main argument first, the others as name=value."""
    if not isinstance(arguments, Mapping):
        return ""
    main = next((name for name in _MAIN_INPUTS if arguments.get(name)), None)
    parts = [] if main is None else [str(arguments[main])]
    parts += [f"{name}={value!r}" for name, value in arguments.items() if name != main and value is not None]
    return " ".join(shorten(_one_line(part), _INPUT_LIMIT, 1) for part in parts)


def shorten(text: str, characters: int, lines: int) -> str:
    """At most so much of a text, with a note of what was left out."""
    kept = "\n".join(text.split("\n")[:lines])[:characters]
    left_out = len(text) - len(kept)
    return f"{kept.rstrip()} … (+{left_out} characters)" if left_out else text


def clean(text: str) -> str:
    """Without control characters and terminal sequences, but for line breaks and tabs."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n"))


def _one_line(text: str) -> str:
    return clean(text.strip().replace("\n", "⏎"))


def _error(event: Event) -> str:
    error = event.get("error")
    if not isinstance(error, Mapping):
        return "no details"
    retry = error.get("retry_status")
    status = f" ({retry.get('type')})" if isinstance(retry, Mapping) else ""
    return shorten(clean(f"{error.get('type', 'unknown')}: {error.get('message', '')}"), _RESULT_LIMIT, 3) + status


def _first(event: Event, *names: str) -> Any:
    return next((event[name] for name in names if event.get(name)), "")
