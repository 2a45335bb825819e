"""Which calls an idle session waits for, read from its newest events through the real SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import anthropic
import httpx2
import pytest

from shared.adapters.open_calls import LOST_CALL, read_open_calls
from shared.ports import OpenCalls

SESSION = "sesn_1"


class PagedSession:
    """A session's events on the wire, oldest first; it answers filters, order and pages, and notes each request."""

    def __init__(self, events: Sequence[dict[str, Any]]) -> None:
        self.events = [{"id": f"sevt_{number}", **event} for number, event in enumerate(events)]
        self.asked: list[tuple[int, int]] = []  # limit and bytes

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        query = request.url.params
        wanted = query.get_list("types[]")
        rows = [event for event in reversed(self.events) if not wanted or event["type"] in wanted]
        limit, start = int(query.get("limit", "100")), int(query.get("page", "0"))
        page = rows[start : start + limit]
        body = json.dumps({"data": page, "next_page": str(start + limit) if start + limit < len(rows) else None})
        self.asked.append((limit, len(body)))
        return httpx2.Response(200, text=body, headers={"content-type": "application/json"})


def read(session: PagedSession) -> OpenCalls:
    async def play() -> OpenCalls:
        transport = httpx2.MockTransport(session.answer)
        http = anthropic.DefaultAsyncHttpxClient(transport=transport)
        async with anthropic.AsyncAnthropic(auth_token="none", base_url="http://test", http_client=http) as client:
            return await read_open_calls(client, SESSION)

    return asyncio.run(play())


def call(name: str, permission: str = "allow") -> dict[str, Any]:
    return {"type": "agent.tool_use", "id": name, "name": "bash", "input": {}, "evaluated_permission": permission}


def result(name: str, text: str = "o" * 5000) -> dict[str, Any]:
    return {"type": "user.tool_result", "tool_use_id": name, "content": [{"type": "text", "text": text}]}


def rests(*waiting: str) -> dict[str, Any]:
    kind = "requires_action" if waiting else "end_turn"
    return {"type": "session.status_idle", "stop_reason": {"type": kind, "event_ids": list(waiting)}}


TURN = {"type": "user.message", "processed_at": "2026-10-20T09:00:00Z", "content": []}


def test_a_session_that_waits_for_nothing_costs_one_small_question() -> None:
    history = [TURN, *(event for number in range(200) for event in (call(f"c{number}"), result(f"c{number}")))]
    session = PagedSession([*history, rests()])
    assert read(session) == OpenCalls()
    assert len(session.asked) == 1 and session.asked[0][1] < 1_000


@pytest.mark.parametrize("between", [0, 150, 600])
def test_a_call_is_found_however_many_events_came_after_it(between: int) -> None:
    many = [event for number in range(between) for event in (call(f"c{number}"), result(f"c{number}"))]
    session = PagedSession([TURN, call("lost"), *many, rests("lost")])
    assert read(session) == OpenCalls(("lost",))


def test_a_call_that_waits_for_a_person_is_not_a_workers_and_one_that_was_allowed_is() -> None:
    asked = [TURN, call("asked", "ask"), rests("asked")]
    assert read(PagedSession(asked)) == OpenCalls()
    allowed = {"type": "user.tool_confirmation", "tool_use_id": "asked", "result": "allow"}
    assert read(PagedSession([*asked, allowed])) == OpenCalls(("asked",))


def test_a_turn_that_has_lost_a_call_before_is_known_by_its_answer_and_another_turn_is_not() -> None:
    before = [call("first"), rests("first"), result("first", LOST_CALL)]
    again = [call("second"), rests("second")]
    assert read(PagedSession([TURN, *before, *again])) == OpenCalls(("second",), given_up=True)
    assert read(PagedSession([TURN, *before, TURN, *again])) == OpenCalls(("second",))


def test_what_cannot_be_found_is_an_error_and_never_nothing() -> None:
    session = PagedSession([TURN, *(call(f"c{number}") for number in range(2_100)), rests("never")])
    with pytest.raises(ValueError, match="not among its newest"):
        read(session)
