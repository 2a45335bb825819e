"""Sessions: their record, and what may be done to it (docs/wire/anthropic.md#8-sessions-api). What happens in a turn is
`turns.py`."""

from __future__ import annotations

import asyncio
import enum
import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from infra.local.claude.agents import Agents, normal_tools
from infra.local.claude.attachments import attach
from infra.local.claude.brain import Reply, Round, ToolCall, ToolOutcome
from infra.local.claude.clock import Clock, stamp, stamp_or_none
from infra.local.claude.environments import OfflineEnvironment
from infra.local.claude.errors import invalid, not_found, not_offline
from infra.local.claude.events import Event, EventLog
from infra.local.claude.ids import canonical_session_id, new_id
from infra.local.claude.memories import MemoryStores
from infra.local.claude.records import merged_metadata, text_field
from infra.local.claude.shelf import Shelf

Status = Literal["idle", "running", "rescheduling", "terminated"]
MAX_INITIAL_EVENTS = 50
_OVERRIDES = ("model", "system", "tools", "skills", "mcp_servers")


class Phase(enum.Enum):
    """Where a session is between two inputs."""

    AT_REST = "no turn is open"
    THINKING = "a model request is under way"
    PARKED = "the turn waits for tool results or confirmations"


@dataclass
class OpenCall:
    """A tool call of the current round. `confirmed` is False while it waits for the user's word."""

    id: str
    call: ToolCall
    custom: bool = False
    confirmed: bool = True
    outcome: ToolOutcome | None = None


@dataclass
class Input:
    """A message that starts a turn, with the system messages that came along with it."""

    event: Event
    text: str
    followers: list[Event] = field(default_factory=list)


@dataclass
class OfflineSession:
    id: str
    sequence: int
    environment_id: str
    agent: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    log: EventLog
    title: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    resources: list[dict[str, Any]] = field(default_factory=list)
    vault_ids: list[str] = field(default_factory=list)
    """Shown and not used: no tool of an MCP server is called here."""
    archived_at: datetime | None = None
    status: Status = "idle"
    thread_id: str = field(default_factory=lambda: new_id("sthr"))
    active_seconds: float = 0.0
    running_since: datetime | None = None

    # The turn
    phase: Phase = Phase.AT_REST
    inbox: deque[Input] = field(default_factory=deque)
    messages: list[str] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    reply: Reply | None = None
    calls: dict[str, OpenCall] = field(default_factory=dict)
    closed_calls: dict[str, bool] = field(default_factory=dict)
    """Ids of earlier calls; the value says whether it was a custom tool's."""
    request_id: str | None = None
    attempt: int = 0
    task: asyncio.Task[None] | None = None
    unserved_input: bool = False
    """An input came while a worker held the item, and no tool result has followed: the worker may not see it."""

    @property
    def open_calls(self) -> list[OpenCall]:
        return [call for call in self.calls.values() if call.outcome is None]

    @property
    def terminated(self) -> bool:
        return self.status == "terminated"

    def as_json(self, now: datetime) -> dict[str, Any]:
        active = self.active_seconds
        if self.running_since is not None:
            active += (now - self.running_since).total_seconds()
        end = self.archived_at or now
        return {
            "id": self.id,
            "type": "session",
            "status": self.status,
            "title": self.title,
            "environment_id": self.environment_id,
            "metadata": dict(self.metadata),
            "agent": self.agent,
            "resources": list(self.resources),
            "vault_ids": list(self.vault_ids),
            "budget": None,
            "deployment_id": None,
            "outcome_evaluations": [],
            "stats": {
                "active_seconds": round(active, 6),
                "duration_seconds": round((end - self.created_at).total_seconds(), 6),
            },
            "usage": {"input_tokens": 0, "output_tokens": 0, "cache_read_input_tokens": 0},
            "created_at": stamp(self.created_at),
            "updated_at": stamp(self.updated_at),
            "archived_at": stamp_or_none(self.archived_at),
        }

    def thread_as_json(self) -> dict[str, Any]:
        """The primary thread, the only one there is."""
        return {
            "id": self.thread_id,
            "type": "session_thread",
            "session_id": self.id,
            "parent_thread_id": None,
            "agent": self.agent,
            "status": self.status,
            "stats": None,
            "usage": None,
            "workflow_run_id": None,
            "created_at": stamp(self.created_at),
            "updated_at": stamp(self.updated_at),
            "archived_at": stamp_or_none(self.archived_at),
        }


class Sessions:
    def __init__(self, clock: Clock, agents: Agents, stores: MemoryStores, vaults: Shelf) -> None:
        self._clock = clock
        self._agents = agents
        self._stores = stores
        self._vaults = vaults
        self._sessions: dict[str, OfflineSession] = {}
        self._sequence = itertools.count(1)

    def create(self, body: Mapping[str, Any], environment: OfflineEnvironment) -> OfflineSession:
        """A session at rest; its initial events are the caller's to hand in. Raises 400 and 404."""
        if environment.archived_at is not None:
            raise invalid("the environment is archived", error_code="environment_archived")
        if not environment.self_hosted:
            raise not_offline("sessions in a cloud environment")
        resources = attach(body, self._stores)
        if body.get("budget"):
            raise not_offline("session budget")
        agent = self._resolve_agent(body.get("agent"))
        now = self._clock.now()
        session = OfflineSession(
            new_id("sesn"),
            next(self._sequence),
            environment.id,
            agent,
            now,
            now,
            EventLog(self._clock),
            title=text_field(body, "title"),
            metadata=merged_metadata({}, body.get("metadata")),
            resources=resources,
            vault_ids=self._known_vaults(body.get("vault_ids") or []),
        )
        self._sessions[session.id] = session
        return session

    def _known_vaults(self, given: object) -> list[str]:
        """Raises 400 and 404."""
        if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
            raise invalid("vault_ids: expected a list of ids")
        for vault_id in given:
            if self._vaults.get(vault_id).archived_at is not None:
                raise invalid(f"vault_ids: {vault_id} is archived")
        return given

    def update(self, session: OfflineSession, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answers the fields that were given, for the `session.updated` event."""
        if session.terminated:
            raise invalid("a terminated session cannot be changed")
        if body.get("vault_ids") or body.get("budget"):
            raise not_offline("changing a session's vaults or budget")
        metadata = merged_metadata(session.metadata, body.get("metadata"))
        agent_patch = body.get("agent")
        if agent_patch is not None:
            if session.status == "running":
                raise invalid("the agent of a running session cannot be changed")
            if not isinstance(agent_patch, Mapping) or agent_patch.get("mcp_servers"):
                raise not_offline("changing a session's mcp_servers")
            session.agent = {**session.agent, "tools": normal_tools(agent_patch)}
        if "title" in body:
            session.title = text_field(body, "title")
        changed = {name: body[name] for name in ("title", "metadata") if name in body}
        session.metadata = metadata
        session.updated_at = self._clock.now()
        return changed

    def get(self, session_id: str) -> OfflineSession:
        session = self.find(session_id)
        if session is None:
            raise not_found(f"session {session_id}")
        return session

    def find(self, session_id: str) -> OfflineSession | None:
        return self._sessions.get(canonical_session_id(session_id))

    def remove(self, session: OfflineSession) -> None:
        del self._sessions[session.id]

    def all(self) -> list[OfflineSession]:
        return list(self._sessions.values())

    def _resolve_agent(self, given: object) -> dict[str, Any]:
        match given:
            case str():
                return self._agents.resolved(given, None, {})
            case {"type": "agent", "id": str(agent_id), **rest}:
                return self._agents.resolved(agent_id, _version(rest), {})
            case {"type": "agent_with_overrides", "id": str(agent_id), **rest}:
                overrides = {name: rest[name] for name in _OVERRIDES if name in rest}
                return self._agents.resolved(agent_id, _version(rest), overrides)
            case _:
                raise invalid("agent: expected an agent id or a reference with type and id")


def _version(reference: Mapping[Any, Any]) -> int | None:
    version = reference.get("version")
    if version is not None and not isinstance(version, int):
        raise invalid("agent.version: expected a number")
    return version
