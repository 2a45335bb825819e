"""Routes of sessions, their events and their one thread (docs/wire/anthropic.md#8-sessions-api)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from infra.local.claude.credentials import ApiKey, EnvironmentKey, RouteGroup, SessionsToken, authorize
from infra.local.claude.errors import forbidden, invalid, not_found
from infra.local.claude.events import within
from infra.local.claude.http import (
    administer,
    caller,
    flag_param,
    int_param,
    json_body,
    limit_param,
    list_param,
    order_param,
    page_param,
    time_bounds,
)
from infra.local.claude.ids import canonical_session_id
from infra.local.claude.inputs import RESULT_TYPES, checked_events
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.records import encode_cursor, page_of
from infra.local.claude.sessions import OfflineSession

STATUSES = ("rescheduling", "running", "idle", "terminated")
PREVIEWS = ("agent.message", "agent.thinking")


def session_routes(platform: ClaudePlatform) -> list[Route]:
    sessions, knobs = platform.sessions, platform.knobs

    async def collection(request: Request) -> Response:
        administer(request, platform)
        if request.method == "POST":
            session = platform.create_session(await json_body(request))
            return JSONResponse(session.as_json(platform.clock.now()))
        rows = _filtered(request)
        limit, newest_first = (
            limit_param(request, default=20, high=knobs.longest_sessions_page),
            order_param(request, "desc"),
        )
        page, cursor = page_of(rows, limit, page_param(request), newest_first=newest_first)
        data = [session.as_json(platform.clock.now()) for session in page]
        return JSONResponse({"data": data, "next_page": encode_cursor(cursor), "prev_page": None})

    def _filtered(request: Request) -> list[OfflineSession]:
        statuses = list_param(request, "statuses")
        if unknown := set(statuses) - set(STATUSES):
            raise invalid(f"statuses: unknown {', '.join(sorted(unknown))}")
        agent_id = request.query_params.get("agent_id")
        version = int_param(request, "agent_version", low=1, high=2**31)
        archived = flag_param(request, "include_archived")
        bounds = time_bounds(request, "created_at")
        return [
            session
            for session in sessions.all()
            if (archived or session.archived_at is None)
            and (not statuses or session.status in statuses)
            and (agent_id is None or session.agent["id"] == agent_id)
            and (agent_id is None or version is None or session.agent["version"] == version)
            and within(session.created_at, bounds)
        ]

    async def one(request: Request) -> Response:
        if request.method == "GET":
            session = _session(request, RouteGroup.SESSION)
        elif request.method == "POST":
            session = _session(request, RouteGroup.SESSION_CHANGE)
            platform.update_session(session, await json_body(request))
        else:
            session = _session(request, RouteGroup.ADMINISTRATION)
            platform.delete_session(session)
            return JSONResponse({"id": session.id, "type": "session_deleted"})
        return JSONResponse(session.as_json(platform.clock.now()))

    async def archive(request: Request) -> Response:
        session = _session(request, RouteGroup.SESSION_CHANGE)
        platform.archive_session(session)
        return JSONResponse(session.as_json(platform.clock.now()))

    async def events(request: Request) -> Response:
        session = _session(request, RouteGroup.SESSION)
        if request.method == "POST":
            payloads = checked_events(await json_body(request), "events", session)
            if platform.knobs.no_events_from_environment_keys and isinstance(caller(request, platform), EnvironmentKey):
                raise forbidden("this credential may not send events")
            strict = platform.knobs.results_only_for_workers
            if strict and not isinstance(caller(request, platform), ApiKey):
                _refuse_other_than_results([payload["type"] for payload in payloads])
            return JSONResponse({"data": platform.turns.accept(session, payloads)})
        types = list_param(request, "types")
        page, cursor = session.log.select(
            types=frozenset(types) if types else None,
            after=page_param(request) or 0,
            newest_first=order_param(request, "asc"),
            limit=limit_param(request, default=100, high=knobs.longest_events_page),
            bounds=time_bounds(request, "created_at"),
        )
        return JSONResponse({"data": page, "next_page": encode_cursor(cursor)})

    async def stream(request: Request) -> Response:
        session = _session(request, RouteGroup.SESSION)
        if unknown := set(list_param(request, "event_deltas")) - set(PREVIEWS):
            raise invalid(f"event_deltas: unknown {', '.join(sorted(unknown))}")
        headers = {"cache-control": "no-cache"}
        return StreamingResponse(_frames(session), media_type="text/event-stream", headers=headers)

    def _frames(session: OfflineSession) -> AsyncIterator[bytes]:
        # Listening begins here, before the answer's first byte: a client that has the headers misses nothing.
        listener = session.log.listen()

        async def frames() -> AsyncIterator[bytes]:
            async for event in listener.events(knobs.ping_interval):
                if event is None:
                    yield b'event: ping\ndata: {"type":"ping"}\n\n'
                    continue
                data = json.dumps(event, separators=(",", ":"))
                names = {"type": f"event: {event['type']}\n", "message": "event: message\n", "none": ""}
                yield f"{names[knobs.event_names]}data: {data}\n\n".encode()

        return frames()

    async def threads(request: Request) -> Response:
        session = _session(request, RouteGroup.SESSION)
        return JSONResponse({"data": [session.thread_as_json()], "next_page": None})

    async def thread(request: Request) -> Response:
        return JSONResponse(_thread(request).thread_as_json())

    async def thread_archive(request: Request) -> Response:
        _thread(request)
        raise invalid("the primary thread cannot be archived: archive the session")

    async def thread_events(request: Request) -> Response:
        _thread(request)
        return await events(request)

    async def thread_stream(request: Request) -> Response:
        _thread(request)
        return await stream(request)

    def _thread(request: Request) -> OfflineSession:
        session = _session(request, RouteGroup.SESSION)
        if request.path_params["thread_id"] != session.thread_id:
            raise not_found(f"thread {request.path_params['thread_id']}")
        return session

    async def resources(request: Request) -> Response:
        session = _session(request, RouteGroup.SESSION if request.method == "GET" else RouteGroup.SESSION_CHANGE)
        if request.method == "POST":
            kind = (await json_body(request)).get("type")
            raise invalid(f"resources: {kind!r} is not supported in self-hosted environments")
        return JSONResponse({"data": session.resources, "next_page": None})

    async def resource(request: Request) -> Response:
        session = _session(request, RouteGroup.SESSION if request.method == "GET" else RouteGroup.SESSION_CHANGE)
        wanted = request.path_params["resource_id"]
        found = next((row for row in session.resources if row["memory_store_id"] == wanted), None)
        if found is None:
            raise not_found(f"resource {wanted}")
        if request.method == "POST":
            raise invalid("a memory store has nothing that can be changed here: detach it, and make a session anew")
        if request.method == "DELETE":
            session.resources.remove(found)
            return JSONResponse({"id": wanted, "type": "session_resource_deleted"})
        return JSONResponse(found)

    def _session(request: Request, access: RouteGroup) -> OfflineSession:
        """The session, for a caller who may know that it exists."""
        session_id = canonical_session_id(request.path_params["session_id"])
        principal = caller(request, platform)
        session = sessions.find(session_id)
        owner = session.environment_id if session is not None else None
        beyond = isinstance(principal, SessionsToken) and "sessions" in knobs.token_reach
        if not (beyond and access is RouteGroup.SESSION):
            authorize(principal, access, environment_id=owner, session_id=session_id)
        return sessions.get(session_id)

    base = "/v1/sessions/{session_id}"
    return [
        Route("/v1/sessions", collection, methods=["GET", "POST"]),
        Route(base, one, methods=["GET", "POST", "DELETE"]),
        Route(f"{base}/archive", archive, methods=["POST"]),
        Route(f"{base}/events", events, methods=["GET", "POST"]),
        Route(f"{base}/events/stream", stream, methods=["GET"]),
        Route(f"{base}/resources", resources, methods=["GET", "POST"]),
        Route(f"{base}/resources/{{resource_id}}", resource, methods=["GET", "POST", "DELETE"]),
        Route(f"{base}/threads", threads, methods=["GET"]),
        Route(f"{base}/threads/{{thread_id}}", thread, methods=["GET"]),
        Route(f"{base}/threads/{{thread_id}}/archive", thread_archive, methods=["POST"]),
        Route(f"{base}/threads/{{thread_id}}/events", thread_events, methods=["GET"]),
        Route(f"{base}/threads/{{thread_id}}/stream", thread_stream, methods=["GET"]),
    ]


def _refuse_other_than_results(kinds: list[str]) -> None:
    if other := [kind for kind in kinds if kind not in RESULT_TYPES]:
        raise forbidden(f"this credential may not send {', '.join(other)}")
