"""One port for both planes: which requests go where (docs/wire/tensorlake.md#2-routing-and-transport).

In this order: `/_admin/`; user ports by Host (`<port>-<id or name>.`) or by path (`/_ports/`); the data plane
(`/api/v1/`); everything else is lifecycle and images, with or without `/v1/namespaces/{ns}` in front.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.local.faults import FaultMiddleware
from infra.local.tensorlake.admin import Admin
from infra.local.tensorlake.builders import Builders
from infra.local.tensorlake.call_limit import CallLimit
from infra.local.tensorlake.data_plane import DataPlane
from infra.local.tensorlake.errors import TensorlakeApiError
from infra.local.tensorlake.image_routes import ImageRoutes
from infra.local.tensorlake.keys import key_routes
from infra.local.tensorlake.lifecycle import Lifecycle
from infra.local.tensorlake.lifecycle_routes import LifecycleRoutes
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.pool_routes import PoolRoutes
from infra.local.tensorlake.pools import Pools
from infra.local.tensorlake.ports import Ports, port_of_host
from infra.local.tensorlake.snapshots import Snapshots
from infra.local.tensorlake.terminals import Terminals

_NAMESPACE = re.compile(r"/v1/namespaces/([^/]+)(/.*)")
OpenPlatform = Callable[[], Awaitable[TensorlakePlatform]]


class Demultiplexer:
    """The application below the faults: key check, routing, errors, and a count of requests by route."""

    def __init__(self, platform: TensorlakePlatform, admin_token: str) -> None:
        snapshots = Snapshots(platform)
        self.lifecycle = Lifecycle(platform, snapshots, Pools(platform))
        self.counts: Counter[str] = Counter()
        self._platform = platform
        self.terminals = Terminals(platform, self.lifecycle)
        self._data = Router(DataPlane(platform, self.lifecycle, self.terminals).routes())
        self._ports = Ports(platform, self.lifecycle)
        images = ImageRoutes(platform)
        self._builders = Builders(platform, images.builds)
        pools = PoolRoutes(platform, self.lifecycle)
        lifecycle = LifecycleRoutes(platform, self.lifecycle, snapshots)
        self._api = Router([*lifecycle.routes(), *pools.routes(), *images.routes(), *key_routes()])
        self._limited_api = CallLimit(self._api, platform)
        admin = Admin(platform, self.lifecycle, snapshots, self.counts, admin_token)
        self._admin = Router([*admin.routes(), Route("/emulator/ports", self._ports.listing)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            await self._dispatch(scope, request, receive, send)
        except TensorlakeApiError as error:
            await error.response()(scope, receive, send)

    async def _dispatch(self, scope: Scope, request: Request, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if path.startswith(("/_admin/", "/emulator/")):
            await self._admin(scope, receive, send)
            return
        if path.startswith("/_ports/") or port_of_host(request) is not None:
            await self._ports(scope, receive, send)
            return
        router = self._data if path.startswith("/api/v1/") else self._api
        if router is self._api:
            prefixed = _NAMESPACE.fullmatch(path)
            namespace, rest = prefixed.groups() if prefixed else ("default", path)
            scope = {**scope, "path": rest, "raw_path": rest.encode(), "state": {"namespace": namespace}}
        if self._platform.settings.daemon_open_inside and _from_inside(request):
            await JSONResponse({"healthy": True})(scope, receive, send)
            return
        if not path.startswith("/_upload/"):
            self._check_key(request)
        if self._builders.serves(path, request):
            await self._builders(scope, receive, send)
            return
        await (self._limited_api if router is self._api else router)(scope, receive, send)

    def _check_key(self, request: Request) -> None:
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        expected = self._platform.api_key
        if kind.lower() != "bearer" or not key or (expected is not None and key != expected):
            raise TensorlakeApiError(401, "UNAUTHORIZED", "a valid API key is required (Authorization: Bearer ...)")

    def count(self, scope: Scope) -> None:
        """Before any fault, so that retries of what a fault spoiled are counted too."""
        path: str = scope["path"]
        if path.startswith(("/_admin/", "/emulator/")):
            return
        prefixed = _NAMESPACE.fullmatch(path)
        bare = prefixed.group(2) if prefixed else path
        routes = self._data.routes if path.startswith("/api/v1/") else self._api.routes
        self.counts[f"{scope['method']} {_template(routes, {**scope, 'path': bare})}"] += 1


def _from_inside(request: Request) -> bool:
    """What a program in a sandbox asks of its own daemon: it names no sandbox and has no key."""
    return request.url.path.startswith("/api/v1/") and "authorization" not in request.headers


def _template(routes: Sequence[object], scope: Scope) -> str:
    for route in routes:
        if isinstance(route, Route) and route.matches(scope)[0] is Match.FULL:
            return route.path
    return "other"


class Application:
    """The ASGI application; its platform is opened at start and closed at the end."""

    def __init__(self, open_platform: OpenPlatform, admin_token: str) -> None:
        self._open_platform = open_platform
        self._admin_token = admin_token
        self._inner: Demultiplexer | None = None
        self._faulty: ASGIApp | None = None
        self.platform: TensorlakePlatform | None = None
        self._life = Starlette(lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        platform = await self._open_platform()
        self.platform = platform
        self._inner = Demultiplexer(platform, self._admin_token)
        self._faulty = FaultMiddleware(self._inner, platform.faults)
        platform.spawn(self._inner.lifecycle.keep_time())
        try:
            yield
        finally:
            await platform.close()

    def stop_streams(self) -> None:
        """As the shutdown begins: end the sandboxes, or their open streams would hold the server up."""
        if self.platform is not None:
            self.platform.end_boxes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._life(scope, receive, send)
            return
        if self._inner is None or self._faulty is None:
            raise RuntimeError("the application has not been started")
        if scope["type"] == "websocket":
            await self._inner.terminals.websocket(scope, receive, send)
            return
        self._inner.count(scope)
        await self._faulty(scope, receive, send)
