"""The session's history is read until it has been.

The SDK's runner opens the stream of events, then reads the history once for the calls that came before. Where that
fails it goes on with the stream alone and reads again when the stream is lost: a session whose call is older than the
stream waits for ever behind a worker that is well. So here the reading itself is done again, the stream still open.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Final

import anyio
from anthropic.lib.tools._beta_session_runner import SessionToolRunner

from image.session.worker.backoff import pauses

# Private to the runner: its step, and whether that has read everything. An SDK without them reads once.
_STEP: Final = "_reconcile"
_HAS_READ: Final = "_history_read"

_FIRST_PAUSE: Final = 0.5  # seconds; the SDK's client has tried several times already
_LONGEST_PAUSE: Final = 30.0

log = logging.getLogger(__name__)


@contextlib.contextmanager
def read_again() -> Iterator[None]:
    """Within, a runner that could not read the history tries again until it can, or is asked to end."""
    read: Any = getattr(SessionToolRunner, _STEP, None)
    if read is None:
        log.warning("history.read_once: this SDK's runner has no %s", _STEP)
        yield
        return

    async def read_until_done(runner: SessionToolRunner) -> None:
        await read(runner)
        for pause in pauses(_FIRST_PAUSE, _LONGEST_PAUSE):
            if getattr(runner, _HAS_READ, True):
                return
            log.info("history.read_again in=%.1f", pause)
            await anyio.sleep(pause)
            await read(runner)

    setattr(SessionToolRunner, _STEP, read_until_done)
    try:
        yield
    finally:
        setattr(SessionToolRunner, _STEP, read)
