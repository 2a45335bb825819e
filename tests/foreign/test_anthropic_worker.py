"""What Anthropic's own poller and worker must be able to do, unmodified, on the offline service: who claims, acks and
stops, which calls are served, held and left alone, and what ends a worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import beta_async_tool
from anthropic.lib.environments import iter_work
from anthropic.lib.tools import ToolError
from anthropic.lib.tools.agent_toolset import beta_agent_toolset_20260401

from tests.support.waiting import PATIENCE, until
from tests.support.world import Place

ORDERS: Any = {
    "type": "custom",
    "name": "get_order",
    "description": "Looks an order up.",
    "input_schema": {"type": "object", "properties": {"order": {"type": "string"}}},
}
ASKS: Any = {
    "type": "agent_toolset_20260401",
    "configs": [{"name": "bash", "permission_policy": {"type": "always_ask"}}],
}
TOOLSET: Any = {"type": "agent_toolset_20260401"}


@beta_async_tool
async def get_order(order: str) -> str:
    """Looks an order up."""
    if order == "0":
        raise ToolError("there is no such order")
    return f"order {order} is shipped"


def session(place: Place, text: str, *tools: Any) -> str:
    """Of an agent with these tools, or with the usual ones."""
    agent = place.world.agent_id
    if tools:
        agent = place.world.api.beta.agents.create(name="foreign", model="claude-opus-5", tools=list(tools)).id
    events: list[Any] = [{"type": "user.message", "content": [{"type": "text", "text": text}]}]
    return place.world.api.beta.sessions.create(
        agent=agent, environment_id=place.environment_id, initial_events=events
    ).id


@contextlib.contextmanager
def polling(place: Place) -> Any:
    """The work resource of a client with the environment's key."""
    with anthropic.Anthropic(
        auth_token=place.environ["ANTHROPIC_ENVIRONMENT_KEY"], base_url=place.world.claude.url, max_retries=0
    ) as client:
        yield client.beta.environments.work


def claimed(place: Place) -> Any:
    with polling(place) as work:
        item = work.poll(place.environment_id)
        work.ack(item.id, environment_id=place.environment_id)
        return item


@contextlib.asynccontextmanager
async def worker(place: Place, workdir: Path, max_idle: float, own: tuple[Any, ...] = ()) -> AsyncIterator[Any]:
    """A worker that serves the item which is due, as a task."""
    item = claimed(place)
    key = place.environ["ANTHROPIC_ENVIRONMENT_KEY"]
    async with anthropic.AsyncAnthropic(auth_token=key, base_url=place.world.claude.url) as client:
        serves = client.beta.environments.work.worker(
            environment_id=place.environment_id,
            environment_key=key,
            workdir=workdir,
            max_idle=max_idle,
            tools=lambda context: [*beta_agent_toolset_20260401(context), *own],
        )
        task = asyncio.create_task(
            serves.handle_item(
                work_id=item.id,
                environment_id=place.environment_id,
                session_id=item.data.id,
                work_secret=item.secret,
            )
        )
        try:
            async with asyncio.timeout(PATIENCE):
                yield task
                await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def serve(place: Place, workdir: Path, *own: Any, during: Callable[[], None] | None = None) -> None:
    """Until the worker leaves. `during`: what a person does meanwhile."""

    async def play() -> None:
        async with worker(place, workdir, 0.2, own):
            if during is not None:
                await asyncio.to_thread(during)

    asyncio.run(play())


def waits(place: Place, session_id: str) -> list[str]:
    """The calls that an idle session waits for."""
    newest = place.world.api.beta.sessions.events.list(
        session_id, order="desc", limit=1, types=["session.status_idle", "session.status_running"]
    ).data[0]
    reason = getattr(newest, "stop_reason", None)
    return list(reason.event_ids) if reason is not None and reason.type == "requires_action" else []


def send(place: Place, session_id: str, **event: Any) -> None:
    place.world.api.beta.sessions.events.send(session_id, events=[event])  # type: ignore[list-item]


def test_an_own_tool_and_the_toolset_are_served_in_one_turn(place: Place, tmp_path: Path) -> None:
    both = session(place, 'call get_order {"order": "7"}\n$ echo of the shell', TOOLSET, ORDERS)
    serve(place, tmp_path, get_order)
    (answer,) = place.answers(both)
    assert "order 7 is shipped" in answer and "returned: of the shell" in answer
    assert place.item(both)["state"] == "stopped"


def test_a_tool_that_fails_is_an_error_to_the_agent_and_the_turn_goes_on(place: Place, tmp_path: Path) -> None:
    wrong = session(place, 'call get_order {"order": "0"}\n$ echo after it', TOOLSET, ORDERS)
    serve(place, tmp_path, get_order)
    (answer,) = place.answers(wrong)
    assert "failed" in answer and "there is no such order" in answer and "returned: after it" in answer


def test_a_call_of_a_tool_that_the_worker_has_not_is_left_to_who_has_it(place: Place, tmp_path: Path) -> None:
    other = session(place, '$ echo first\ncall get_order {"order": "8"}', TOOLSET, ORDERS)

    def customer() -> None:
        def custom() -> list[str]:
            used = place.world.api.beta.sessions.events.list(other, types=["agent.custom_tool_use"]).data
            return [call for call in waits(place, other) if call in {event.id for event in used}]

        (call,) = until(custom, "the call never came")
        content = [{"type": "text", "text": "by somebody else"}]
        send(place, other, type="user.custom_tool_result", custom_tool_use_id=call, content=content)

    serve(place, tmp_path, during=customer)
    assert "by somebody else" in place.answers(other)[-1]


@pytest.mark.parametrize(("word", "ran"), [("allow", True), ("deny", False)])
def test_a_call_that_asks_waits_for_the_users_word(place: Place, tmp_path: Path, word: str, ran: bool) -> None:
    asks = session(place, f"$ touch {tmp_path}/touched", ASKS)

    def person() -> None:
        (call,) = until(lambda: waits(place, asks), "nothing was asked")
        assert not (tmp_path / "touched").exists()
        send(place, asks, type="user.tool_confirmation", tool_use_id=call, result=word)

    serve(place, tmp_path, during=person)
    place.wait_done(asks)
    assert (tmp_path / "touched").exists() is ran


def test_a_session_that_is_archived_ends_its_idle_worker(place: Place, tmp_path: Path) -> None:
    over = session(place, "$ echo done")

    async def play() -> None:
        async with worker(place, tmp_path, max_idle=600.0) as task:
            await asyncio.to_thread(place.wait_done, over)
            assert not task.done()
            await asyncio.to_thread(place.world.api.beta.sessions.archive, over)

    asyncio.run(play())
    assert place.item(over)["state"] == "stopped"


def test_an_item_is_stopped_even_where_its_handling_fails(place: Place) -> None:
    failing = session(place, "$ true")
    with polling(place) as work, pytest.raises(RuntimeError, match="of the handler"):
        for _ in iter_work(work, environment_id=place.environment_id, drain=True, block_ms=None):
            raise RuntimeError("of the handler")
    assert place.item(failing)["state"] in ("stopping", "stopped")


def test_who_hands_an_item_on_leaves_it_acked(place: Place) -> None:
    handed = session(place, "$ true")
    with polling(place) as work:
        handling = iter_work(work, environment_id=place.environment_id, drain=True, block_ms=None, auto_stop=False)
        assert [item.data.id for item in handling] == [handed]
    assert place.item(handed)["state"] == "starting"


def test_an_ack_that_is_refused_for_good_stops_its_item_and_the_next_one_comes(place: Place) -> None:
    first, second = session(place, "$ true"), session(place, "$ true")
    refused = place.item(first)["id"]
    place.world.claude_admin.post("faults", {"path": rf"/work/{refused}/ack$", "action": "status", "status": 400})
    with polling(place) as work:
        handling = iter_work(work, environment_id=place.environment_id, drain=True, block_ms=None, auto_stop=False)
        assert [item.data.id for item in handling] == [second]
    assert place.item(first)["state"] == "stopped"


def test_a_poller_waits_out_an_outage_and_gives_up_on_a_revoked_key(place: Place) -> None:
    waiting = session(place, "$ true")
    poll = rf"/environments/{place.environment_id}/work/poll"
    place.world.claude_admin.post("faults", {"path": poll, "action": "status", "status": 503, "times": 1})
    with polling(place) as work:
        handling = iter_work(work, environment_id=place.environment_id, block_ms=None, auto_stop=False)
        assert next(handling).data.id == waiting
        place.world.claude_admin.delete("keys", {"value": place.environ["ANTHROPIC_ENVIRONMENT_KEY"]})
        with pytest.raises(anthropic.AuthenticationError):
            next(handling)
