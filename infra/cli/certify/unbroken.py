"""Calls that make something are not broken off: what they made must be known before it can be taken away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar, cast

from shared.ports import SandboxHost

_MAKERS: Final = frozenset({"create", "copy", "snapshot", "claim_from_pool"})

_T = TypeVar("_T")


async def to_its_end(work: Awaitable[_T]) -> _T:
    """Its result, though the caller is cancelled meanwhile. Such a cancellation comes at the caller's next await."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    caller = asyncio.current_task()
    if cancelled and caller is not None:
        caller.uncancel()  # so that a time-out still knows its own cancellation by the count
        caller.cancel()
    return task.result()


class _UnbrokenHost:
    def __init__(self, host: SandboxHost) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._host, name)
        return _unbroken(call) if name in _MAKERS else call


def unbroken(host: SandboxHost) -> SandboxHost:
    """The host, whose calls that make something run to their end (`to_its_end`)."""
    return cast("SandboxHost", _UnbrokenHost(host))


def _unbroken(call: Callable[..., Awaitable[_T]]) -> Callable[..., Awaitable[_T]]:
    def made(*args: Any, **options: Any) -> Awaitable[_T]:
        return to_its_end(call(*args, **options))

    return made
