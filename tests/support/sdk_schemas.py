"""The SDK builds the schema of a model when the first answer of its kind comes: for what a worker reads these take a
third of a second of a core, more than all else that it does. `tests/support/forker.py` runs this file in the process
that forks, so that its forks have them. It asks nobody: the answers stand here.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Final

import httpx2
from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from anthropic.lib.tools.agent_toolset import AgentToolContext, beta_agent_toolset_20260401

_TIME: Final = "2026-01-01T00:00:00Z"
_MODEL: Final = {"id": "claude-sonnet-5", "speed": "standard"}
_AGENT: Final = {"type": "agent", "id": "agent_1", "name": "a", "version": 1, "model": _MODEL, "system": None}
_CONFIG: Final = {"enabled": True, "permission_policy": {"type": "always_allow"}}
_TOOLSET: Final = {"type": "agent_toolset_20260401", "configs": [], "default_config": _CONFIG}
_SESSION: Final = {
    **{"type": "session", "id": "sesn_1", "environment_id": "env_1", "status": "running", "title": None},
    **{"agent": {**_AGENT, "description": None, "tools": [_TOOLSET], "skills": [], "mcp_servers": []}},
    **{"created_at": _TIME, "updated_at": _TIME, "archived_at": None, "metadata": {}, "vault_ids": []},
    **{"resources": [], "outcome_evaluations": [], "usage": {"input_tokens": 1, "output_tokens": 1}},
    "stats": {"active_seconds": 1.0, "duration_seconds": 1.0},
    "execution_identity": None,
}
_ITEM: Final = {
    **{"type": "work", "id": "work_1", "environment_id": "env_1", "state": "active", "metadata": {}, "secret": "s"},
    **{"data": {"type": "session", "id": "sesn_1"}, "created_at": _TIME, "acknowledged_at": _TIME},
}
_BEAT: Final = {
    **{"type": "work_heartbeat", "last_heartbeat": _TIME, "lease_extended": True, "state": "active"},
    "ttl_seconds": 30,
}
_TEXT: Final = {"type": "text", "text": "t"}
_EVENTS: Final[list[dict[str, Any]]] = [
    {"type": "user.message", "id": "sevt_1", "processed_at": _TIME, "content": [_TEXT]},
    {"type": "agent.message", "id": "sevt_2", "processed_at": _TIME, "content": [_TEXT]},
    {
        **{"type": "agent.tool_use", "id": "sevt_3", "processed_at": _TIME, "name": "bash"},
        **{"input": {"command": "true"}, "evaluated_permission": "allow"},
    },
    {
        **{"type": "user.tool_result", "id": "sevt_4", "processed_at": _TIME, "tool_use_id": "sevt_3"},
        **{"content": [_TEXT], "is_error": False},
    },
    {"type": "session.status_running", "id": "sevt_5", "processed_at": _TIME},
    {"type": "session.status_idle", "id": "sevt_6", "processed_at": _TIME, "stop_reason": {"type": "end_turn"}},
]
_STREAM: Final = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in _EVENTS)
_ANSWERS: Final[dict[str, Any]] = {
    r"/heartbeat$": _BEAT,
    r"/environments/env_1/work$": {"data": [_ITEM], "next_page": None},
    r"/environments/": _ITEM,
    r"GET .*/events$": {"data": _EVENTS, "next_page": None},
    r"POST .*/events$": {"data": _EVENTS[:1]},
    r"GET .*/sessions$": {"data": [_SESSION], "next_page": None},
    r"/sessions": _SESSION,
}


def _answer(request: httpx2.Request) -> httpx2.Response:
    if request.url.path.endswith("/stream"):
        return httpx2.Response(200, text=_STREAM, headers={"content-type": "text/event-stream"})
    asked = f"{request.method} {request.url.path}"
    return httpx2.Response(200, json=next(body for form, body in _ANSWERS.items() if re.search(form, asked)))


async def _ask() -> list[Any]:
    http = DefaultAsyncHttpxClient(transport=httpx2.MockTransport(_answer))
    async with AsyncAnthropic(auth_token="none", http_client=http) as client:
        sessions, work = client.beta.sessions, client.beta.environments.work
        item: Any = {"environment_id": "env_1"}
        await work.poll(**item)
        await work.retrieve("work_1", **item)
        await work.heartbeat("work_1", **item, expected_last_heartbeat="NO_HEARTBEAT")
        pages: list[Any] = [await work.list(**item), await sessions.list(), await sessions.events.list("sesn_1")]
        await sessions.retrieve("sesn_1")
        await sessions.events.send("sesn_1", events=[{"type": "user.interrupt"}])
        async with await sessions.events.stream("sesn_1") as stream:
            async for _ in stream:
                pass
    for tool in beta_agent_toolset_20260401(AgentToolContext(workdir="/")):
        tool.to_dict()
    return pages


PAGES: Final = asyncio.run(_ask())
"""Kept, since the model of a page is forgotten with the last page of it."""
