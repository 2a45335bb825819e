"""A tiny service for the tests of faults and of the process frame: it counts its effects."""

from __future__ import annotations

import argparse
import secrets
import sys

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from infra.local.faults import FaultMiddleware, FaultRegistry, fault_routes
from infra.local.process import serve


def build(registry: FaultRegistry) -> FaultMiddleware:
    effects = 0

    async def effect(request: Request) -> Response:
        nonlocal effects
        effects += 1
        return JSONResponse({"effects": effects, "padding": "x" * 100})

    async def count(request: Request) -> Response:
        return JSONResponse({"effects": effects})

    routes = [
        Route("/effect", effect, methods=["GET", "POST"]),
        Route("/_admin/count", count),
        *fault_routes(registry),
    ]
    return FaultMiddleware(Starlette(routes=routes), registry)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--die-with-parent", action="store_true")
    parser.add_argument("--silent-failure", action="store_true")
    args = parser.parse_args()
    if args.silent_failure:
        print("the reason why it failed", file=sys.stderr)
        return 3
    return serve(
        build(FaultRegistry()),
        port=args.port,
        admin_token=secrets.token_hex(8),
        die_with_parent=args.die_with_parent,
    )


if __name__ == "__main__":
    sys.exit(main())
