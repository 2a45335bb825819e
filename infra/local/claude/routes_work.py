"""Routes of the work queue (docs/wire/anthropic.md#32-endpoints)."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.claude.credentials import ApiKey, Principal, RouteGroup, SessionsToken, authorize
from infra.local.claude.errors import KeyRefused, invalid
from infra.local.claude.http import caller, int_param, json_body, limit_param, page_param
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.records import encode_cursor, merged_metadata
from infra.local.claude.work import DEFAULT_RECLAIM_MS, OfflineWorkItem

_LOOK_AGAIN = 0.02
"""Seconds between looks of a held poll; new items wake it at once, lapses of leases and reservations do not."""


def work_routes(platform: ClaudePlatform) -> list[Route]:
    queue = platform.queue
    arrivals: set[asyncio.Event] = set()

    def wake_pollers() -> None:
        for arrival in arrivals:
            arrival.set()

    queue.on_queued = wake_pollers

    async def poll(request: Request) -> Response:
        environment_id = request.path_params["environment_id"]
        principal = caller(request, platform)
        if not (platform.knobs.api_key_polls and isinstance(principal, ApiKey)):
            authorize(principal, RouteGroup.CLAIM, environment_id=environment_id)
        platform.queue_of(environment_id, cloud=400)
        block_ms = int_param(request, "block_ms", low=1, high=platform.knobs.longest_block_ms)
        reclaim = int_param(request, "reclaim_older_than_ms", low=0, high=2**40, default=DEFAULT_RECLAIM_MS)
        queue.note_poller(environment_id, request.headers.get("anthropic-worker-id"))
        item = await _held_claim(request, environment_id, (block_ms or 0) / 1000, reclaim or 0)
        if item is None:
            return Response(b"null", media_type="application/json")
        return JSONResponse(item.as_json(platform.secret_for(item)))

    async def _held_claim(
        request: Request, environment_id: str, seconds: float, reclaim: int
    ) -> OfflineWorkItem | None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        arrival = asyncio.Event()
        arrivals.add(arrival)
        try:
            while True:
                item = queue.claim(environment_id, reclaim)
                left = end - loop.time()
                if item is not None or left <= 0:
                    return item
                arrival.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(arrival.wait(), min(left, _LOOK_AGAIN))
                if await request.is_disconnected():
                    # Nobody would get the item, and it would be reserved all the same.
                    return None
        finally:
            arrivals.discard(arrival)

    async def ack(request: Request) -> Response:
        item = _item(request, RouteGroup.CLAIM, extra="ack")
        queue.acknowledge(item)
        return JSONResponse(item.as_json())

    async def heartbeat(request: Request) -> Response:
        item = _item(request, RouteGroup.HEARTBEAT, extra="beat")
        ttl = int_param(request, "desired_ttl_seconds", low=1, high=86400)
        return JSONResponse(queue.heartbeat(item, request.query_params.get("expected_last_heartbeat"), ttl))

    async def stop(request: Request) -> Response:
        item = _item(request, RouteGroup.STOP)
        body = await json_body(request)
        force = body.get("force", False)
        if not isinstance(force, bool | None):
            raise invalid("force: expected true or false")
        queue.stop(item, force=bool(force))
        return JSONResponse(item.as_json())

    async def one(request: Request) -> Response:
        item = _item(request, RouteGroup.ITEM)
        if request.method == "POST":
            body = await json_body(request)
            item.metadata = merged_metadata(item.metadata, body.get("metadata"))
        return JSONResponse(item.as_json())

    async def collection(request: Request) -> Response:
        environment_id = request.path_params["environment_id"]
        _look(request, environment_id, "list")
        platform.queue_of(environment_id, cloud=404)
        limit = limit_param(request, default=20, high=platform.knobs.longest_work_page)
        page, cursor = queue.page(environment_id, limit, page_param(request))
        return JSONResponse({"data": [item.as_json() for item in page], "next_page": encode_cursor(cursor)})

    async def stats(request: Request) -> Response:
        environment_id = request.path_params["environment_id"]
        _look(request, environment_id, "stats")
        platform.queue_of(environment_id, cloud=None)
        return JSONResponse(queue.stats(environment_id))

    def _look(request: Request, environment_id: str, what: str) -> None:
        principal = caller(request, platform)
        if isinstance(principal, ApiKey) and not platform.knobs.api_key_lists:
            raise KeyRefused("refused_elsewhere", "an API key may not look at the queue")
        if not _reaches(principal, what):
            authorize(principal, RouteGroup.QUEUE, environment_id=environment_id)

    def _item(request: Request, access: RouteGroup, *, extra: str = "") -> OfflineWorkItem:
        environment_id, work_id = request.path_params["environment_id"], request.path_params["work_id"]
        principal = caller(request, platform)
        serves = bool(extra) and isinstance(principal, ApiKey) and platform.knobs.api_key_serves
        if not serves and not _reaches(principal, extra):
            authorize(principal, access, environment_id=environment_id, work_id=work_id)
        return queue.get(environment_id, work_id)

    def _reaches(principal: Principal, what: str) -> bool:
        return isinstance(principal, SessionsToken) and what in platform.knobs.token_reach

    base = "/v1/environments/{environment_id}/work"
    return [
        Route(base, collection, methods=["GET"]),
        Route(f"{base}/poll", poll, methods=["GET"]),
        Route(f"{base}/stats", stats, methods=["GET"]),
        Route(f"{base}/{{work_id}}", one, methods=["GET", "POST"]),
        Route(f"{base}/{{work_id}}/ack", ack, methods=["POST"]),
        Route(f"{base}/{{work_id}}/heartbeat", heartbeat, methods=["POST"]),
        Route(f"{base}/{{work_id}}/stop", stop, methods=["POST"]),
    ]
