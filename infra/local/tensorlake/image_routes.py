"""Routes of image building and of the image registry (docs/wire/tensorlake.md#10-images)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.tensorlake.errors import TensorlakeApiError, not_found, not_supported
from infra.local.tensorlake.image_builds import Build, BuildRequest, Builds
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.requests import parsed


class SealRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    digest: str


class CancelRequest(BaseModel):
    model_config = ConfigDict(extra="ignore")

    build_id: str


class ImageRoutes:
    def __init__(self, platform: TensorlakePlatform) -> None:
        self._platform = platform
        self.builds = Builds(platform.images, platform.directory / "b")

    def routes(self) -> list[Route]:
        return [
            Route("/images/v4/builds", self.admit, methods=["POST"]),
            Route("/images/v4/builds/cancel", self.cancel, methods=["POST"]),
            Route("/images/v4/builds/{build_id}", self.get_build, methods=["GET"]),
            Route("/images/v4/builds/{build_id}/context/seal", self.seal, methods=["POST"]),
            Route("/_upload/{build_id}/{token}", self.upload, methods=["PUT"]),
            Route("/images/v4/images", self.list, methods=["GET"]),
            Route("/images/v4/images/name/{name:path}", self.get, methods=["GET"]),
            Route("/images/v4/images/name/{name:path}", self.delete, methods=["DELETE"]),
            Route("/images/v4/images/{image_id}", self.get_by_id, methods=["GET"]),
            Route("/platform/v1/sandbox-templates", self.no_legacy_list, methods=["GET"]),
            Route("/platform/v1/sandbox-templates/{rest:path}", self.no_legacy, methods=["GET", "DELETE"]),
            Route("/platform/v1/sandbox-template-builds{rest:path}", self.legacy_build, methods=["GET", "POST"]),
        ]

    async def admit(self, request: Request) -> Response:
        wanted = await parsed(BuildRequest, request)
        build = self.builds.admit(wanted, request.headers.get("idempotency-key"))
        return JSONResponse({**build.record(), **self._upload_capability(build)}, 201)

    def _upload_capability(self, build: Build) -> dict[str, Any]:
        url = f"{self._platform.url}/_upload/{build.id}/{build.upload_token}"
        limit = self._platform.settings.max_context_bytes
        return {"context_upload": {"url": url, "method": "PUT", "max_bytes": limit}}

    async def upload(self, request: Request) -> Response:
        limit = self._platform.settings.max_context_bytes

        async def body() -> AsyncIterator[bytes]:
            size = 0
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise TensorlakeApiError(413, "PAYLOAD_TOO_LARGE", f"the context is larger than {limit} bytes")
                yield chunk

        await self.builds.receive(request.path_params["build_id"], request.path_params["token"], body())
        return Response(status_code=200)

    async def seal(self, request: Request) -> Response:
        build = self.builds.find(request.path_params["build_id"])
        await self.builds.seal(build, (await parsed(SealRequest, request)).digest)
        return JSONResponse(build.record())

    async def get_build(self, request: Request) -> Response:
        build = self.builds.find(request.path_params["build_id"])
        return JSONResponse(build.record(self._platform.settings.build_log_seconds))

    async def cancel(self, request: Request) -> Response:
        build_id = (await parsed(CancelRequest, request)).build_id
        return JSONResponse({"build_id": build_id, "outcome": self.builds.cancel(build_id)})

    async def list(self, _: Request) -> Response:
        return JSONResponse({"items": [image.record() for image in self._platform.images.all()]})

    async def get(self, request: Request) -> Response:
        name = request.path_params["name"]
        image = self._platform.images.find(name)
        if image is None:
            raise not_found(f"image '{name}'")
        return JSONResponse(image.record())

    async def get_by_id(self, request: Request) -> Response:
        image_id = request.path_params["image_id"]
        for image in self._platform.images.all():
            if image.id == image_id:
                return JSONResponse(image.record())
        raise not_found(f"image '{image_id}'")

    async def delete(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not await self._platform.images.forget(name):
            raise not_found(f"image '{name}'")
        return Response(status_code=204)

    async def no_legacy_list(self, _: Request) -> Response:
        return JSONResponse({"items": []})

    async def no_legacy(self, request: Request) -> Response:
        raise not_found(f"legacy image '{request.path_params['rest']}'")

    async def legacy_build(self, _: Request) -> Response:
        raise not_supported("legacy image builds (cas=False)")
