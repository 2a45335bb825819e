"""Screens of the demos: they keep what the tools answered, and show the session or not."""

from __future__ import annotations

from infra.cli.session.render import Event, Line, LineStyle, text_of
from infra.cli.session.screen import Screen


class Watcher(Screen):
    """The screen, and what the tools answered."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[str] = []

    def show(self, event: Event) -> None:
        if event.get("type") in ("user.tool_result", "agent.tool_result"):
            self.results.append(text_of(event.get("content")))
        super().show(event)


class QuietWatcher(Watcher):
    """Shows nothing: its demo says itself what waits, and for what."""

    def say(self, line: Line) -> None:
        """Nothing is said."""

    def remark(self, text: str, look: LineStyle = LineStyle.QUIET) -> None:
        """Nothing is said."""
