"""No session call and no tool before the item's lease is ours.

The worker is ready before the dispatcher acks (hand over first, ack last), so at first the item answers "not acked
yet" and is asked again. That first answer is what `ready` waits for: a worker that cannot reach the service must not
get an item. Everything but a clear no is asked again, until the last promise of an ack has lapsed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from image.session.claim import Ended, Exit
from image.session.worker.backoff import pauses
from image.session.worker.claim_registry import ClaimRegistry
from image.session.worker.credentials import token_of
from image.session.worker.http_client import Unanswered, WorkItemClient
from image.session.worker.lease import Lease, Verdict
from image.session.worker.shutdown import Shutdown

# Seconds between heartbeats before the lease. An ack follows `ready` within two round trips. The beat after the first
# pause is on its way for half of one itself, so it finds the ack; every further one is a call that the organisation
# pays for, so they thin out quickly.
_FIRST_PAUSE: Final = 0.07
_LONGEST_PAUSE: Final = 5.0
_GROWTH: Final = 3.0
_UNREACHED_PAUSE: Final = 1.0  # at most, while the service has answered nothing yet: a dispatcher waits
_AGAIN: Final = 0.5

_PROOFS: Final = frozenset({Verdict.HELD, Verdict.OURS, Verdict.NOT_ACKED})  # only the service itself answers so

log = logging.getLogger(__name__)


class Announcer(Protocol):
    """Who is told how the first heartbeats fare. Each is called from the caller's thread."""

    def ready(self) -> None:
        """The service has answered. Called once at most, before anything is done with the answer."""

    def waiting(self, reason: str) -> None:
        """The service has not answered; called once for each reason that differs from the last one."""


def acquire_lease(
    lease: Lease,
    calls: WorkItemClient,
    registry: ClaimRegistry,
    stop: Shutdown,
    announcer: Announcer,
    *,
    reach: float,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Returns the secret that holds the lease.

    `reach` is how many seconds the service may leave every heartbeat without an answer from the start. Raises Ended:
    UNREACHABLE, NEVER_ACKED, LEASE_LOST, STOPPED, REFUSED, or the reason to stop. The registry is closed then, so a
    claim that comes too late is refused instead of taken.
    """
    first_contact = _FirstContact(announcer, clock() + reach)
    waits = pauses(_FIRST_PAUSE, _UNREACHED_PAUSE, factor=_GROWTH)
    while True:
        stop.check()
        secret = registry.secret()
        verdict, trouble = _beat(lease, calls, secret)
        if not first_contact.made and verdict in _PROOFS:
            first_contact.made = True
            announcer.ready()
            waits = pauses(_FIRST_PAUSE, _LONGEST_PAUSE, factor=_GROWTH)
        match verdict:
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
            case Verdict.NOT_ACKED:
                if registry.give_up():
                    raise Ended(Exit.NEVER_ACKED, "asked in vain, last answer: not acked")
            case Verdict.DOUBTFUL:
                if first_contact.failed(trouble, clock()):
                    registry.close()
                    raise Ended(Exit.UNREACHABLE, f"no heartbeat was answered within {reach:g} s; {trouble}")
                if first_contact.made and registry.give_up():
                    raise Ended(Exit.NEVER_ACKED, f"asked in vain, last answer: {trouble}")
        pause, before = next(waits), time.monotonic()
        stop.wait(pause)
        if time.monotonic() - before < 0.9 * pause:  # woken: the claim that has just arrived promises an ack at once
            longest = _LONGEST_PAUSE if first_contact.made else _UNREACHED_PAUSE
            waits = pauses(_FIRST_PAUSE, longest, factor=_GROWTH)


class _FirstContact:
    """Whether the service has been heard at all."""

    def __init__(self, announcer: Announcer, deadline: float) -> None:
        self._announcer = announcer
        self._deadline = deadline
        self._told = ""
        self.made = False

    def failed(self, trouble: str, now: float) -> bool:
        """A heartbeat got no answer. True where it was the last one to be tried."""
        if self.made:
            return False
        if trouble != self._told:
            self._told = trouble
            self._announcer.waiting(trouble)
        return now >= self._deadline


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
            verdict, _ = _beat(self._lease, self._calls, self._secret)
            # Whatever is not a plain yes is asked again soon: the lease may have little time left.
            pause = self._lease.interval if verdict is Verdict.HELD else _AGAIN
            if verdict in (Verdict.LOST, Verdict.STOPPED, Verdict.REFUSED):
                self._verdict = verdict
                return


def _beat(lease: Lease, calls: WorkItemClient, secret: str) -> tuple[Verdict, str]:
    """The verdict, and for a doubtful one why."""
    try:
        answer = calls.heartbeat(lease.sending(), token_of(secret))
    except Unanswered as error:
        log.info("beat.unanswered error=%s", error)
        return Verdict.DOUBTFUL, str(error)
    verdict = lease.judge(answer.status, answer.body)
    if verdict is not Verdict.DOUBTFUL:
        return verdict, ""
    log.info("beat.doubtful status=%d", answer.status)
    return verdict, f"the heartbeat was answered {answer.status}"
