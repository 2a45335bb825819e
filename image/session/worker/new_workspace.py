"""Tells the agent that its workspace is new where the session had worked in another one.

Where the functions replace a sandbox they tell it themselves. But one may be lost in other ways: it failed and a tick
deleted it, it slept for too long, somebody ended it. Then the fresh one looks like a session's first one. The session's
history, which the SDK reads to its end before the first call runs, tells them apart.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any, Final

from image.session.claim import NEW_WORKSPACE_FILE, NEW_WORKSPACE_TEXT
from image.session.worker.state_directory import StateDirectory

FIRST_USE: Final = "first-use"
"""In the state directory, with some bytes in it from the sandbox's first worker until its first call."""

_ANSWERED: Final = "user.tool_result"  # what workers post (docs/wire/anthropic.md#5-session-tool-runner)
_WHY: Final = "its earlier sandbox is gone"

log = logging.getLogger(__name__)


class NewWorkspace:
    """One worker's look at the history of its session."""

    def __init__(self, state: StateDirectory, workdir: str) -> None:
        self._state = state
        self._workdir = workdir
        self._worked_before = False
        self.in_question = bool(state.read(FIRST_USE, 1))
        """No call has run in this sandbox."""

    def look(self, page: bytes) -> None:
        """`page`: of the session's history, as JSON."""
        if not self.in_question or self._worked_before:
            return
        try:
            events: Any = json.loads(page)["data"]
            self._worked_before = any(event["type"] == _ANSWERED for event in events)
        except (ValueError, KeyError, TypeError):
            return  # the SDK makes nothing of it either

    def settle(self) -> None:
        """Before a call runs, and when nothing that a set-up does could trip over one more file."""
        if not self.in_question:
            return
        self.in_question = False
        if self._worked_before:
            log.warning("workspace.new: the session had worked in another sandbox, which is gone")
            self._tell()
        self._state.replace(FIRST_USE, b"")

    def _tell(self) -> None:
        path = os.path.join(self._workdir, NEW_WORKSPACE_FILE)
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(f"{NEW_WORKSPACE_TEXT}\n{_WHY}.\n")
        except FileExistsError:
            pass  # the functions know more of it
        except OSError as error:
            log.warning("workspace.not_told error=%s", error.strerror)
