"""Routes of memory stores and memories (docs/wire/anthropic.md#43-requests-in-order). A sessions token reaches the
stores attached to its session; the environment key reaches none (docs/wire/anthropic.md#12-credentials)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.claude.attachments import access_to
from infra.local.claude.credentials import RouteGroup, SessionsToken, authorize
from infra.local.claude.errors import forbidden, invalid, not_found, not_offline
from infra.local.claude.events import within
from infra.local.claude.http import (
    MANAGED_AGENTS_BETA,
    MEMORY_BETA,
    caller,
    flag_param,
    int_param,
    json_body,
    limit_param,
    page_param,
    time_bounds,
)
from infra.local.claude.memories import MemoryStore
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.records import encode_cursor, page_of

BETAS = (MEMORY_BETA, MANAGED_AGENTS_BETA)
_FULL_PAGE = 20


def memory_routes(platform: ClaudePlatform) -> list[Route]:
    stores = platform.memory_stores

    async def collection(request: Request) -> Response:
        _administer(request)
        if request.method == "POST":
            return JSONResponse(stores.create(await json_body(request)).as_json())
        bounds = time_bounds(request, "created_at")
        found = stores.all(include_archived=flag_param(request, "include_archived"))
        rows = [store for store in found if within(store.created_at, bounds)]
        page, cursor = page_of(rows, limit_param(request, default=20, high=100), page_param(request))
        return JSONResponse({"data": [row.as_json() for row in page], "next_page": encode_cursor(cursor)})

    async def one(request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse(_store(request, write=False).as_json())
        _administer(request)
        store = stores.get(request.path_params["store_id"])
        if request.method == "DELETE":
            stores.delete(store)
            return JSONResponse({"id": store.id, "type": "memory_store_deleted"})
        stores.update(store, await json_body(request))
        return JSONResponse(store.as_json())

    async def archive(request: Request) -> Response:
        _administer(request)
        store = stores.get(request.path_params["store_id"])
        stores.archive(store)
        return JSONResponse(store.as_json())

    async def memories(request: Request) -> Response:
        store = _store(request, write=request.method == "POST")
        full = _full(request, default="basic")
        if request.method == "POST":
            return JSONResponse(stores.write(store, await json_body(request)).as_json(full=full))
        if int_param(request, "depth", low=0, high=_FULL_PAGE, default=0):
            raise not_offline("listing memories by depth")
        limit = limit_param(request, default=20, high=100)
        page, cursor = page_of(
            store.under(request.query_params.get("path_prefix")),
            min(limit, _FULL_PAGE) if full else limit,
            page_param(request),
            newest_first=False,
        )
        return JSONResponse({"data": [row.as_json(full=full) for row in page], "next_page": encode_cursor(cursor)})

    async def memory(request: Request) -> Response:
        store = _store(request, write=request.method != "GET")
        found = store.get(request.path_params["memory_id"])
        if request.method == "DELETE":
            stores.forget(store, found, request.query_params.get("expected_content_sha256"))
            return JSONResponse({"id": found.id, "type": "memory_deleted"})
        full = _full(request, default="full" if request.method == "GET" else "basic")
        if request.method == "POST":
            stores.rewrite(store, found, await json_body(request))
        return JSONResponse(found.as_json(full=full))

    async def versions(request: Request) -> Response:
        store, full = _store(request, write=False), _full(request, default="basic")
        wanted = {name: request.query_params.get(name) for name in ("memory_id", "operation")}
        rows = [
            version
            for version in store.versions.values()
            if all(value is None or getattr(version, name) == value for name, value in wanted.items())
        ]
        limit = limit_param(request, default=20, high=100)
        page, cursor = page_of(rows, min(limit, _FULL_PAGE) if full else limit, page_param(request))
        return JSONResponse({"data": [row.as_json(full=full) for row in page], "next_page": encode_cursor(cursor)})

    async def version(request: Request) -> Response:
        found = _store(request, write=False).version(request.path_params["version_id"])
        return JSONResponse(found.as_json(full=_full(request, default="full")))

    async def redact(request: Request) -> Response:
        _administer(request)
        store = stores.get(request.path_params["store_id"])
        found = store.version(request.path_params["version_id"])
        stores.redact(store, found)
        return JSONResponse(found.as_json(full=True))

    def _administer(request: Request) -> None:
        authorize(caller(request, platform, betas=BETAS), RouteGroup.MEMORY_STORES)

    def _store(request: Request, *, write: bool) -> MemoryStore:
        """The store, for a caller who may do that with it."""
        store_id = request.path_params["store_id"]
        principal = caller(request, platform, betas=BETAS)
        authorize(principal, RouteGroup.MEMORIES)
        if isinstance(principal, SessionsToken):
            session = platform.sessions.find(principal.session_id)
            access = access_to(session.resources, store_id) if session is not None else None
            if access is None:
                raise not_found(f"memory store {store_id}")
            if write and access == "read_only":
                raise forbidden("the memory store is attached read_only")
        return stores.get(store_id)

    base = "/v1/memory_stores/{store_id}"
    return [
        Route("/v1/memory_stores", collection, methods=["GET", "POST"]),
        Route(base, one, methods=["GET", "POST", "DELETE"]),
        Route(f"{base}/archive", archive, methods=["POST"]),
        Route(f"{base}/memory_versions", versions, methods=["GET"]),
        Route(f"{base}/memory_versions/{{version_id}}", version, methods=["GET"]),
        Route(f"{base}/memory_versions/{{version_id}}/redact", redact, methods=["POST"]),
        Route(f"{base}/memories", memories, methods=["GET", "POST"]),
        Route(f"{base}/memories/{{memory_id}}", memory, methods=["GET", "POST", "DELETE"]),
    ]


def _full(request: Request, *, default: str) -> bool:
    view = request.query_params.get("view", default)
    if view not in ("basic", "full"):
        raise invalid("view: expected basic or full")
    return view == "full"
