"""Do both services answer, do they take the keys, and do their clocks agree with ours?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Final

from image.session.tools import ToolsError, ToolSources, known_names
from image.session.worker import fork_tool_schema
from infra.cli.doctor.context import NO_CLAUDE, NO_TENSORLAKE, DoctorContext, claude_client, http_client
from infra.cli.doctor.findings import Say, error, info, ok, warning
from shared.errors import SecretUnavailable
from shared.ports import Doubtful, NoAnswer
from shared.secret import Secret
from shared.unanswered import unanswered

_SKEW_WARNS: Final = 60.0  # seconds
_SKEW_BREAKS: Final = 240.0  # a webhook's window is 300 s (docs/wire/anthropic.md#92-signature), and it travels, too


async def check_clock(context: DoctorContext, say: Say) -> None:
    """The Date headers of both services against this machine's clock; each is whole seconds."""
    import httpx2

    for service, url in (("Claude", context.settings.anthropic_url), ("Tensorlake", context.settings.tensorlake_url)):
        async with http_client(url) as client:
            before = context.now()
            began = time.monotonic()
            try:
                answer = await client.get(url)
            except httpx2.HTTPError as problem:
                say(info("HANDS204", f"{service}'s clock could not be read: {unanswered(problem, url)}"))
                continue
            middle = before + (time.monotonic() - began) / 2
        try:
            theirs = parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
        except ValueError:
            say(info("HANDS204", f"{service}'s answers carry no date"))
            continue
        off = middle - theirs
        seen = f"this machine is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} {service}"
        if abs(off) >= _SKEW_BREAKS:
            say(error("HANDS204", seen))
        elif abs(off) >= _SKEW_WARNS:
            say(warning("HANDS204", seen))
        else:
            say(ok("HANDS204", f"the clock agrees with {service} within {max(abs(off), 1.0):.0f} s"))


async def check_tensorlake(context: DoctorContext, say: Say) -> None:
    """A list with the key."""
    listing = await context.service.host.list_sandboxes()
    if isinstance(listing, NoAnswer):
        say(error("HANDS203", f"Tensorlake: {listing.reason}", NO_TENSORLAKE))
    elif isinstance(listing, Doubtful):
        say(error("HANDS203", f"sandboxes cannot be listed: {listing.reason}"))
    else:
        say(ok("HANDS203", "Tensorlake answers, and takes the key"))


async def check_person(context: DoctorContext, say: Say) -> None:
    """What only the person needs who starts sessions: the API key and the agent."""
    from anthropic import APIConnectionError, APIStatusError

    text = context.environ.get("ANTHROPIC_API_KEY", "").strip()
    if not text:
        say(info("HANDS205", "ANTHROPIC_API_KEY is not set here: right for a server, too little for make session"))
        return
    try:
        key = Secret("ANTHROPIC_API_KEY", text).reveal()
    except SecretUnavailable:
        return  # HANDS101 says so
    agent = context.environ.get("ANTHROPIC_AGENT_ID", "").strip()
    async with claude_client(context.settings.anthropic_url, key=key) as client:
        try:
            await client.beta.agents.list(limit=1)
        except APIStatusError as problem:
            say(error("HANDS205", f"the Claude API refuses ANTHROPIC_API_KEY: HTTP {problem.status_code}"))
            return
        except APIConnectionError as problem:
            say(error("HANDS201", f"the Claude API: {unanswered(problem)}", NO_CLAUDE))
            return
        say(ok("HANDS205", "the Claude API takes the API key"))
        if not agent:
            say(info("HANDS206", "ANTHROPIC_AGENT_ID is not set: make session needs it"))
            return
        try:
            record = await client.beta.agents.retrieve(agent)
        except APIStatusError as problem:
            say(error("HANDS206", f"ANTHROPIC_AGENT_ID is not found with this API key: HTTP {problem.status_code}"))
            return
    if record.archived_at is not None:
        say(error("HANDS206", "the agent is archived"))
    else:
        say(ok("HANDS206", "the agent is there"))
        await _check_custom_tools(context, [tool.name for tool in record.tools if tool.type == "custom"], say)


async def _check_custom_tools(context: DoctorContext, declared: Sequence[str], say: Say) -> None:
    """Does an image of ours serve each custom tool of the agent?"""
    declared = [name for name in declared if name != fork_tool_schema.NAME]  # every worker answers it
    if not declared:
        return
    try:
        known = await asyncio.to_thread(known_names, ToolSources.from_environ(context.environ))
    except ToolsError as problem:
        say(error("HANDS101", str(problem)))
        return
    foreign = [name for name in declared if not known(name)]
    if foreign:
        say(
            warning(
                "HANDS207", f"the agent has the custom tool {', '.join(foreign[:20])[:500]}, which nobody serves here"
            )
        )
    else:
        say(ok("HANDS207", f"each of the agent's {len(declared)} custom tools is one of yours"))
