"""The sandbox of a build, as who follows a build's log finds it (docs/wire/tensorlake.md#10-images).

Nothing runs in it: its one process has ended, and what it printed is the build's log. It is in no list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from infra.local.tensorlake.data_plane import sandbox_key
from infra.local.tensorlake.errors import not_found
from infra.local.tensorlake.image_builds import Build, Builds
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.records import Resources, Status

_PROGRAM: Final = "tl-image-builder"
_PID: Final = 1


class Builders:
    """An ASGI application for the requests that `serves` takes."""

    def __init__(self, platform: TensorlakePlatform, builds: Builds) -> None:
        self._platform = platform
        self._builds = builds
        one = f"/api/v1/processes/{_PID}"
        self._router = Router(
            [
                Route("/sandboxes/{key}", self.record, methods=["GET"]),
                Route("/api/v1/processes", self.processes, methods=["GET"]),
                Route(one, self.process, methods=["GET"]),
                Route(f"{one}/output/follow", self.follow, methods=["GET"]),
                Route("/{rest:path}", self.nothing_else),
            ]
        )

    def serves(self, path: str, request: Request) -> bool:
        """Whether it is a request about a build's sandbox, or one to it."""
        return self._builds.in_sandbox(_key(path, request)) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    def _build(self, request: Request) -> Build:
        build = self._builds.in_sandbox(_key(request.scope["path"], request))
        if build is None:
            raise not_found("build")
        return build

    async def record(self, request: Request) -> Response:
        build = self._build(request)
        return JSONResponse(
            {
                "id": build.sandbox_id,
                "namespace": request.scope["state"]["namespace"],
                "status": Status.RUNNING,
                "resources": Resources().model_dump(),
                "created_at": build.created_at_ms,
                "timeout_secs": self._platform.settings.default_timeout_secs,
                "sandbox_url": self._platform.url,
            }
        )

    async def processes(self, request: Request) -> Response:
        return JSONResponse({"processes": [_process(self._build(request))]})

    async def process(self, request: Request) -> Response:
        return JSONResponse(_process(self._build(request)))

    async def follow(self, request: Request) -> Response:
        build = self._build(request)
        build.followed = True
        return StreamingResponse(_frames(build), media_type="text/event-stream")

    async def nothing_else(self, _: Request) -> Response:
        raise not_found("a builder's sandbox has its log, and nothing else")


def _key(path: str, request: Request) -> str:
    return sandbox_key(request) if path.startswith("/api/v1/") else path.rpartition("/sandboxes/")[2]


def _process(build: Build) -> dict[str, Any]:
    return {
        "pid": _PID,
        "handle": _PID,
        "status": "exited",
        "exit_code": 0,
        "command": _PROGRAM,
        "args": [],
        "stdin_writable": False,
        "started_at": build.created_at_ms,
        "ended_at": build.created_at_ms,
    }


def _frames(build: Build) -> Iterator[str]:
    for line in build.log:
        frame = {"line": line, "stream": "stdout", "timestamp": build.created_at_ms}
        yield f"event: output\ndata: {json.dumps(frame)}\n\n"
    yield "event: eof\ndata: {}\n\n"
