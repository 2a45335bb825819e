"""The service as one ASGI app: frame (ids, counts) around faults around the admin gate around the routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from infra.local.claude.admin import AdminGate, admin_routes
from infra.local.claude.errors import ClaudeApiError, envelope
from infra.local.claude.http import RequestFrame, RequestLog, error_response
from infra.local.claude.ids import new_id
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.routes_deployments import deployment_routes
from infra.local.claude.routes_memory import memory_routes
from infra.local.claude.routes_resources import agent_routes, environment_routes
from infra.local.claude.routes_sessions import session_routes
from infra.local.claude.routes_skills import skill_routes
from infra.local.claude.routes_work import work_routes
from infra.local.claude.routes_workspace import file_routes, model_routes, profile_routes, vault_routes
from infra.local.faults import FaultMiddleware


def build_app(platform: ClaudePlatform, admin_token: str) -> ASGIApp:
    log = RequestLog()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await platform.close()

    routes = [
        *work_routes(platform),
        *environment_routes(platform),
        *agent_routes(platform),
        *session_routes(platform),
        *skill_routes(platform),
        *memory_routes(platform),
        *model_routes(platform),
        *file_routes(platform),
        *vault_routes(platform),
        *profile_routes(platform),
        *deployment_routes(platform),
        *admin_routes(platform, log),
    ]
    handlers: dict[Any, Any] = {ClaudeApiError: error_response, HTTPException: error_response, 500: error_response}
    starlette = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    starlette.state.knobs = platform.knobs
    gated = AdminGate(starlette, admin_token)
    return RequestFrame(FaultMiddleware(gated, platform.faults, _fault_body), log, platform.knobs)


def _fault_body(status: int) -> dict[str, Any]:
    return envelope(status, f"injected fault: status {status}", new_id("req"))
