"""The seam where a brain is plugged in: what it is asked, and what it may answer.

A brain is any object with `async respond(conversation) -> Reply`; `--brain module:Class` loads one (called without
arguments). It keeps no state of its own between requests unless it wants to: everything said so far is in the
`Conversation`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class ToolCall:
    """A call the brain wants. `result` is what the server answers itself for a web tool (nothing is searched)."""

    name: str
    input: dict[str, Any] = field(default_factory=dict)
    result: str | None = None


@dataclass(frozen=True)
class ToolOutcome:
    """A call that was made, with what came back."""

    call: ToolCall
    text: str
    is_error: bool = False


@dataclass(frozen=True)
class Failure:
    """The model request fails: `session.error` with these fields, then idle or terminated as `retry` says."""

    type: str = "unknown_error"
    message: str = "scripted failure"
    retry: str = "exhausted"


@dataclass(frozen=True)
class Reply:
    """One model response. Without calls it ends the turn; several calls are made in parallel."""

    text: str | None = None
    thinking: bool = False
    calls: Sequence[ToolCall] = ()
    seconds: float = 0.0
    failure: Failure | None = None


@dataclass(frozen=True)
class Round:
    """One reply and the outcomes of its calls, in the order of the calls."""

    reply: Reply
    outcomes: Sequence[ToolOutcome]


@dataclass(frozen=True)
class Conversation:
    """What a brain knows when it is asked: the message of this turn, the rounds so far, and the turns before."""

    session_id: str
    agent: dict[str, Any]
    tools: Sequence[str]
    turn: int
    message: str
    rounds: Sequence[Round]
    earlier_messages: Sequence[str] = ()
    attempt: int = 0
    """How often this very request failed before with a failure that is retried."""


class Brain(Protocol):
    async def respond(self, conversation: Conversation) -> Reply:
        """Called once per model request; an exception becomes a `session.error`."""


def load_brain(reference: str) -> Brain:
    """`package.module:Class`; raises ValueError with the reason."""
    module_name, _, attribute = reference.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no brain at {reference!r} (expected module:Class): {error}") from error
    brain: Brain = factory()
    if not hasattr(brain, "respond"):
        raise ValueError(f"{reference!r} has no `respond`")
    return brain
