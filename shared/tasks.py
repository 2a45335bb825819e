"""What several modules do with tasks. Nothing here outlives its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def shielded(work: Coroutine[Any, Any, _T]) -> _T:
    """Does all of `work`, which bounds itself, although the caller is cancelled meanwhile.

    What `work` raises is raised; else a cancellation that arrived is raised at the end, so nothing outlives the caller.
    """
    task = asyncio.create_task(work)
    cancelled = await _ended(task)
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


async def to_its_end(task: asyncio.Task[Any]) -> None:
    """Waits until `task` is over, however it ends, although the caller is cancelled meanwhile: that is raised then."""
    cancelled = await _ended(task)
    if cancelled is not None:
        raise cancelled


async def _ended(task: asyncio.Task[Any]) -> asyncio.CancelledError | None:
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def drop(task: asyncio.Task[Any] | None) -> None:
    """Cancels `task` and waits for its end. What it would have answered, nobody wants any more."""
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task})


async def together(*works: Coroutine[Any, Any, _T]) -> list[_T]:
    """All of them at once; the first failure ends the others before it is raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
