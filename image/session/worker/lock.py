"""The lock: one worker at a time in a sandbox, and what a worker does that finds it taken."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final

from image.session.claim import Claim, Ended, Exit, Word
from image.session.worker.backoff import pauses
from image.session.worker.claim_registry import ClaimReply
from image.session.worker.claim_socket import pass_on
from image.session.worker.output import NoticeWriter
from image.session.worker.shutdown import Shutdown
from image.session.worker.state_directory import StateDirectory

LOCK_NAME: Final = "lock"

_FIRST_PAUSE: Final = 0.02  # seconds
_LONGEST_PAUSE: Final = 0.25


class Lock:
    """An exclusive lock on a file. The kernel frees it with the process, however that ends; no child inherits it,
    since Python's descriptors close at `exec`."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Does not wait. False where another process has it."""
        descriptor = self._state.open(LOCK_NAME, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A lock on a file that has been replaced since holds nobody off.
            if not os.path.samestat(os.fstat(descriptor), self._state.stat(LOCK_NAME)):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def free(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def take_lock(claim: Claim, lock: Lock, notices: NoticeWriter, stop: Shutdown) -> None:
    """Returns holding the lock. The working directory is the state directory.

    Raises Ended: PASSED_ON where the holder took the claim (`ready` has been said on its behalf), LOCKED_OUT after
    `claim.lock_wait` seconds of another work item or of a holder with a lease, or the reason to stop.
    """
    deadline = time.monotonic() + claim.lock_wait
    waits = pauses(_FIRST_PAUSE, _LONGEST_PAUSE, factor=1.5)
    waiting = False
    while not lock.take():
        stop.check()
        reply = pass_on(claim)
        match reply:
            case ClaimReply.TAKEN:
                notices.say(Word.READY, on_behalf=True)
                raise Ended(Exit.PASSED_ON, "the lock's holder has the claim now")
            case ClaimReply.LEASED | ClaimReply.OTHER | ClaimReply.UNPROVEN:
                if not waiting:
                    waiting = True
                    notices.say(Word.WAITING, f"the lock's holder answers: {reply}")
            case ClaimReply.REFUSED | None:
                pass
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise Ended(Exit.LOCKED_OUT, f"the lock's holder answers: {reply or 'nothing'}")
        stop.wait(min(remaining, next(waits)))
