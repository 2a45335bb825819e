"""A look at a thousand sessions: a bounded number of calls, and what could not be seen is said."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.cli.environ import Loaded
from infra.cli.fleet.ps import as_line
from infra.cli.fleet.survey import MOST_CALLS, look
from infra.cli.session.follow import FeedRefused
from infra.local.process import listen

ENVIRONMENT = "env_01Abcdefghijklmnopqrstuv"
SESSIONS = 1_000
BUSY = 40
BEGAN = datetime(2026, 10, 20, 9, tzinfo=UTC)


class Service:
    """Both services, with a thousand sessions of which forty work. `broken` answers by path with this status."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.broken: dict[str, int] = {}
        self.url = ""

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        self.calls[path] += 1
        for part, status in self.broken.items():
            if part in path:
                return JSONResponse({"error": {"type": "x", "message": "out of order"}}, status)
        if path == "/v1/sessions":
            return self._page(request, [self._session(number) for number in range(SESSIONS)])
        if path.endswith("/work"):
            return self._page(request, [self._item(number) for number in range(SESSIONS)])
        if path.endswith("/events"):
            use = {"id": "sevt_1", "type": "agent.tool_use", "name": "bash", "input": {"command": "make"}}
            return JSONResponse({"data": [{**use, "processed_at": BEGAN.isoformat()}], "next_page": None})
        return JSONResponse({"sandboxes": []})

    def _page(self, request: Request, rows: list[dict[str, Any]]) -> Response:
        start, limit = int(request.query_params.get("page", "0")), int(request.query_params["limit"])
        following = str(start + limit) if start + limit < len(rows) else None
        return JSONResponse({"data": rows[start : start + limit], "next_page": following})

    def _session(self, number: int) -> dict[str, Any]:
        return {
            "id": f"sesn_{number:024d}",
            "environment_id": ENVIRONMENT,
            "status": "running" if number < BUSY else "idle",
            "created_at": (BEGAN - timedelta(minutes=number)).isoformat(),
        }

    def _item(self, number: int) -> dict[str, Any]:
        state = "active" if number < BUSY else "stopped"
        session = {"type": "session", "id": f"sesn_{number:024d}"}
        return {"id": f"work_{number}", "state": state, "data": session, "created_at": BEGAN.isoformat()}


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    app = Starlette(routes=[Route("/{path:path}", made.answer, methods=["GET", "POST"])])
    listener = listen("127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield made
    server.should_exit = True
    thread.join()


def loaded(service: Service) -> Loaded:
    return Loaded(
        {
            "ANTHROPIC_BASE_URL": service.url,
            "TENSORLAKE_API_URL": service.url,
            "ANTHROPIC_API_KEY": "sk-ant-api-x",
            "ANTHROPIC_ENVIRONMENT_ID": ENVIRONMENT,
            "ANTHROPIC_ENVIRONMENT_KEY": "sk-ant-oat01-x",
            "TENSORLAKE_API_KEY": "tl_x",
        },
        None,
    )


def seen(service: Service) -> dict[str, Any]:
    found = asyncio.run(look(loaded(service), time.time()))
    whole: dict[str, Any] = json.loads(as_line(found, everything=False))
    return whole


def test_a_thousand_sessions_cost_at_most_thirty_calls_and_the_working_ones_come_first(service: Service) -> None:
    whole = seen(service)
    assert len(whole["sessions"]) == SESSIONS and whole["not_seen"] == []
    assert whole["calls"] == service.calls.total() <= MOST_CALLS
    states = [row["state"] for row in whole["sessions"]]
    assert sum(state.startswith("bash make for") for state in states) >= 3
    assert {row["item_state"] for row in whole["sessions"][:BUSY]} == {"active"}


def test_a_part_that_cannot_be_read_is_said_and_the_rest_is_shown(service: Service) -> None:
    service.broken = {"/work": 503}
    whole = seen(service)
    assert len(whole["sessions"]) == SESSIONS
    assert whole["not_seen"] == [f"the queue of {ENVIRONMENT} was not seen: the Claude API answered 503"]
    assert service.calls.total() <= MOST_CALLS


def test_sandboxes_that_cannot_be_listed_are_unknown_and_never_absent(service: Service) -> None:
    service.broken = {"/sandboxes": 500}
    whole = seen(service)
    assert {row["sandbox_state"] for row in whole["sessions"]} == {"unknown"}
    assert "the sandboxes were not seen" in whole["not_seen"][0]


def test_a_key_that_is_refused_is_an_error_with_the_next_step(service: Service) -> None:
    service.broken = {"/v1/sessions": 401}
    with pytest.raises(FeedRefused, match="make doctor"):
        asyncio.run(look(loaded(service), time.time()))
