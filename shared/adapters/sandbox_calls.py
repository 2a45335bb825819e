"""Calls to a sandbox itself, where it was last seen (docs/wire/tensorlake.md#21-which-host-goes-where)."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from shared.adapters.call_budget import CallBudget, Priority
from shared.adapters.sandbox_answers import NOT_ROUTABLE
from shared.adapters.sandbox_wire import ErrorAnswer, NotReached, Route, SandboxWire, outcome_of
from shared.ports import Absent, Doubtful, FindOutcome, Refused, SandboxRecord

CALL_SECONDS: Final = 20.0
LARGEST_STATE: Final = 65_536
MOST_ROUTES: Final = 256
_NOT_THERE: Final = (404, 502, 503, 504)

_T = TypeVar("_T")


class SandboxCalls:
    """`find` looks a sandbox up, and lets `saw` know what it found."""

    def __init__(self, wire: SandboxWire, budget: CallBudget, find: Callable[[str], Awaitable[FindOutcome]]) -> None:
        self._wire = wire
        self._budget = budget
        self._find = find
        self._routes: OrderedDict[str, Route] = OrderedDict()

    def saw(self, info: Any) -> None:
        """What the service says of a sandbox: its address is remembered."""
        if info.sandbox_url:
            self._routes[info.sandbox_id] = Route(info.sandbox_id, info.sandbox_url, info.routing_hint)
            self._routes.move_to_end(info.sandbox_id)
            while len(self._routes) > MOST_ROUTES:
                self._routes.popitem(last=False)

    def forget(self, sandbox_id: str) -> None:
        self._routes.pop(sandbox_id, None)

    async def call(
        self,
        sandbox_id: str,
        method: str,
        path: str,
        *,
        body: bytes | Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        limit: int = LARGEST_STATE,
        cut: bool = False,
        secrets: Sequence[str] | None = None,
    ) -> bytes | Absent | Refused | Doubtful:
        """With `secrets` the words of an error are shown, without any of them."""

        def made(route: Route) -> Awaitable[bytes]:
            return self._wire.call(
                route, method, path, body=body, query=query, seconds=CALL_SECONDS, limit=limit, cut=cut
            )

        return await self.routed(sandbox_id, made, CALL_SECONDS, secrets)

    async def routed(
        self,
        sandbox_id: str,
        call: Callable[[Route], Awaitable[_T]],
        seconds: float,
        secrets: Sequence[str] | None = None,
    ) -> _T | Absent | Refused | Doubtful:
        """A call to the sandbox itself. One that found nothing where the sandbox was known to be is made again where a
        fresh look says that it is elsewhere: it cannot have had an effect."""
        known = sandbox_id in self._routes
        route = await self.route(sandbox_id)
        if not isinstance(route, Route):
            return route
        outcome, elsewhere = await self._attempted(call, route, seconds, secrets)
        if not (known and elsewhere):
            return outcome
        self._routes.pop(sandbox_id, None)
        now = await self.route(sandbox_id)
        if not isinstance(now, Route) or now == route:
            return outcome
        return (await self._attempted(call, now, seconds, secrets))[0]

    async def _attempted(
        self, call: Callable[[Route], Awaitable[_T]], route: Route, seconds: float, secrets: Sequence[str] | None
    ) -> tuple[_T | Absent | Refused | Doubtful, bool]:
        """The outcome, and whether the sandbox may be at another address."""
        try:
            async with asyncio.timeout(seconds + 5.0):
                await self._budget.admit(Priority.CLAIM)
                return await call(route), False
        except Exception as error:  # the edge: every exception of the wire becomes an outcome
            elsewhere = isinstance(error, NotReached) or (isinstance(error, ErrorAnswer) and error.status in _NOT_THERE)
            return outcome_of(error, secrets), elsewhere

    async def route(self, sandbox_id: str) -> Route | Absent | Refused | Doubtful:
        """Where the sandbox answers: what was last seen, else looked up."""
        route = self._routes.get(sandbox_id)
        if route is not None:
            return route
        found = await self._find(sandbox_id)
        match found:
            case SandboxRecord():
                route = self._routes.get(sandbox_id) or self._routes.get(found.id)
                if route is None and (fallback := os.environ.get("TENSORLAKE_SANDBOX_PROXY_URL")):
                    return Route(found.id, fallback, None)
                over = found.status.value in NOT_ROUTABLE
                return route or (Absent() if over else Doubtful("the service names no address of the sandbox"))
            case _:
                return found
