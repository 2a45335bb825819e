"""Agents: versions, normalised tools, and what their permission policies say (docs/wire/anthropic.md#7-agents-api)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from image.session.worker import fork_tool_schema
from infra.local.claude.clock import Clock, stamp, stamp_or_none
from infra.local.claude.errors import ClaudeApiError, invalid, not_found, not_offline
from infra.local.claude.ids import new_id
from infra.local.claude.records import list_field, merged_metadata, text_field
from infra.local.claude.skills import Skills

TOOLSET = "agent_toolset_20260401"
SANDBOX_TOOLS = ("bash", "edit", "read", "write", "glob", "grep")
SERVER_TOOLS = ("web_fetch", "web_search")
POLICIES = ("always_allow", "always_ask", "auto")
_MAX_TOOL_ENTRIES = 128
_MAX_SERVERS = 20
_CUSTOM_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_DEFAULT_POLICY = {"type": "always_allow"}
_KEPT_BY_SESSIONS = (
    *("id", "type", "version", "name", "description", "model", "system", "tools"),
    *("skills", "mcp_servers", "multiagent", "execution_identity"),
)

DEFAULT_AGENT: dict[str, Any] = {
    "name": "coder",
    "model": "offline-scripted-brain",
    "description": "Ready-made agent of the offline platform",
    "tools": [{"type": TOOLSET}, fork_tool_schema.definition()],
}


@dataclass
class Agent:
    """One agent with all its versions; `versions[n]` is version n + 1."""

    id: str
    sequence: int
    created_at: datetime
    versions: list[dict[str, Any]]
    archived_at: datetime | None = None

    @property
    def version(self) -> int:
        return len(self.versions)

    def as_json(self, version: int | None = None) -> dict[str, Any]:
        number = version or self.version
        if not 1 <= number <= self.version:
            raise not_found(f"version {number} of agent {self.id}")
        return {
            "id": self.id,
            "type": "agent",
            "version": number,
            "created_at": stamp(self.created_at),
            "archived_at": stamp_or_none(self.archived_at),
            **self.versions[number - 1],
        }


class Agents:
    def __init__(self, clock: Clock, skills: Skills) -> None:
        self._clock = clock
        self._skills = skills
        self._agents: dict[str, Agent] = {}
        self._sequence = itertools.count(1)

    def create(self, body: Mapping[str, Any], agent_id: str | None = None) -> Agent:
        definition = self._definition(body, {})
        agent = Agent(agent_id or new_id("agent"), next(self._sequence), self._clock.now(), [definition])
        self._agents[agent.id] = agent
        return agent

    def update(self, agent: Agent, body: Mapping[str, Any]) -> None:
        """Omitted fields are kept; a `version` that is not the current one is refused; no change, no version."""
        if agent.archived_at is not None:
            raise invalid("an archived agent cannot be changed")
        if body.get("version") is not None and body["version"] != agent.version:
            raise ClaudeApiError(409, f"version {body['version']} is not the current version {agent.version}")
        current = agent.versions[-1]
        changed = self._definition(body, current)
        if {**changed, "updated_at": None} != {**current, "updated_at": None}:
            agent.versions.append(changed)

    def archive(self, agent: Agent) -> None:
        agent.archived_at = agent.archived_at or self._clock.now()

    def get(self, agent_id: str) -> Agent:
        if agent_id not in self._agents:
            raise not_found(f"agent {agent_id}")
        return self._agents[agent_id]

    def resolved(self, agent_id: str, version: int | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The definition that a new session keeps; `overrides` replace whole fields. Raises 400 and 404."""
        agent = self.get(agent_id)
        if agent.archived_at is not None:
            raise invalid("the agent is archived")
        wire = agent.as_json(version)
        kept = {key: wire[key] for key in _KEPT_BY_SESSIONS}
        if "tools" in overrides:
            servers = overrides if "mcp_servers" in overrides else kept
            kept["tools"] = normal_tools({**overrides, "mcp_servers": servers.get("mcp_servers")})
        if "mcp_servers" in overrides:
            kept["mcp_servers"] = _mcp_servers(overrides)
        if "model" in overrides:
            kept["model"] = _model(overrides["model"])
        if "system" in overrides:
            kept["system"] = text_field(overrides, "system")
        if "skills" in overrides:
            kept["skills"] = self._skills.references(overrides)
        _refuse_what_is_not_offline(overrides)
        return kept

    def all(self, *, include_archived: bool) -> list[Agent]:
        return [a for a in self._agents.values() if include_archived or a.archived_at is None]

    def _definition(self, body: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
        _refuse_what_is_not_offline(body)
        new = not current
        servers = _mcp_servers(body) if new or "mcp_servers" in body else current["mcp_servers"]
        tools = body if new or "tools" in body else current
        return {
            "name": text_field(body, "name", required=new or "name" in body) or current.get("name"),
            "description": _kept(body, current, "description"),
            "model": _model(body.get("model")) if new or "model" in body else current["model"],
            "system": _kept(body, current, "system"),
            "tools": normal_tools({"tools": tools.get("tools"), "mcp_servers": servers}),
            "skills": self._skills.references(body) if new or "skills" in body else current["skills"],
            "mcp_servers": servers,
            "multiagent": None,
            "execution_identity": {"type": "service_account"},
            "metadata": merged_metadata(current.get("metadata", {}), body.get("metadata")),
            "updated_at": stamp(self._clock.now()),
        }


def _kept(body: Mapping[str, Any], current: Mapping[str, Any], name: str) -> Any:
    return (text_field(body, name) or None) if name in body else current.get(name)


def _model(given: object) -> dict[str, Any]:
    model = {"id": given} if isinstance(given, str) else given
    if not isinstance(model, dict) or not isinstance(model.get("id"), str) or not model["id"]:
        raise invalid("model: expected a model id or an object with one")
    return dict(model)


def _refuse_what_is_not_offline(body: Mapping[str, Any]) -> None:
    if body.get("multiagent"):
        raise not_offline("agent multiagent")


def _mcp_servers(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Kept and shown; the scripted brain calls none of their tools."""
    entries = list_field(body, "mcp_servers")
    servers = [
        {
            "type": "url",
            "name": text_field(entry, "name", required=True),
            "url": text_field(entry, "url", required=True),
        }
        for entry in entries
        if entry.get("type") == "url"
    ]
    if len(servers) < len(entries):
        raise invalid("mcp_servers: type: expected url")
    names = [server["name"] for server in servers]
    if len(names) > _MAX_SERVERS or len(set(names)) < len(names):
        raise invalid(f"mcp_servers: at most {_MAX_SERVERS}, each with a name of its own")
    return servers


def normal_tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `tools` as responses show them: every built-in tool with its resolved setting."""
    entries = list_field(body, "tools")
    if len(entries) > _MAX_TOOL_ENTRIES:
        raise invalid(f"tools: at most {_MAX_TOOL_ENTRIES} entries")
    servers = [server["name"] for server in list_field(body, "mcp_servers")]
    return [_normal_tool(entry, servers) for entry in entries]


def _normal_tool(entry: Mapping[str, Any], servers: Sequence[str | None]) -> dict[str, Any]:
    match entry.get("type"):
        case "agent_toolset_20260401":
            return _normal_toolset(entry)
        case "custom":
            return _normal_custom(entry)
        case "mcp_toolset":
            return _normal_mcp_toolset(entry, servers)
        case other:
            raise invalid(f"tools: unknown type {other!r}")


def _normal_mcp_toolset(entry: Mapping[str, Any], servers: Sequence[str | None]) -> dict[str, Any]:
    if entry.get("mcp_server_name") not in servers:
        raise invalid(f"tools: mcp_server_name: no server {entry.get('mcp_server_name')!r} in mcp_servers")
    default = _setting(
        entry.get("default_config") or {}, {"enabled": True, "permission_policy": {"type": "always_ask"}}
    )
    configs = [
        {"name": text_field(config, "name", required=True), **_setting(config, default)}
        for config in list_field(entry, "configs")
    ]
    name = entry["mcp_server_name"]
    return {"type": "mcp_toolset", "mcp_server_name": name, "default_config": default, "configs": configs}


def _normal_custom(entry: Mapping[str, Any]) -> dict[str, Any]:
    name = text_field(entry, "name", required=True) or ""
    built_in = name in SANDBOX_TOOLS or name in SERVER_TOOLS or name.startswith("mcp__")
    if built_in or not _CUSTOM_NAME.fullmatch(name):
        raise invalid(f"tools: {name!r} is not a name for a custom tool")
    schema = entry.get("input_schema") or {"type": "object", "properties": {}}
    description = text_field(entry, "description") or ""
    return {"type": "custom", "name": name, "description": description, "input_schema": schema}


def _normal_toolset(entry: Mapping[str, Any]) -> dict[str, Any]:
    default = _setting(entry.get("default_config") or {}, {"enabled": True, "permission_policy": _DEFAULT_POLICY})
    given: dict[str, Mapping[str, Any]] = {}
    for config in list_field(entry, "configs"):
        if config.get("name") not in (*SANDBOX_TOOLS, *SERVER_TOOLS):
            raise invalid(f"tools: the toolset has no tool {config.get('name')!r}")
        given[config["name"]] = config
    configs = [
        {**given.get(name, {}), "name": name, "type": name, **_setting(given.get(name, {}), default)}
        for name in (*SANDBOX_TOOLS, *SERVER_TOOLS)
    ]
    return {"type": TOOLSET, "default_config": default, "configs": configs}


def _setting(given: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    enabled = given.get("enabled")
    policy = given.get("permission_policy") or default["permission_policy"]
    if not isinstance(policy, dict) or policy.get("type") not in POLICIES:
        raise invalid(f"permission_policy.type: expected one of {', '.join(POLICIES)}")
    return {"enabled": default["enabled"] if enabled is None else bool(enabled), "permission_policy": policy}


@dataclass(frozen=True)
class ToolPermission:
    """What becomes of a call to a built-in tool: `permission` is allow, ask or deny."""

    permission: str
    evaluation: dict[str, Any] | None


def evaluate(agent: Mapping[str, Any], tool: str) -> ToolPermission:
    """A tool that the agent does not have, or has switched off, is denied without any policy (SDK docstring).

    Policy `auto` is the server's own judgement; this server always judges: allow.
    """
    for entry in agent["tools"]:
        for config in entry["configs"] if entry["type"] == TOOLSET else ():
            if config["name"] == tool and config["enabled"]:
                match config["permission_policy"]["type"]:
                    case "always_ask":
                        return ToolPermission("ask", {"type": "always_ask"})
                    case "auto":
                        return ToolPermission("allow", {"type": "auto", "evaluated_permission": {"type": "allow"}})
                    case _:
                        return ToolPermission("allow", {"type": "always_allow"})
    return ToolPermission("deny", None)


def custom_tools(agent: Mapping[str, Any]) -> list[str]:
    return [entry["name"] for entry in agent["tools"] if entry["type"] == "custom"]


def enabled_tools(agent: Mapping[str, Any]) -> list[str]:
    names = (*SANDBOX_TOOLS, *SERVER_TOOLS)
    return [name for name in names if evaluate(agent, name).permission != "deny"] + custom_tools(agent)
