"""Routes of what a workspace keeps beside agents and sessions: models, files, vaults, user profiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.claude.credentials import RouteGroup, authorize
from infra.local.claude.errors import invalid, not_found
from infra.local.claude.http import administer, caller, flag_param, json_body, limit_param, page_param, raw_body
from infra.local.claude.multipart import parse_form
from infra.local.claude.platform import ClaudePlatform
from infra.local.claude.records import encode_cursor, merged_metadata, page_of, text_field
from infra.local.claude.shelf import Kept, Shelf

MODELS: Final = ("offline-scripted-brain",)
_BORN: Final = "2026-01-01T00:00:00Z"
_ACCESS_TYPES: Final = ("application", "passthrough")
# What a credential's `auth` is shown with: never its secret.
_SHOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "static_bearer": ("type", "mcp_server_url"),
    "mcp_oauth": ("type", "mcp_server_url", "expires_at"),
    "environment_variable": ("type", "secret_name", "networking", "injection_location"),
}
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "environment_variable": {
        "networking": {"type": "unrestricted"},
        "injection_location": {"header": True, "body": False},
    }
}


def listing(request: Request, rows: list[Kept], high: int = 1000) -> Response:
    """One page, newest first."""
    page, cursor = page_of(rows, limit_param(request, default=20, high=high), page_param(request))
    return JSONResponse({"data": [row.as_json() for row in page], "next_page": encode_cursor(cursor)})


def model_routes(platform: ClaudePlatform) -> list[Route]:
    def shown(model: str) -> dict[str, Any]:
        return {"id": model, "type": "model", "display_name": model, "created_at": _BORN, "lifecycle": "active"}

    def known() -> list[str]:
        """The scripted brain, and whatever the agents name: each of them is served by it."""
        named = [str(agent.as_json()["model"]["id"]) for agent in platform.agents.all(include_archived=False)]
        return list(dict.fromkeys([*MODELS, *named]))

    async def collection(request: Request) -> Response:
        authorize(caller(request, platform, betas=()), RouteGroup.ADMINISTRATION)
        models = known()[: limit_param(request, default=20, high=1000)]
        edges = {"first_id": models[0], "last_id": models[-1], "has_more": len(models) < len(known())}
        return JSONResponse({"data": [shown(model) for model in models], **edges})

    async def one(request: Request) -> Response:
        authorize(caller(request, platform, betas=()), RouteGroup.ADMINISTRATION)
        model = request.path_params["model_id"]
        if model not in known():
            raise not_found(f"model: {model}")
        return JSONResponse(shown(model))

    return [Route("/v1/models", collection), Route("/v1/models/{model_id}", one)]


def file_routes(platform: ClaudePlatform) -> list[Route]:
    files = platform.files

    def _file(request: Request) -> Kept:
        authorize(caller(request, platform, betas=()), RouteGroup.ADMINISTRATION)
        return files.shelf.get(request.path_params["file_id"])

    async def collection(request: Request) -> Response:
        authorize(caller(request, platform, betas=()), RouteGroup.ADMINISTRATION)
        if request.method == "GET":
            return listing(request, files.shelf.all())
        parts = parse_form(request.headers.get("content-type", ""), await raw_body(request))
        for part in parts:
            if part.name == "file" and part.filename is not None:
                return JSONResponse(files.add(part.filename, part.content, part.content_type).as_json())
        raise invalid("file: required")

    async def one(request: Request) -> Response:
        found = _file(request)
        if request.method == "DELETE":
            files.remove(found)
            return JSONResponse({"id": found.id, "type": "file_deleted"})
        return JSONResponse(found.as_json())

    async def content(request: Request) -> Response:
        found = _file(request)
        return Response(files.content(found), media_type=str(found.fields["mime_type"]))

    return [
        Route("/v1/files", collection, methods=["GET", "POST"]),
        Route("/v1/files/{file_id}", one, methods=["GET", "DELETE"]),
        Route("/v1/files/{file_id}/content", content),
    ]


def vault_routes(platform: ClaudePlatform) -> list[Route]:
    vaults = platform.vaults

    def _vault(request: Request) -> Kept:
        administer(request, platform)
        return vaults.get(request.path_params["vault_id"])

    def _credentials(request: Request) -> Shelf:
        return platform.credentials_of(_vault(request))

    async def collection(request: Request) -> Response:
        administer(request, platform)
        if request.method == "GET":
            return listing(request, vaults.all(include_archived=flag_param(request, "include_archived")))
        return JSONResponse(vaults.add(_named(await json_body(request), {}, required=True)).as_json())

    async def one(request: Request) -> Response:
        vault = _vault(request)
        if request.method == "DELETE":
            vaults.remove(vault)
            return JSONResponse({"id": vault.id, "type": "vault_deleted"})
        if request.method == "POST":
            vaults.change(vault, _named(await json_body(request), vault.fields, required=False))
        return JSONResponse(vault.as_json())

    async def archive(request: Request) -> Response:
        vault = _vault(request)
        vaults.archive(vault)
        return JSONResponse(vault.as_json())

    async def credentials(request: Request) -> Response:
        shelf, vault_id = _credentials(request), request.path_params["vault_id"]
        if request.method == "GET":
            return listing(request, shelf.all(include_archived=flag_param(request, "include_archived")))
        body = await json_body(request)
        fields = {**_named(body, {}, required=False), "auth": _auth(body.get("auth")), "vault_id": vault_id}
        return JSONResponse(shelf.add(fields).as_json())

    async def credential(request: Request) -> Response:
        shelf = _credentials(request)
        found = shelf.get(request.path_params["credential_id"])
        if request.method == "DELETE":
            shelf.remove(found)
            return JSONResponse({"id": found.id, "type": "vault_credential_deleted"})
        if request.method == "POST":
            body = await json_body(request)
            auth = {} if body.get("auth") is None else {"auth": _auth({**found.fields["auth"], **body["auth"]})}
            shelf.change(found, {**_named(body, found.fields, required=False), **auth})
        return JSONResponse(found.as_json())

    async def archive_credential(request: Request) -> Response:
        shelf = _credentials(request)
        found = shelf.get(request.path_params["credential_id"])
        shelf.archive(found)
        return JSONResponse(found.as_json())

    base = "/v1/vaults/{vault_id}"
    return [
        Route("/v1/vaults", collection, methods=["GET", "POST"]),
        Route(base, one, methods=["GET", "POST", "DELETE"]),
        Route(f"{base}/archive", archive, methods=["POST"]),
        Route(f"{base}/credentials", credentials, methods=["GET", "POST"]),
        Route(f"{base}/credentials/{{credential_id}}", credential, methods=["GET", "POST", "DELETE"]),
        Route(f"{base}/credentials/{{credential_id}}/archive", archive_credential, methods=["POST"]),
    ]


def profile_routes(platform: ClaudePlatform) -> list[Route]:
    profiles = platform.user_profiles

    def _authorize(request: Request) -> None:
        authorize(caller(request, platform, betas=()), RouteGroup.ADMINISTRATION)

    async def collection(request: Request) -> Response:
        _authorize(request)
        if request.method == "GET":
            return listing(request, profiles.all())
        return JSONResponse(profiles.add(_profile(await json_body(request), _NEW_PROFILE)).as_json())

    async def one(request: Request) -> Response:
        _authorize(request)
        profile = profiles.get(request.path_params["profile_id"])
        if request.method == "DELETE":
            profiles.remove(profile)
            return JSONResponse({"id": profile.id, "type": "user_profile_deleted"})
        if request.method == "POST":
            profiles.change(profile, _profile(await json_body(request), profile.fields))
        return JSONResponse(profile.as_json())

    return [
        Route("/v1/user_profiles", collection, methods=["GET", "POST"]),
        Route("/v1/user_profiles/{profile_id}", one, methods=["GET", "POST", "DELETE"]),
    ]


_NEW_PROFILE: Final[Mapping[str, Any]] = {
    "access_type": "application",
    "enforcement_actions": [],
    "enforcement_status": "unrestricted",
    "external_user_details": dict.fromkeys(
        ("account_status", "country", "email_hash", "entity_type", "name_hash", "onboarded_at", "reference_id")
    ),
    "metadata": {},
    "name": None,
    "programs": {},
    "trust_grants": {},
}


def _profile(body: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    access = body.get("access_type") or current["access_type"]
    if access not in _ACCESS_TYPES:
        raise invalid(f"access_type: expected one of {', '.join(_ACCESS_TYPES)}")
    details = body.get("external_user_details")
    if not isinstance(details, dict | None):
        raise invalid("external_user_details: expected an object")
    return {
        **current,
        "access_type": access,
        "external_user_details": {**current["external_user_details"], **(details or {})},
        "metadata": merged_metadata(current["metadata"], body.get("metadata")),
        "name": text_field(body, "name") if "name" in body else current["name"],
    }


def _named(body: Mapping[str, Any], current: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    return {
        "display_name": text_field(body, "display_name", required=required) or current.get("display_name"),
        "metadata": merged_metadata(current.get("metadata", {}), body.get("metadata")),
    }


def _auth(given: object) -> dict[str, Any]:
    """What is shown of a credential; the secret itself is kept nowhere, since nothing offline uses it."""
    if not isinstance(given, dict) or given.get("type") not in _SHOWN:
        raise invalid(f"auth.type: expected one of {', '.join(_SHOWN)}")
    kind = str(given["type"])
    shown = {**_DEFAULTS.get(kind, {}), **{name: given[name] for name in _SHOWN[kind] if given.get(name) is not None}}
    needed = "secret_name" if kind == "environment_variable" else "mcp_server_url"
    if not isinstance(shown.get(needed), str):
        raise invalid(f"auth.{needed}: required")
    return shown
