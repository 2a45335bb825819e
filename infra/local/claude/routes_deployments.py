"""Routes of deployments: sessions that are begun by a schedule or on request.

Here only a request begins one: a schedule is kept and shown, and nothing runs by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.claude.errors import ClaudeApiError, invalid
from infra.local.claude.http import administer, flag_param, json_body
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.records import list_field, merged_metadata, text_field
from infra.local.claude.routes_workspace import listing
from infra.local.claude.shelf import Kept

_KEPT: Final = ("resources", "schedule", "vault_ids", "budget")


def deployment_routes(platform: ClaudePlatform) -> list[Route]:
    deployments, runs = platform.deployments, platform.deployment_runs

    def _deployment(request: Request) -> Kept:
        administer(request, platform)
        return deployments.get(request.path_params["deployment_id"])

    async def collection(request: Request) -> Response:
        administer(request, platform)
        if request.method == "GET":
            return listing(request, deployments.all(include_archived=flag_param(request, "include_archived")))
        return JSONResponse(deployments.add(_fields(platform, await json_body(request), {})).as_json())

    async def one(request: Request) -> Response:
        found = _deployment(request)
        if request.method == "POST":
            deployments.change(found, _fields(platform, await json_body(request), found.fields))
        return JSONResponse(found.as_json())

    async def archive(request: Request) -> Response:
        found = _deployment(request)
        deployments.archive(found)
        return JSONResponse(found.as_json())

    async def pause(request: Request) -> Response:
        found = _deployment(request)
        deployments.change(found, {"status": "paused", "paused_reason": {"type": "manual"}})
        return JSONResponse(found.as_json())

    async def unpause(request: Request) -> Response:
        found = _deployment(request)
        deployments.change(found, {"status": "active", "paused_reason": None})
        return JSONResponse(found.as_json())

    async def run(request: Request) -> Response:
        found = _deployment(request)
        if found.archived_at is not None or found.fields["status"] == "paused":
            raise invalid("the deployment is archived or paused")
        body = {
            name: found.fields[name] for name in ("agent", "environment_id", "initial_events", "resources", "vault_ids")
        }
        outcome: dict[str, Any] = {"session_id": None, "error": None}
        try:
            outcome["session_id"] = platform.create_session(body).id
        except ClaudeApiError as error:
            outcome["error"] = {"type": "unknown_error", "message": error.message}
        context = {"deployment_id": found.id, "agent": found.fields["agent"], "trigger_context": {"type": "manual"}}
        return JSONResponse(runs.add({**context, **outcome}).as_json())

    async def all_runs(request: Request) -> Response:
        administer(request, platform)
        wanted = request.query_params.get("deployment_id")
        return listing(request, [row for row in runs.all() if wanted in (None, row.fields["deployment_id"])])

    async def one_run(request: Request) -> Response:
        administer(request, platform)
        return JSONResponse(runs.get(request.path_params["run_id"]).as_json())

    base = "/v1/deployments/{deployment_id}"
    return [
        Route("/v1/deployments", collection, methods=["GET", "POST"]),
        Route(base, one, methods=["GET", "POST"]),
        Route(f"{base}/archive", archive, methods=["POST"]),
        Route(f"{base}/pause", pause, methods=["POST"]),
        Route(f"{base}/unpause", unpause, methods=["POST"]),
        Route(f"{base}/run", run, methods=["POST"]),
        Route("/v1/deployment_runs", all_runs),
        Route("/v1/deployment_runs/{run_id}", one_run),
    ]


def _fields(platform: ClaudePlatform, body: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """Omitted fields are kept. Raises 400, and 404 for an agent or environment that is not there."""
    new = not current
    fields: dict[str, Any] = {
        "name": text_field(body, "name", required=new) or current.get("name"),
        "description": text_field(body, "description") if "description" in body else current.get("description"),
        "environment_id": text_field(body, "environment_id", required=new) or current.get("environment_id"),
        "agent": _agent(platform, body.get("agent")) if new or "agent" in body else current["agent"],
        "initial_events": list_field(body, "initial_events") or current.get("initial_events", []),
        "metadata": merged_metadata(current.get("metadata", {}), body.get("metadata")),
        "status": current.get("status", "active"),
        "paused_reason": current.get("paused_reason"),
    }
    platform.environments.get(fields["environment_id"])
    if not fields["initial_events"]:
        raise invalid("initial_events: expected a non-empty array")
    empty: Mapping[str, Any] = {"resources": [], "schedule": None, "vault_ids": [], "budget": None}
    return fields | {name: body[name] if name in body else current.get(name, empty[name]) for name in _KEPT}


def _agent(platform: ClaudePlatform, given: object) -> dict[str, Any]:
    reference = {"id": given} if isinstance(given, str) else given
    if not isinstance(reference, dict) or not isinstance(reference.get("id"), str):
        raise invalid("agent: expected an id or a reference")
    agent = platform.agents.get(reference["id"])
    return {"type": "agent", "id": agent.id, "version": reference.get("version") or agent.version}
