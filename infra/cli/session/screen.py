"""Where a session's texts leave for a terminal, a pipe or a program: one door, and it lets printable text through."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Protocol

from rich.console import Console
from rich.text import Text

from infra.cli.session.render import Event, Line, LineStyle, Renderer
from shared.texts import printable

_LONGEST: int = 300_000


class Shown(Protocol):
    """What a command tells of a session: its events on standard output, its own remarks on standard error."""

    def show(self, event: Event) -> None: ...

    def say(self, line: Line) -> None: ...

    def remark(self, text: str, look: LineStyle = LineStyle.QUIET) -> None: ...


class Screen:
    """For people: two consoles. Plain in a pipe and with NO_COLOR."""

    def __init__(self, out: Console | None = None, err: Console | None = None) -> None:
        show_what_cannot_be_encoded()
        self._out = out or Console(highlight=False, soft_wrap=True)
        self._err = err or Console(stderr=True, highlight=False, soft_wrap=True)
        self._renderer = Renderer()

    def show(self, event: Event) -> None:
        """Nothing is shown of a `hands.*` event: people are told in words."""
        for line in self._renderer.lines(event):
            self.say(line)

    def say(self, line: Line) -> None:
        self._out.print(_text(line.text, line.look))

    def remark(self, text: str, look: LineStyle = LineStyle.QUIET) -> None:
        self._err.print(_text(text, look))


class JsonScreen:
    """For programs: each event as one line of JSON in ASCII, as the service sent it, and our own as `hands.*`."""

    def __init__(self) -> None:
        self._people = Screen()

    def show(self, event: Event) -> None:
        print(json.dumps(event), flush=True)

    def say(self, line: Line) -> None:
        """What people are told beside the events is in them already."""

    def remark(self, text: str, look: LineStyle = LineStyle.QUIET) -> None:
        self._people.remark(text, look)


def show_what_cannot_be_encoded() -> None:
    """A terminal that cannot show an arrow shows a question mark, and the command goes on."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # the suppress covers other streams


def _text(text: str, look: LineStyle) -> Text:
    return Text(printable(text, _LONGEST, keep="\n\t"), style=look.value)
