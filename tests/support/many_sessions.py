"""Both services with a thousand sessions and as many sandboxes, for commands that look at everything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.process import listen
from shared import names

ENVIRONMENT = "env_01Abcdefghijklmnopqrstuv"
SESSIONS = 1_000
BUSY = 40
PAGE = 100
BEGAN = datetime(2026, 10, 20, 9, tzinfo=UTC)


class CrowdedService:
    """A thousand sessions of which forty work. `broken` answers by path with this status; `latency` in seconds.
    `status` is what functions at this address say of themselves; each list has these `headers`."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.broken: dict[str, int] = {}
        self.url = ""
        self.status: Any = {}
        self.headers: dict[str, str] = {}
        self.latency = 0.0

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        self.calls[path] += 1
        await asyncio.sleep(self.latency)
        for part, status in self.broken.items():
            if part in path:
                return JSONResponse({"error": {"type": "x", "message": "out of order"}}, status)
        if path == "/status":
            return JSONResponse(self.status)
        if path == "/v1/sessions":
            return self._page(request, [self._session(number) for number in range(SESSIONS)])
        if path.endswith("/work"):
            return self._page(request, [self._item(number) for number in range(SESSIONS)])
        if path.endswith("/events"):
            use = {"id": "sevt_1", "type": "agent.tool_use", "name": "bash", "input": {"command": "make"}}
            return JSONResponse({"data": [{**use, "processed_at": BEGAN.isoformat()}], "next_page": None})
        if path.endswith("/sandbox-usage/sandboxes/export"):
            return Response(self._usage(), media_type="application/x-ndjson")
        if path.startswith("/v1/sessions/"):
            return JSONResponse(self._session(int(path.rpartition("_")[2])))
        if "/sandboxes/" in path:
            boxes_by_name = {box["name"]: box for box in map(self._sandbox, range(SESSIONS))}
            box = boxes_by_name.get(path.rpartition("/")[2])
            return JSONResponse(box or {"message": "not found"}, 200 if box else 404)
        start = int(request.query_params.get("cursor", "0"))
        boxes = [self._sandbox(number) for number in range(start, start + PAGE)]
        following = {"cursor": str(start + PAGE)} if start + PAGE < SESSIONS else {}
        return JSONResponse({"sandboxes": boxes, **following})

    def _page(self, request: Request, rows: list[dict[str, Any]]) -> Response:
        start, limit = int(request.query_params.get("page", "0")), int(request.query_params["limit"])
        following = str(start + limit) if start + limit < len(rows) else None
        return JSONResponse({"data": rows[start : start + limit], "next_page": following}, headers=self.headers)

    def _session(self, number: int) -> dict[str, Any]:
        return {
            "id": f"sesn_{number:024d}",
            "environment_id": ENVIRONMENT,
            "status": "running" if number < BUSY else "idle",
            "created_at": (BEGAN - timedelta(minutes=number)).isoformat(),
        }

    def _usage(self) -> str:
        """As docs/wire/tensorlake.md#111-usage: each sandbox half an hour and three cents, and one that has ended."""
        window = {"windowStart": BEGAN.isoformat(), "windowEnd": BEGAN.isoformat(), "includedUsage": None}
        charge = {"currency": "usd", "amountMinor": "3003", "basis": "invoice"}
        lines: list[dict[str, Any]] = [
            {"type": "window", **window, "attributedUsageCharge": charge, "attributedUsageValue": None}
        ]
        units = {"cpu": "vCPU-hour", "memory": "GiB-hour", "sandboxStorage": "GiB-hour", "snapshotStorage": "GiB-hour"}
        amounts = {"attributedAmountMinor": "3", "usageValueAmountMinor": None}
        resources = {
            name: {"quantity": "0.5", "unit": unit, **amounts}
            for name, unit in {**units, "networkEgress": "GiB"}.items()
        }
        for identity in [*(self._sandbox(number)["id"] for number in range(SESSIONS)), "sbx-that-ended"]:
            lines.append({"type": "sandbox", "sandboxId": identity, "project": None, **amounts, "resources": resources})
        return "\n".join(map(json.dumps, [*lines, {"type": "end", "count": SESSIONS + 1}])) + "\n"

    def _sandbox(self, number: int) -> dict[str, Any]:
        return {
            "id": f"sbx{number:018d}",
            "name": names.sandbox_name("hands", ENVIRONMENT, f"sesn_{number:024d}"),
            "namespace": "default",
            "status": "running" if number < BUSY else "suspended",
            "resources": {"cpus": 1.0, "memory_mb": 1024, "disk_mb": 10240},
            "created_at": BEGAN.isoformat(),
        }

    def _item(self, number: int) -> dict[str, Any]:
        state = "active" if number < BUSY else "stopped"
        session = {"type": "session", "id": f"sesn_{number:024d}"}
        created = BEGAN - timedelta(minutes=number)
        return {"id": f"work_{number}", "state": state, "data": session, "created_at": created.isoformat()}


@contextlib.contextmanager
def many_sessions() -> Iterator[CrowdedService]:
    """Serves until the block ends."""
    made = CrowdedService()
    app = Starlette(routes=[Route("/{path:path}", made.answer, methods=["GET", "POST"])])
    listener = listen("127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield made
    finally:
        server.should_exit = True
        thread.join()


def variables(service: CrowdedService) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": service.url,
        "TENSORLAKE_API_URL": service.url,
        "ANTHROPIC_API_KEY": "sk-ant-api-x",
        "ANTHROPIC_ENVIRONMENT_ID": ENVIRONMENT,
        "ANTHROPIC_ENVIRONMENT_KEY": "sk-ant-oat01-x",
        "TENSORLAKE_API_KEY": "tl_x",
    }
