"""What an API key belongs to: other clients of the service ask before they build an image."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

PROJECT = "project_offline"
ORGANIZATION = "org_offline"


async def introspect(_: Request) -> Response:
    """The key itself was checked before; there is one project here."""
    return JSONResponse({"id": "apiKey_offline", "projectId": PROJECT, "organizationId": ORGANIZATION})


def key_routes() -> list[Route]:
    return [Route("/platform/v1/keys/introspect", introspect, methods=["GET", "POST"])]
