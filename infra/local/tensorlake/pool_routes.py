"""Routes of pools (docs/wire/tensorlake.md#512-pools)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.tensorlake.lifecycle import Lifecycle
from infra.local.tensorlake.lifecycle_routes import settled
from infra.local.tensorlake.platform import TensorlakePlatform
from infra.local.tensorlake.pools import Pool, PoolRequest
from infra.local.tensorlake.requests import parsed


class PoolRoutes:
    def __init__(self, platform: TensorlakePlatform, lifecycle: Lifecycle) -> None:
        self._platform = platform
        self._lifecycle = lifecycle
        self._pools = lifecycle.pools

    def routes(self) -> list[Route]:
        one = "/sandbox-pools/{pool_id}"
        return [
            Route("/sandbox-pools", self.create, methods=["POST"]),
            Route("/sandbox-pools", self.list, methods=["GET"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.update, methods=["PUT"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/sandboxes", self.claim, methods=["POST"]),
        ]

    async def create(self, request: Request) -> Response:
        pool = self._pools.create(request.state.namespace, await parsed(PoolRequest, request))
        return JSONResponse({"pool_id": pool.id, "namespace": pool.namespace}, 201)

    async def list(self, request: Request) -> Response:
        rows = [pool.record(containers=False) for pool in self._pools.all(request.state.namespace)]
        return JSONResponse({"pools": rows})

    async def get(self, request: Request) -> Response:
        return JSONResponse(self._pool(request).record(containers=True))

    async def update(self, request: Request) -> Response:
        pool, wanted = self._pool(request), await parsed(PoolRequest, request)
        await self._pools.update(pool, wanted, keep_network="network" not in wanted.model_fields_set)
        return JSONResponse(pool.record(containers=False))

    async def delete(self, request: Request) -> Response:
        await self._pools.delete(self._pool(request))
        return Response(status_code=204)

    async def claim(self, request: Request) -> Response:
        pool = self._pool(request)
        return await settled(self._lifecycle.claim(pool), request, self._platform.url)

    def _pool(self, request: Request) -> Pool:
        return self._pools.get(request.state.namespace, request.path_params["pool_id"])
