"""What an operator and a test may do to the platform itself: `/_admin/`, with the header `X-Admin-Token`."""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.faults import fault_routes
from infra.local.tensorlake.errors import TensorlakeApiError, bad_request, not_found
from infra.local.tensorlake.lifecycle import Lifecycle
from infra.local.tensorlake.link import SupervisorGone
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.records import Sandbox, Status, info
from infra.local.tensorlake.settings import TensorlakeSettings
from infra.local.tensorlake.snapshots import Snapshots

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass
class Admin:
    platform: TensorlakePlatform
    lifecycle: Lifecycle
    snapshots: Snapshots
    counts: Counter[str]
    token: str

    def routes(self) -> list[Route]:
        shared = fault_routes(self.platform.faults)
        own = [
            Route("/_admin/settings", self.settings, methods=["GET", "PATCH"]),
            Route("/_admin/state", self.state, methods=["GET"]),
            Route("/_admin/isolation", self.isolation, methods=["GET"]),
            Route("/_admin/counts", self.requests, methods=["GET", "DELETE"]),
            Route("/_admin/sandboxes/{key}/suspend", self.suspend, methods=["POST"]),
            Route("/_admin/sandboxes/{key}/expire", self.expire, methods=["POST"]),
            Route("/_admin/sandboxes/{key}/age", self.age, methods=["POST"]),
            Route("/_admin/sandboxes/{key}/fail", self.fail, methods=["POST"]),
            Route("/_admin/reset", self.reset, methods=["POST"]),
        ]
        return [
            Route(route.path, self._guarded(route.endpoint), methods=list(route.methods or []))
            for route in [*shared, *own]
        ]

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: Request) -> Response:
            given = request.headers.get("x-admin-token", "")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                raise TensorlakeApiError(403, "FORBIDDEN", "the header X-Admin-Token is missing or wrong")
            return await endpoint(request)

        return guarded

    async def settings(self, request: Request) -> Response:
        if request.method == "PATCH":
            try:
                wanted = {**self.platform.settings.model_dump(), **await request.json()}
                self.platform.turn(TensorlakeSettings.model_validate(wanted))
            except (ValidationError, ValueError, TypeError) as error:
                raise bad_request(str(error)) from None
        return JSONResponse(self.platform.settings.model_dump())

    async def isolation(self, _: Request) -> Response:
        return JSONResponse(self.platform.isolation.report())

    async def requests(self, request: Request) -> Response:
        counts = dict(self.counts)
        if request.method == "DELETE":
            self.counts.clear()
        return JSONResponse({"total": sum(counts.values()), "routes": counts})

    async def state(self, request: Request) -> Response:
        """`?named=TEXT`: of the sandboxes those alone whose names contain it. Each that runs is asked for its
        processes."""
        text = request.query_params.get("named", "")
        asked = [each for each in self.platform.sandboxes.values() if text in (each.name or "")]
        return JSONResponse(
            {
                "isolation": self.platform.isolation.report(),
                "sandboxes": [await self._sandbox(each) for each in asked],
                "snapshots": [each.info() for each in self.snapshots.all()],
                "images": [each.report() for each in self.platform.images.all()],
            }
        )

    async def _sandbox(self, sandbox: Sandbox) -> dict[str, Any]:
        """Never wakes a sleeper: a supervisor answers while its sandbox is frozen."""
        row = {"name": None, **info(sandbox, self.platform.url)}  # a warm one of a pool has none
        row |= {
            "snapshot_id": sandbox.snapshot_id,
            "open_requests": sandbox.open_requests,
            "idle_seconds": sandbox.idle_seconds(open_requests_count=False),
            "notes": sandbox.notes,
        }
        if sandbox.box is not None:
            row["box"] = sandbox.box.facts()
            try:
                row |= await sandbox.box.link.call({"op": "list"})
            except SupervisorGone:
                row["processes"] = []
        return row

    def _find(self, request: Request) -> Sandbox:
        sandbox = self.platform.find_anywhere(request.path_params["key"])
        if sandbox is None:
            raise not_found(f"sandbox '{request.path_params['key']}'")
        return sandbox

    async def suspend(self, request: Request) -> Response:
        sandbox = self._find(request)
        await self.lifecycle.suspend(sandbox, 30.0)
        return JSONResponse(info(sandbox, self.platform.url))

    async def expire(self, request: Request) -> Response:
        """As if the idle time-out had just passed."""
        sandbox = self._find(request)
        await self.lifecycle.expire(sandbox)
        return JSONResponse(info(sandbox, self.platform.url))

    async def age(self, request: Request) -> Response:
        """`{"seconds": N}`: so much time passes for its idle time-out."""
        sandbox = self._find(request)
        try:
            seconds = float((await request.json())["seconds"])
        except (ValueError, KeyError, TypeError):
            raise bad_request("seconds must be a number") from None
        await self.lifecycle.age(sandbox, seconds)
        return JSONResponse(info(sandbox, self.platform.url))

    async def fail(self, request: Request) -> Response:
        sandbox = self._find(request)
        await self.lifecycle.fail(sandbox, request.query_params.get("reason", "InternalError"))
        return JSONResponse(info(sandbox, self.platform.url))

    async def reset(self, _: Request) -> Response:
        """End and forget every sandbox and snapshot, all faults, counts and settings. Images stay."""
        self.platform.faults.clear()
        self.platform.faults.set_latency(0.0)
        self.platform.turn(TensorlakeSettings())
        everything = list(self.platform.sandboxes.values())
        alive = [sandbox for sandbox in everything if sandbox.status is not Status.TERMINATED]
        await asyncio.gather(*(self.lifecycle.terminate(sandbox, "reset") for sandbox in alive))
        for sandbox in everything:
            self.platform.names.release(sandbox.namespace, sandbox.name, sandbox.id)
        self.platform.sandboxes.clear()
        await self.snapshots.clear()
        self.counts.clear()
        return JSONResponse({"ended": len(alive)})
