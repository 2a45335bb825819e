"""What a user and an operator do with a session of a place, and what they see of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from shared.claims.dispatcher import Dispatcher
from shared.ports import Absent
from shared.reports import DrainReport
from tests.support.waiting import until
from tests.support.world import Place, running


def session_with(place: Place, prompt: str | None, **fields: Any) -> str:
    """A session of this place; without a prompt it is queued and idle."""
    events: list[Any] = []
    if prompt is not None:
        events = [{"type": "user.message", "content": [{"type": "text", "text": prompt}]}]
    arguments = {"agent": place.world.agent_id, "environment_id": place.environment_id, **fields}
    return place.world.api.beta.sessions.create(**arguments, initial_events=events).id


def agent(place: Place, policy: str = "always_allow", **fields: Any) -> str:
    tools: Any = [{"type": "agent_toolset_20260401", "default_config": {"permission_policy": {"type": policy}}}]
    return place.world.api.beta.agents.create(name="tester", model="claude-opus-5", tools=tools, **fields).id


def events(place: Place, session: str, *types: str) -> list[Any]:
    wanted: Any = list(types)
    return list(place.world.api.beta.sessions.events.list(session, types=wanted, limit=1000))


def status(place: Place, session: str) -> str:
    return place.world.api.beta.sessions.retrieve(session).status


def box(place: Place, session: str) -> Mapping[str, Any]:
    """The session's one sandbox, as the platform's own records have it: looking does not wake it."""
    (found,) = [row for row in place.sandboxes() if row["name"] == place.sandbox(session)]
    return found


def box_do(place: Place, session: str, action: str) -> None:
    place.world.tensorlake_admin.post(f"sandboxes/{place.sandbox(session)}/{action}")


def wait_for_item(place: Place, session: str, state: str) -> None:
    until(lambda: place.item(session)["state"] == state, f"the item did not get {state}")


def read(place: Place, session: str, path: str) -> str | None:
    async def play() -> str | None:
        async with place.dispatcher() as dispatcher:
            sandbox = running(await dispatcher.host.find(place.sandbox(session)))
            data = await dispatcher.host.read_file(sandbox.id, path, 100_000)
            return None if isinstance(data, Absent) or not isinstance(data, bytes) else data.decode()

    return asyncio.run(play())


def write(place: Place, session: str, path: str) -> None:
    async def play() -> None:
        async with place.dispatcher() as dispatcher:
            sandbox = running(await dispatcher.host.find(place.sandbox(session)))
            assert await dispatcher.host.write_file(sandbox.id, path, b"") is None

    asyncio.run(play())


def changed_drain(place: Place, change: Callable[[Dispatcher], Dispatcher]) -> DrainReport:
    """One drain by a dispatcher with something changed."""

    async def play() -> DrainReport:
        async with place.dispatcher() as dispatcher:
            return await change(dispatcher).drain()

    return asyncio.run(play())


def what_happened(item: Mapping[str, Any]) -> list[str]:
    return [entry["what"] for entry in item["history"]]
