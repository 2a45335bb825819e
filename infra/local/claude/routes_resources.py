"""Routes of environments and agents (docs/wire/anthropic.md#2-environments, docs/wire/anthropic.md#7-agents-api)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.claude.agents import Agent
from infra.local.claude.environments import OfflineEnvironment
from infra.local.claude.events import within
from infra.local.claude.http import administer, flag_param, json_body, limit_param, page_param, time_bounds
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.records import encode_cursor, page_of


def environment_routes(platform: ClaudePlatform) -> list[Route]:
    environments = platform.environments

    async def collection(request: Request) -> Response:
        administer(request, platform)
        if request.method == "POST":
            return JSONResponse(environments.create(await json_body(request)).as_json())
        rows = environments.all(include_archived=flag_param(request, "include_archived"))
        page, cursor = page_of(rows, limit_param(request, default=20, high=100), page_param(request))
        return JSONResponse({"data": [row.as_json() for row in page], "next_page": encode_cursor(cursor)})

    async def one(request: Request) -> Response:
        environment = _environment(request)
        if request.method == "POST":
            environments.update(environment, await json_body(request))
        elif request.method == "DELETE":
            environments.delete(environment)
            return JSONResponse({"id": environment.id, "type": "environment_deleted"})
        return JSONResponse(environment.as_json())

    async def archive(request: Request) -> Response:
        environment = _environment(request)
        environments.archive(environment)
        return JSONResponse(environment.as_json())

    def _environment(request: Request) -> OfflineEnvironment:
        administer(request, platform)
        return environments.get(request.path_params["environment_id"])

    return [
        Route("/v1/environments", collection, methods=["GET", "POST"]),
        Route("/v1/environments/{environment_id}", one, methods=["GET", "POST", "DELETE"]),
        Route("/v1/environments/{environment_id}/archive", archive, methods=["POST"]),
    ]


def agent_routes(platform: ClaudePlatform) -> list[Route]:
    agents = platform.agents

    async def collection(request: Request) -> Response:
        administer(request, platform)
        if request.method == "POST":
            return JSONResponse(agents.create(await json_body(request)).as_json())
        bounds = time_bounds(request, "created_at")
        rows = [
            agent
            for agent in agents.all(include_archived=flag_param(request, "include_archived"))
            if within(agent.created_at, bounds)
        ]
        page, cursor = page_of(rows, limit_param(request, default=20, high=100), page_param(request))
        return JSONResponse({"data": [row.as_json() for row in page], "next_page": encode_cursor(cursor)})

    async def one(request: Request) -> Response:
        agent = _agent(request)
        if request.method == "POST":
            agents.update(agent, await json_body(request))
        return JSONResponse(agent.as_json())

    async def archive(request: Request) -> Response:
        agent = _agent(request)
        agents.archive(agent)
        return JSONResponse(agent.as_json())

    async def versions(request: Request) -> Response:
        agent = _agent(request)
        limit, before = limit_param(request, default=20, high=100), page_param(request)
        numbers = [n for n in range(agent.version, 0, -1) if before is None or n < before]
        page = numbers[:limit]
        cursor = page[-1] if len(numbers) > limit else None
        return JSONResponse({"data": [agent.as_json(n) for n in page], "next_page": encode_cursor(cursor)})

    def _agent(request: Request) -> Agent:
        administer(request, platform)
        return agents.get(request.path_params["agent_id"])

    return [
        Route("/v1/agents", collection, methods=["GET", "POST"]),
        Route("/v1/agents/{agent_id}", one, methods=["GET", "POST"]),
        Route("/v1/agents/{agent_id}/archive", archive, methods=["POST"]),
        Route("/v1/agents/{agent_id}/versions", versions, methods=["GET"]),
    ]
