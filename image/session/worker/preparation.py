"""A sandbox is made ready for sessions to be started from it (docs/setup.md#prepared-starts).

It has no session, no lease and no credential but what its own set-up reads, which is gone when that is done. What stays
is the workspace and the mark `prepared`.
"""

from __future__ import annotations

import asyncio
from typing import Final

from image.session.claim import LONGEST_DETAIL, Claim, Ended, Exit, Word
from image.session.worker.lock import Lock
from image.session.worker.output import NoticeWriter, Redactor
from image.session.worker.session_setup import SessionSetup, setup_of
from image.session.worker.setup_commands import printable
from image.session.worker.shutdown import Shutdown
from image.session.worker.state_directory import StateDirectory

_LONGEST_REASON: Final = LONGEST_DETAIL // 2  # characters; the rest is the end of what was said


def prepare(
    claim: Claim, state: StateDirectory, lock: Lock, notices: NoticeWriter, redactor: Redactor, stop: Shutdown
) -> Ended:
    """Raises Ended where somebody else prepares here, or the claim names no set-up."""
    if not lock.take():
        raise Ended(Exit.LOCKED_OUT, "another process prepares this sandbox")
    setup = setup_of(claim, state, redactor, lambda said: notices.say(Word.SETUP, redactor.apply(said)), prepares=True)
    if setup is None:
        raise Ended(Exit.BAD_CLAIM, "the claim names no set-up")
    stop.started()
    asyncio.run(_run(setup, stop))
    stop.check()
    if not setup.failure:
        return Ended(Exit.SERVED)
    said = f"; it said: {printable(setup.tail[-_LONGEST_REASON:])}" if setup.tail else ""
    return Ended(Exit.FAILED, f"{printable(setup.reason or setup.failure, _LONGEST_REASON)}{said}")


async def _run(setup: SessionSetup, stop: Shutdown) -> None:
    loop = asyncio.get_running_loop()
    setup.begin(b"{}")
    stop.on_request(lambda: loop.call_soon_threadsafe(setup.abort, "it was asked to end"))
    await setup.over()
