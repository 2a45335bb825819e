"""The session's history is read until it has been.

The SDK's runner opens the stream of events, then reads the history once for the calls that came before. Where that
fails it goes on with the stream alone and reads again when the stream is lost: a session whose call is older than the
stream waits for ever behind a worker that is well. So here the reading itself is done again, the stream still open.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any, Final

import anyio
from anthropic.lib.tools._beta_session_runner import SessionToolRunner

from image.session.worker import runner_steps
from image.session.worker.backoff import pauses

# The runner's own step, and its word for whether that has read everything.
_STEP: Final = "_reconcile"
_HAS_READ: Final = "_history_read"

_FIRST_PAUSE: Final = 0.5  # seconds; the SDK's client has tried several times already
_LONGEST_PAUSE: Final = 30.0

log = logging.getLogger(__name__)


def read_again() -> AbstractContextManager[None]:
    """Within, a runner that could not read the history tries again until it can, or is asked to end."""

    def wrap(read: Any) -> Any:
        async def read_until_done(runner: SessionToolRunner) -> None:
            await read(runner)
            for pause in pauses(_FIRST_PAUSE, _LONGEST_PAUSE):
                if getattr(runner, _HAS_READ, True):
                    return
                log.info("history.read_again in=%.1f", pause)
                await anyio.sleep(pause)
                await read(runner)

        return read_until_done

    return runner_steps.wrapped(_STEP, wrap, "history.read_once")
