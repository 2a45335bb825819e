"""The lease gate: no session call and no tool before the item's lease is ours.

The worker is ready before the dispatcher acks (hand over first, ack last), so at first the item answers "not acked
yet" and is asked again. Everything but a clear no is asked again, until the last promise of an ack has lapsed.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from typing import Final

from image.session.claim import Ended, Exit
from image.session.worker.claim_registry import ClaimRegistry
from image.session.worker.credentials import token_of
from image.session.worker.http_client import Unanswered, WorkItemClient
from image.session.worker.lease import Lease, Verdict
from image.session.worker.shutdown import Shutdown

_FIRST_PAUSE: Final = 0.1  # seconds
_LONGEST_PAUSE: Final = 2.0
_AGAIN: Final = 0.5

log = logging.getLogger(__name__)


def acquire_lease(lease: Lease, calls: WorkItemClient, registry: ClaimRegistry, stop: Shutdown) -> str:
    """Returns the secret that holds the lease.

    Raises Ended: NEVER_ACKED, LEASE_LOST, STOPPED, REFUSED, or the reason to stop. The desk is closed then, so a
    claim that comes too late is refused instead of taken.
    """
    pause = _FIRST_PAUSE
    while True:
        stop.check()
        secret = registry.secret()
        match _beat(lease, calls, secret):
            case Verdict.HELD:
                registry.leased()
                return secret
            case Verdict.OURS:
                log.info("lease.own_beat_found")
                continue
            case Verdict.LOST:
                registry.close()
                raise Ended(Exit.LEASE_LOST, f"another worker holds the lease, the item is {lease.state}")
            case Verdict.STOPPED:
                registry.close()
                finish_stop(lease, calls, secret)
                raise Ended(Exit.STOPPED, f"the item is {lease.state}")
            case Verdict.REFUSED:
                if not registry.discard(secret):
                    raise Ended(Exit.REFUSED, "the service refuses the work item's credential")
                continue
            case Verdict.NOT_ACKED | Verdict.DOUBTFUL as verdict:
                if registry.give_up():
                    raise Ended(Exit.NEVER_ACKED, f"asked in vain, last answer: {verdict.name.lower()}")
        before = time.monotonic()
        stop.wait(random.uniform(0.75 * pause, pause))  # noqa: S311 - spreads retries
        woken_early = time.monotonic() - before < 0.7 * pause
        # A claim that has just arrived promises an ack at once.
        pause = _FIRST_PAUSE if woken_early else min(pause * 1.3, _LONGEST_PAUSE)


def finish_stop(lease: Lease, calls: WorkItemClient, secret: str) -> None:
    """An item that somebody asked to stop waits for its worker to say that it has: left alone it would stay
    `stopping` and keep its session from getting another item. One attempt; nothing of ours depends on it."""
    if lease.state == "stopping":
        with contextlib.suppress(Unanswered):
            calls.force_stop(token_of(secret))


class LeaseKeeper:
    """Beats in a thread while the SDK is being imported, which takes seconds on a busy machine."""

    def __init__(self, lease: Lease, calls: WorkItemClient, secret: str) -> None:
        self._lease = lease
        self._calls = calls
        self._secret = secret
        self._done = threading.Event()
        self._verdict: Verdict | None = None
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def hand_over(self) -> None:
        """Stops beating, and waits for the beat under way: the next one is the SDK's, at once. Raises Ended where
        there is no lease any more."""
        self._done.set()
        self._thread.join()
        match self._verdict:
            case Verdict.LOST:
                raise Ended(Exit.LEASE_LOST, f"lost while starting, the item is {self._lease.state}")
            case Verdict.STOPPED:
                finish_stop(self._lease, self._calls, self._secret)
                raise Ended(Exit.STOPPED, f"the item is {self._lease.state}")
            case Verdict.REFUSED:
                raise Ended(Exit.REFUSED, "the service refuses the work item's credential")
            case _:
                return

    def _run(self) -> None:
        pause = self._lease.interval
        while not self._done.wait(pause):
            verdict = _beat(self._lease, self._calls, self._secret)
            # Whatever is not a plain yes is asked again soon: the lease may have little time left.
            pause = self._lease.interval if verdict is Verdict.HELD else _AGAIN
            if verdict in (Verdict.LOST, Verdict.STOPPED, Verdict.REFUSED):
                self._verdict = verdict
                return


def _beat(lease: Lease, calls: WorkItemClient, secret: str) -> Verdict:
    try:
        answer = calls.heartbeat(lease.sending(), token_of(secret))
    except Unanswered as error:
        log.info("beat.unanswered error=%s", error)
        return Verdict.DOUBTFUL
    verdict = lease.judge(answer.status, answer.body)
    if verdict is Verdict.DOUBTFUL:
        log.info("beat.doubtful status=%d", answer.status)
    return verdict
