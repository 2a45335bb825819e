"""Routes of skills and their versions (docs/wire/anthropic.md#43-requests-in-order): no beta header, and open for
reading to every credential."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.claude.credentials import RouteGroup, SessionsToken, authorize
from infra.local.claude.errors import invalid
from infra.local.claude.http import caller, limit_param, page_param, raw_body
from infra.local.claude.multipart import Part, parse_form
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.records import encode_cursor, page_of
from infra.local.claude.skills import Skill, Upload

_LONGEST_PAGE = 1000


def skill_routes(platform: ClaudePlatform) -> list[Route]:
    skills = platform.skills

    async def collection(request: Request) -> Response:
        _authorize(request, RouteGroup.SKILLS)
        if request.method == "POST":
            parts = await _form(request)
            names = [part.content.decode(errors="replace") for part in parts if part.name == "display_name"]
            return JSONResponse(skills.create(_uploads(parts), names[0] if names else None).as_json())
        source = request.query_params.get("source", "custom")
        rows = skills.all() if source == "custom" else []
        page, cursor = page_of(rows, limit_param(request, default=20, high=_LONGEST_PAGE), page_param(request))
        return JSONResponse({"data": [row.as_json() for row in page], "next_page": encode_cursor(cursor)})

    async def one(request: Request) -> Response:
        skill = _skill(request, RouteGroup.SKILLS)
        if request.method == "DELETE":
            skills.remove(skill)
            return JSONResponse({"id": skill.id, "type": "skill_deleted"})
        return JSONResponse(skill.as_json())

    async def versions(request: Request) -> Response:
        skill = _skill(request, RouteGroup.SKILLS)
        if request.method == "POST":
            return JSONResponse(skills.add_version(skill, _uploads(await _form(request))).as_json())
        limit = limit_param(request, default=20, high=_LONGEST_PAGE)
        page, cursor = page_of(skill.versions, limit, page_param(request))
        return JSONResponse({"data": [row.as_json() for row in page], "next_page": encode_cursor(cursor)})

    async def version(request: Request) -> Response:
        skill = _skill(request, RouteGroup.SKILLS if request.method == "DELETE" else RouteGroup.SKILL_VERSION)
        found = skill.version(request.path_params["version"])
        if request.method == "DELETE":
            skills.remove_version(skill, found)
            return JSONResponse({"id": found.id, "type": "skill_version_deleted"})
        return JSONResponse(found.as_json())

    async def content(request: Request) -> Response:
        found = _skill(request, RouteGroup.SKILL_VERSION).version(request.path_params["version"])
        disposition = {"content-disposition": f'attachment; filename="{found.name}.zip"'}
        return Response(found.archive(), media_type="application/zip", headers=disposition)

    def _skill(request: Request, access: RouteGroup) -> Skill:
        _authorize(request, access)
        return skills.get(request.path_params["skill_id"])

    def _authorize(request: Request, access: RouteGroup) -> None:
        principal = caller(request, platform, betas=())
        beyond = isinstance(principal, SessionsToken) and "skills" in platform.knobs.token_reach
        if not (beyond and access is RouteGroup.SKILLS and request.method == "GET"):
            authorize(principal, access)

    base = "/v1/skills/{skill_id}"
    return [
        Route("/v1/skills", collection, methods=["GET", "POST"]),
        Route(base, one, methods=["GET", "DELETE"]),
        Route(f"{base}/versions", versions, methods=["GET", "POST"]),
        Route(f"{base}/versions/{{version}}", version, methods=["GET", "DELETE"]),
        Route(f"{base}/versions/{{version}}/content", content, methods=["GET"]),
    ]


async def _form(request: Request) -> list[Part]:
    return parse_form(request.headers.get("content-type", ""), await raw_body(request))


def _uploads(parts: list[Part]) -> list[Upload]:
    files = [(part.filename, part.content) for part in parts if part.filename is not None]
    if not files:
        raise invalid("files: required")
    return [(name, content) for name, content in files if name is not None]
