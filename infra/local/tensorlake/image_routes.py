"""Routes of image building (contract section 10)."""

from __future__ import annotations

from starlette.routing import Route

from infra.local.tensorlake.platform import Platform


class ImageRoutes:
    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    def routes(self) -> list[Route]:
        return []
