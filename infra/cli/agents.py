"""`agent`: create an agent whose tools run in the sandbox, or bring the custom tools of one up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from image.session.worker import fork_tool_schema
from image.session.worker.tool_manifest import ToolEntry
from infra.cli.environ import Loaded
from infra.cli.session.command import open_client
from infra.cli.session.feed import translated
from infra.cli.session.follow import FeedRefused
from infra.cli.tools import own_tools
from shared.texts import printable

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.beta import BetaManagedAgentsAgent
    from anthropic.types.beta.agent_create_params import Tool
    from anthropic.types.beta.beta_managed_agents_agent_tool_config_params import (
        BetaManagedAgentsAgentToolConfigParams,
    )

DEFAULT_MODEL: Final = "claude-sonnet-4-6"
DEFAULT_SYSTEM: Final = "You work in a sandbox of your own. Do what is asked with your tools, and answer briefly."
SANDBOX_TOOLS: Final = ("bash", "read", "write", "edit", "glob", "grep")
WEB_TOOLS: Final = ("web_fetch", "web_search")


async def create(loaded: Loaded, name: str, *, model: str | None, system: str | None, update: bool = False) -> int:
    """Returns 0, or 1 when an agent of that name is there already: running it twice makes one agent. Then it says which
    custom tools differ from those of the settings; with `update` it declares them as a new version, and returns 0.

    The model: `model`, else ANTHROPIC_AGENT_MODEL, else DEFAULT_MODEL.
    """
    name = name.strip()
    if not name:
        raise FeedRefused('an agent needs a name: make agent NAME="Managed Agent"')
    own = await asyncio.to_thread(own_tools, loaded.environ)
    async with open_client(loaded) as client:
        with translated():
            async for agent in client.beta.agents.list():
                if agent.name == name and agent.archived_at is None:
                    wanted = tools(fork=_may_fork(loaded), own=own.entries)
                    code = await _existing(client, agent, wanted, update=update)
                    _say_where(loaded, agent.id)
                    return code
            agent = await client.beta.agents.create(
                name=name,
                model=model or loaded.environ.get("ANTHROPIC_AGENT_MODEL", "").strip() or DEFAULT_MODEL,
                system=system or DEFAULT_SYSTEM,
                tools=tools(fork=_may_fork(loaded), own=own.entries),
            )
    print(f"Created agent {agent.name!r}, version {agent.version}, on {loaded.where}.")
    for entry in own.entries:
        print(f"  {entry.kind.value} tool {entry.name}")
    _say_where(loaded, agent.id)
    return 0


async def _existing(
    client: AsyncAnthropic, agent: BetaManagedAgentsAgent, wanted: Sequence[Tool], *, update: bool
) -> int:
    """Model, prompt, toolset and tools that the settings do not know are a person's business, and stay."""
    print(f"An agent named {printable(agent.name)!r} exists already: version {agent.version}.")
    found: list[dict[str, Any]] = [tool.to_dict(mode="json") for tool in agent.tools]
    merged, told = merge(found, [dict(tool) for tool in wanted])
    for line in told:
        print(f"  {line}")
    if merged == found:
        print("It has the custom tools of these settings.")
        return 1
    if not update:
        print("Declare them: make agent UPDATE=1 (sessions that run keep the version that they began with)")
        return 1
    # Somebody who changed it since then is not overwritten: the service refuses another version than this one.
    made = await client.beta.agents.update(agent.id, version=agent.version, tools=cast("list[Any]", merged))
    print(f"Updated: version {made.version}. New sessions have its tools.")
    return 0


def merge(
    found: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """An agent's tools with the custom ones that are wanted, each in its place or at the end, and what differs in
    words. A custom tool that is not wanted stays: a program of somebody's may answer it."""
    ours = {str(tool["name"]): tool for tool in wanted if tool.get("type") == "custom"}
    merged: list[Mapping[str, Any]] = []
    told = []
    for tool in found:
        name = str(tool.get("name", "")) if tool.get("type") == "custom" else ""
        mine = ours.pop(name, None) if name else None
        if mine is not None and _declared(mine) != _declared(tool):
            told.append(f"{name}: declared otherwise")
            merged.append(mine)
            continue
        if name and mine is None:
            told.append(f"{printable(name)}: not of these settings, left as it is")
        merged.append(tool)
    told += [f"{name}: not declared" for name in ours]
    return [*merged, *ours.values()], told


def _declared(tool: Mapping[str, Any]) -> tuple[object, object]:
    """What the model is told of a custom tool. What the service adds to a schema by itself does not count."""
    schema = {key: value for key, value in dict(tool.get("input_schema") or {}).items() if value not in (None, [], {})}
    return tool.get("description"), schema


def tools(*, fork: bool, own: Sequence[ToolEntry] = ()) -> list[Tool]:
    """The agent's tools; with `fork` also `fork_best_of_n`, which only a worker that may fork answers. `own`: the
    operator's, which only an image that has them serves."""
    toolset: Tool = {
        "type": "agent_toolset_20260401",
        # An allow-list: a tool that the toolset gains later stays off.
        "default_config": {"enabled": False, "permission_policy": {"type": "always_allow"}},
        "configs": _enabled(*SANDBOX_TOOLS, *WEB_TOOLS),
    }
    custom = [fork_tool_schema.definition()] if fork else []
    return [toolset, *cast("list[Tool]", [*custom, *(entry.definition() for entry in own)])]


def _may_fork(loaded: Loaded) -> bool:
    return loaded.environ.get("AGENT_FORK", "").strip().lower() in ("1", "true", "yes", "on")


def _say_where(loaded: Loaded, agent_id: str) -> None:
    if not loaded.offline:
        print(f"Put this into .env.local:  ANTHROPIC_AGENT_ID={agent_id}")
    else:
        print(f"For this offline platform only:  make session AGENT={agent_id}")


def _enabled(*tools: str) -> list[BetaManagedAgentsAgentToolConfigParams]:
    configs = [{"name": tool, "enabled": True, "permission_policy": {"type": "always_allow"}} for tool in tools]
    return cast("list[BetaManagedAgentsAgentToolConfigParams]", configs)
