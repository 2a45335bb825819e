"""A limit of calls, by the minute (`calls_a_minute` of the settings): nobody knows one of the live service
(docs/wire/tensorlake.md#11-quotas-and-prices), so there is none until it is set."""

from __future__ import annotations

import math
import time
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.local.tensorlake.platform import TensorlakePlatform

_MINUTE: Final = 60.0


class CallLimit:
    """The application behind a limit: each answer tells what is left, and a call too many is 429 with `retry-after`."""

    def __init__(self, app: ASGIApp, platform: TensorlakePlatform) -> None:
        self._app = app
        self._platform = platform
        self._began = -_MINUTE
        self._used = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._platform.settings.calls_a_minute
        if limit is None:
            await self._app(scope, receive, send)
            return
        now = time.monotonic()
        if now - self._began >= _MINUTE:
            self._began, self._used = now, 0
        if self._used >= limit:
            body = {"error": f"more than {limit} calls a minute", "code": "RATE_LIMITED"}
            headers = {"retry-after": str(math.ceil(self._began + _MINUTE - now)), **_told(limit, 0)}
            await JSONResponse(body, 429, headers=headers)(scope, receive, send)
            return
        self._used += 1
        left = _told(limit, limit - self._used)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in left.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        await self._app(scope, receive, tell)


def _told(limit: int, left: int) -> dict[str, str]:
    return {"x-ratelimit-limit": str(limit), "x-ratelimit-remaining": str(left)}
