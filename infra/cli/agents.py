"""`agent`: create an agent whose tools run in the sandbox, and say which line to put into `.env.local`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from image.session.worker import fork_tool_schema
from image.session.worker.tool_manifest import Entry
from infra.cli.environ import Loaded
from infra.cli.session.command import open_client
from infra.cli.session.feed import translated
from infra.cli.session.follow import FeedRefused
from infra.cli.tools import own_tools

if TYPE_CHECKING:
    from anthropic.types.beta.agent_create_params import Tool
    from anthropic.types.beta.beta_managed_agents_agent_tool_config_params import (
        BetaManagedAgentsAgentToolConfigParams,
    )

DEFAULT_MODEL: Final = "claude-sonnet-4-6"
DEFAULT_SYSTEM: Final = "You work in a sandbox of your own. Do what is asked with your tools, and answer briefly."
SANDBOX_TOOLS: Final = ("bash", "read", "write", "edit", "glob", "grep")
WEB_TOOLS: Final = ("web_fetch", "web_search")


async def create(loaded: Loaded, name: str, *, model: str | None, system: str | None) -> int:
    """Returns 0, or 1 when an agent of that name is there already: running it twice makes one agent.

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
                    print(f"An agent named {name!r} exists already.")
                    _say_where(loaded, agent.id)
                    return 1
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


def tools(*, fork: bool, own: Sequence[Entry] = ()) -> list[Tool]:
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
    if loaded.offline is None:
        print(f"Put this into .env.local:  ANTHROPIC_AGENT_ID={agent_id}")
    else:
        print(f"For this offline platform only:  make session AGENT={agent_id}")


def _enabled(*tools: str) -> list[BetaManagedAgentsAgentToolConfigParams]:
    configs = [{"name": tool, "enabled": True, "permission_policy": {"type": "always_allow"}} for tool in tools]
    return cast("list[BetaManagedAgentsAgentToolConfigParams]", configs)
