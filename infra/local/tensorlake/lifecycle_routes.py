"""Routes of the lifecycle plane: requests in, records out (docs/wire/tensorlake.md#5-lifecycle-endpoints,
docs/wire/tensorlake.md#6-snapshots)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.tensorlake.errors import TensorlakeApiError, bad_request, not_supported
from infra.local.tensorlake.layers import BaseRoot
from infra.local.tensorlake.lifecycle import Lifecycle
from infra.local.tensorlake.names import new_id
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.records import ENDED, ROUTABLE, Sandbox, Status, created, info
from infra.local.tensorlake.requests import (
    CreateRequest,
    UpdateRequest,
    create_budget,
    milliseconds,
    parsed,
)
from infra.local.tensorlake.snapshots import OfflineSnapshot, Snapshots

PAGE = 100
MOST_COPIES = 64
LONGEST_CREATE_SECONDS = 300.0
SETTLED = {*ROUTABLE, *ENDED}


async def settled(sandbox: Sandbox, request: Request, url: str, *, ended: int = 200) -> Response:
    """The answer to a blocking create: when it runs, when it has ended, or when the caller's time is over."""
    budget = create_budget(request)
    if not await sandbox.wait_for(SETTLED, LONGEST_CREATE_SECONDS if budget is None else budget):
        return _timed_out(sandbox)
    return JSONResponse(created(sandbox, url), ended if sandbox.status in ENDED else 200)


@dataclass
class LifecycleRoutes:
    platform: TensorlakePlatform
    lifecycle: Lifecycle
    snapshots: Snapshots

    def routes(self) -> list[Route]:
        one = "/sandboxes/{key}"
        return [
            Route("/sandboxes", self.create, methods=["POST"]),
            Route("/sandboxes", self.list, methods=["GET"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.update, methods=["PATCH"]),
            Route(one, self.terminate, methods=["DELETE"]),
            Route(f"{one}/suspend", self.suspend, methods=["POST"]),
            Route(f"{one}/resume", self.resume, methods=["POST"]),
            Route(f"{one}/snapshot", self.take_snapshot, methods=["POST"]),
            Route(f"{one}/snapshots", self.list_own_snapshots, methods=["GET"]),
            Route("/snapshots", self.list_snapshots, methods=["GET"]),
            Route("/snapshots/{snapshot_id}", self.get_snapshot, methods=["GET"]),
            Route("/snapshots/{snapshot_id}", self.delete_snapshot, methods=["DELETE"]),
            Route(f"{one}/copy", self.copy, methods=["POST"]),
            *_refused(f"{one}/file_systems", "file systems"),
            *_refused("/file_systems{rest:path}", "file systems"),
            *_refused(f"{one}/logs", "logs"),
            *_refused(f"{one}/processes", "process logs"),
            *_refused("/archived-sandboxes{rest:path}", "the archive", "list() has ended sandboxes too"),
        ]

    def _sandbox(self, request: Request) -> Sandbox:
        return self.platform.find(request.state.namespace, request.path_params["key"])

    def _info(self, sandbox: Sandbox, asked_by: str | None = None) -> Response:
        return JSONResponse(info(sandbox, self.platform.url, asked_by=asked_by))

    async def create(self, request: Request) -> Response:
        wanted = await parsed(CreateRequest, request)
        sandbox, fault = self.lifecycle.create(request.state.namespace, wanted)
        if not wanted.wait:
            answer: dict[str, Any] = {"sandbox_id": sandbox.id, "state": sandbox.status}
            optional = {"pending_reason": sandbox.pending_reason, "name": sandbox.name}
            answer.update({key: value for key, value in optional.items() if value is not None})
            return JSONResponse(answer, 202)
        if fault is not None and fault.outcome == "stuck_pending":
            return JSONResponse(created(sandbox, self.platform.url))
        if fault is not None and fault.outcome == "timeout":
            return _timed_out(sandbox)
        return await settled(sandbox, request, self.platform.url, ended=200 if fault is None else fault.status)

    async def list(self, request: Request) -> Response:
        rows = [each for each in self.platform.sandboxes.values() if each.namespace == request.state.namespace]
        settings = self.platform.settings
        if not settings.list_has_ended:
            rows = [each for each in rows if each.live]
        page, cursor = _page(rows, request, newest_first=settings.list_order == "newest_first")
        for each in page:
            await self._looked_at(each)
        return _listing("sandboxes", [info(each, self.platform.url) for each in page], cursor, settings.page_key)

    async def get(self, request: Request) -> Response:
        sandbox = self._sandbox(request)
        await self._looked_at(sandbox)
        return self._info(sandbox, asked_by=request.path_params["key"])

    async def _looked_at(self, sandbox: Sandbox) -> None:
        if self.platform.settings.looks_wake and sandbox.status is Status.SUSPENDED:
            await self.lifecycle.resume(sandbox, None)

    async def update(self, request: Request) -> Response:
        sandbox = self._sandbox(request)
        self.lifecycle.update(sandbox, await parsed(UpdateRequest, request))
        return self._info(sandbox)

    async def terminate(self, request: Request) -> Response:
        sandbox = self._sandbox(request)
        # Not the request's own task: a client that hangs up must not leave a sandbox half ended.
        await asyncio.shield(self.platform.spawn(self.lifecycle.terminate(sandbox)))
        return self._info(sandbox)

    async def suspend(self, request: Request) -> Response:
        sandbox = self._sandbox(request)
        done = await self.lifecycle.suspend(sandbox, milliseconds(request, "wait_ms"))
        return JSONResponse(info(sandbox, self.platform.url), 200 if done else 202)

    async def resume(self, request: Request) -> Response:
        sandbox = self._sandbox(request)
        done = await self.lifecycle.resume(sandbox, milliseconds(request, "wait_ms"))
        return JSONResponse(info(sandbox, self.platform.url), 200 if done else 202)

    async def take_snapshot(self, request: Request) -> Response:
        sandbox = self._sandbox(request)
        try:
            body = await request.json() if await request.body() else {}
        except ValueError:
            raise bad_request("the body is not JSON") from None
        snapshot = await self.snapshots.take(sandbox, str(body.get("snapshot_type") or "filesystem"))
        return JSONResponse({"snapshot_id": snapshot.id, "status": snapshot.stage}, 202)

    async def copy(self, request: Request) -> Response:
        """Rows tell of each copy for itself; 207 where some failed (docs/wire/tensorlake.md#58-copy)."""
        times = request.query_params.get("times", "1")
        if not times.isdigit() or not 1 <= int(times) <= MOST_COPIES:
            raise bad_request(f"times must be a number between 1 and {MOST_COPIES}")
        source = self._sandbox(request)
        if (status := self.platform.settings.copy_status) is not None:
            raise TensorlakeApiError(status, "NOT_ALLOWED", "live copies are switched off")
        base = await self.snapshots.fork(source)
        try:
            rows = await asyncio.gather(*(self._copied(source, base) for _ in range(int(times))))
        finally:
            await self.snapshots.drop(base)
        whole = all(row["status"] == Status.RUNNING for row in rows)
        return JSONResponse({"source_sandbox_id": source.id, "sandboxes": rows}, 200 if whole else 207)

    async def _copied(self, source: Sandbox, base: BaseRoot) -> dict[str, Any]:
        try:
            sandbox = self.lifecycle.copy(source, base)
        except TensorlakeApiError as error:
            return {"sandbox_id": new_id(), "status": "failed", "reason": str(error)}
        await sandbox.wait_for(SETTLED, LONGEST_CREATE_SECONDS)
        return created(sandbox, self.platform.url)

    async def list_own_snapshots(self, request: Request) -> Response:
        sandbox = self._sandbox(request)
        rows = [each for each in self.snapshots.all() if each.sandbox_id == sandbox.id]
        return self._snapshot_listing(rows, request)

    async def list_snapshots(self, request: Request) -> Response:
        rows = [each for each in self.snapshots.all() if each.namespace == request.state.namespace]
        return self._snapshot_listing(rows, request)

    def _snapshot_listing(self, rows: Sequence[OfflineSnapshot], request: Request) -> Response:
        page, cursor = _page(rows, request)
        listed = [each.info() for each in page]
        if not self.platform.settings.snapshots_have_type:
            for row in listed:
                del row["snapshot_type"]
        return _listing("snapshots", listed, cursor, self.platform.settings.page_key)

    async def get_snapshot(self, request: Request) -> Response:
        return JSONResponse(self.snapshots.find(request.path_params["snapshot_id"]).info())

    async def delete_snapshot(self, request: Request) -> Response:
        await self.snapshots.delete(request.path_params["snapshot_id"])
        return JSONResponse({})


def _timed_out(sandbox: Sandbox) -> Response:
    return JSONResponse({"sandbox_id": sandbox.id, "status": "timeout"}, 504)


Row = TypeVar("Row", Sandbox, OfflineSnapshot)


def _page(rows: Sequence[Row], request: Request, *, newest_first: bool = False) -> tuple[Sequence[Row], str | None]:
    """One page and the cursor of the next. Oldest first by default, so a page stays put while others are added."""
    cursor = request.query_params.get("cursor", "0")
    limit = request.query_params.get("limit", str(PAGE))
    if not cursor.isdigit() or not limit.isdigit() or int(limit) < 1:
        raise bad_request("cursor or limit is not valid")
    after = [row for row in rows if row.sequence > int(cursor)]
    if newest_first:
        after = [row for row in reversed(rows) if cursor == "0" or row.sequence < int(cursor)]
    page = after[: int(limit)]
    return page, str(page[-1].sequence) if len(after) > len(page) else None


def _listing(key: str, rows: list[dict[str, Any]], cursor: str | None, page_key: str) -> Response:
    return JSONResponse({key: rows, page_key: cursor} if cursor else {key: rows})


def _refused(path: str, what: str, advice: str = "") -> list[Route]:
    async def endpoint(_: Request) -> Response:
        raise not_supported(what, advice)

    handler: Callable[[Request], Awaitable[Response]] = endpoint
    return [Route(path, handler, methods=["GET", "POST", "PUT", "DELETE"])]
