"""Ticks put no sandbox to sleep while a person's command is in it: a wake lock, as long as the command."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Final

from infra.cli.fleet.target import Target
from shared.wake_lock import LOCK_SECONDS, wake_lock

_RENEWED: Final = LOCK_SECONDS * 0.4  # seconds
_RELEASE_SECONDS: Final = 15.0


@contextlib.asynccontextmanager
async def kept_awake(aim: Target, sandbox_id: str) -> AsyncIterator[None]:
    """A sandbox that takes no lock is not kept awake, which is no reason not to work in it."""
    over = asyncio.Event()
    holding = asyncio.create_task(_hold(aim, sandbox_id, over))
    try:
        yield
    finally:
        over.set()
        task = asyncio.current_task()
        if task is not None and task.cancelling() > 1:  # who asks twice does not wait; the lock ends by itself
            holding.cancel()
        await asyncio.wait([holding], timeout=_RELEASE_SECONDS)
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)


async def _hold(aim: Target, sandbox_id: str, over: asyncio.Event) -> None:
    key = await aim.settings.environments[aim.session.environment_id].key.areveal()
    held: list[str] = []
    while not over.is_set():
        lock = wake_lock(key, sandbox_id, time.time(), aim.settings.sandbox_user or None)
        await aim.host.start(sandbox_id, lock)  # not cut off: a start that arrives after its end would stay
        for name in held:
            await aim.host.kill(sandbox_id, name)
        held = [lock.name]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), _RENEWED)
    for name in held:
        await aim.host.kill(sandbox_id, name)
