"""A port whose calls are measured: how long, by route, and what came of it. Only where metrics or traces are on."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

from shared import metrics, tracing
from shared.ports import Absent, Doubtful, Empty, NameTaken, NoCapacity, Refused, StaleEntry, Throttled

WORDS: Final[tuple[tuple[type, str], ...]] = (
    (Throttled, "throttled"),
    (NoCapacity, "no_capacity"),
    (Refused, "refused"),
    (Absent, "absent"),
    (Doubtful, "doubtful"),
    (Empty, "empty"),
    (StaleEntry, "stale"),
    (NameTaken, "name_taken"),
)
_FAILURES: Final = ("throttled", "no_capacity", "refused", "doubtful")

_P = TypeVar("_P")


def observed(port: _P, service: str) -> _P:
    """`port` itself where nothing is switched on. `service`: `anthropic` or `tensorlake`."""
    return cast(_P, _Observed(port, service)) if metrics.is_on() or tracing.is_on() else port


class _Observed:
    def __init__(self, port: Any, service: str) -> None:
        self._port = port
        self._service = service

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if name == "aclose" or not inspect.iscoroutinefunction(found):
            return found
        made = self._measured(found, name)
        setattr(self, name, made)
        return made

    def _measured(self, call: Callable[..., Awaitable[Any]], route: str) -> Callable[..., Awaitable[Any]]:
        known = {metrics.SERVICE: self._service, "hands.route": route}

        @functools.wraps(call)
        async def measured(*args: Any, **more: Any) -> Any:
            began, outcome = time.monotonic(), "cancelled"
            with tracing.span(f"{self._service} {route}", known, kind="client") as span:
                try:
                    answer = await call(*args, **more)
                    outcome = word_of(answer)
                    if outcome in _FAILURES:
                        span.fail(outcome)
                finally:
                    of = known | {metrics.OUTCOME: outcome}
                    metrics.record(metrics.CALLS, time.monotonic() - began, of)
            return answer

        return measured


def word_of(answer: object) -> str:
    return next((word for kind, word in WORDS if isinstance(answer, kind)), "ok")
