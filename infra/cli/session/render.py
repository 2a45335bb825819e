"""What a session's event looks like to a person: one event in, at most a few short lines out.

Events are the JSON objects of docs/wire/anthropic.md#82-event-json. Nothing here knows where they come from. Each text
in them may hold anything; `clean` is what a terminal sees of it, and `Screen` (screen.py) lets nothing else through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from shared.texts import printable

Event = Mapping[str, Any]

_INPUT_LIMIT: Final = 160
_RESULT_LIMIT: Final = 500
_RESULT_LINES: Final = 8
LONGEST_TEXT: Final = 20_000
"""Characters of one text that are looked at; less of it is shown."""
_MAIN_INPUTS: Final = ("command", "file_path", "path", "pattern", "query", "url")
_SEQUENCES: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_MARKS: Final = ("·", "→", "←", "✗", ">", "?", "session ", "go on:", "watch:")
"""How lines of our own begin: a line of the agent's that begins so is set in."""
_LONGEST_MESSAGE: Final = 200_000
_LONGEST_WORD: Final = 60
_STOPS: Final = {
    "retries_exhausted": "the model could not be reached, and no more tries are made; send the message again later",
    "budget_reached": "the session's budget is used up: give it a larger one, or start a new session",
    "refusal": "the model refused to go on",
}
_RETRIES: Final = {
    "retrying": "the service tries again by itself",
    "exhausted": "the service tries no more; you may send the message again",
    "terminal": "the session ends with it; start a new one",
}


class LineStyle(StrEnum):
    """How a line stands out; also the name of its rich style."""

    QUIET = "dim"
    STRONG = "bold"
    PLAIN = "none"
    WRONG = "red"


@dataclass(frozen=True, slots=True)
class Line:
    text: str
    look: LineStyle = LineStyle.PLAIN


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
                    yield Line("· running", LineStyle.QUIET)
                self._in_turn = True
            case "agent.thinking":
                if not self._thinking:
                    yield Line("· thinking", LineStyle.QUIET)
            case "agent.message":
                text = clean(text_of(event.get("content")), _LONGEST_MESSAGE).strip()
                if text:
                    yield Line(f"\n{_set_in(text)}\n")
            case "agent.tool_use" | "agent.custom_tool_use" | "agent.mcp_tool_use":
                yield from self._call(event)
            case "user.tool_result" | "agent.tool_result" | "user.custom_tool_result" | "agent.mcp_tool_result":
                yield from self._result(event)
            case "session.status_idle":
                yield from self._idle(event)
            case "session.status_rescheduled":
                yield Line("· waiting to try again: the service does it by itself", LineStyle.QUIET)
            case "session.status_terminated":
                yield Line("· the session has ended (terminated)", LineStyle.WRONG)
            case "session.deleted":
                yield Line("· the session was deleted", LineStyle.WRONG)
            case "session.error":
                yield Line(f"✗ session error: {_error(event)}", LineStyle.WRONG)
            case "user.interrupt":
                yield Line("· interrupted", LineStyle.QUIET)
            case "user.tool_confirmation":
                yield from self._confirmation(event)

    def _call(self, event: Event) -> Iterator[Line]:
        summary = summarise(event.get("input"))
        yield Line(f"→ {_word(event.get('name', '?'))}" + (f"  {summary}" if summary else ""), LineStyle.STRONG)
        if event.get("evaluated_permission") == "ask":
            yield Line("  it waits for a person to allow it", LineStyle.WRONG)

    def _confirmation(self, event: Event) -> Iterator[Line]:
        if event.get("result") == "deny":
            reason = clean(str(event.get("deny_message") or "")).replace("\n", " ")
            yield Line(f"· denied{f': {shorten(reason, _INPUT_LIMIT, 1)}' if reason else ''}", LineStyle.QUIET)
        else:
            yield Line("· allowed", LineStyle.QUIET)

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
        yield Line(
            f"{mark} {body or '(no output)'}".replace("\n", "\n  "), LineStyle.WRONG if wrong else LineStyle.QUIET
        )

    def _idle(self, event: Event) -> Iterator[Line]:
        reason = stop_reason(event)
        if reason == "requires_action":
            return
        self._in_turn = False
        if reason == "end_turn":
            yield Line("· done", LineStyle.QUIET)
        else:
            words = _STOPS.get(reason)
            yield Line(f"· done ({_word(reason)})" + (f": {words}" if words else ""), LineStyle.WRONG)


def stop_reason(event: Event) -> str:
    """`stop_reason.type` of an idle event; a missing one is `unknown`."""
    reason = event.get("stop_reason")
    return str(reason.get("type", "unknown")) if isinstance(reason, Mapping) else "unknown"


def text_of(content: Any) -> str:
    """The text in an event's content: blocks of other kinds appear as `[image/png, 12 kB]`, `[redacted]`, ..."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        text = content.get("text")
        return text if isinstance(text, str) else f"[{_named(content)}]"
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


def clean(text: str, longest: int = LONGEST_TEXT) -> str:
    """Printable lines and tabs: terminal sequences are dropped, whatever else cannot be shown is escaped."""
    return printable(_SEQUENCES.sub("", text.replace("\r\n", "\n")), longest, keep="\n\t")


def _one_line(text: str) -> str:
    return clean(text.strip().replace("\n", "⏎"))


def _word(value: object) -> str:
    """A name that the service or the agent chose: one short line."""
    return printable(str(value), _LONGEST_WORD)


def _set_in(text: str) -> str:
    return "\n".join(f"  {line}" if line.startswith(_MARKS) else line for line in text.split("\n"))


def _named(block: Mapping[str, Any]) -> str:
    """A block that is no text, with what is known of its size."""
    source = block.get("source")
    if not isinstance(source, Mapping):
        return _word(block.get("type", "block"))
    kind = _word(source.get("media_type") or block.get("type", "block"))
    data = source.get("data")
    if isinstance(data, str):
        encoded = source.get("type") == "base64"
        return f"{kind}, {size_in_words(len(data) * 3 // 4 - data[-2:].count('=') if encoded else len(data.encode()))}"
    where = source.get("url") or source.get("file_id")
    return f"{kind} at {shorten(_one_line(str(where)), _INPUT_LIMIT, 1)}" if where else kind


def size_in_words(size: float) -> str:
    """Bytes for people, in powers of 1,000."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _error(event: Event) -> str:
    error = event.get("error")
    if not isinstance(error, Mapping):
        return "no details"
    retry = error.get("retry_status")
    status = ""
    if isinstance(retry, Mapping):
        words = _RETRIES.get(str(retry.get("type")))
        status = f" ({_word(retry.get('type'))}{f': {words}' if words else ''})"
    text = shorten(clean(f"{_word(error.get('type', 'unknown'))}: {error.get('message', '')}"), _RESULT_LIMIT, 3)
    return text.replace("\n", "\n  ") + status


def _first(event: Event, *names: str) -> Any:
    return next((event[name] for name in names if event.get(name)), "")
