"""The holder's book of claims: which secrets its work item has, and whether another claim may still be taken.

Whoever holds the lock and has no lease yet takes every further claim for the same work item, for each hand-over
brings a new secret and the promise of an ack. Taking a claim is a promise too, since its bringer then says `ready`:
so giving up and refusing are one step under one mutex, and a claim is either taken and waited for, or refused
(tests/image/session/worker/test_lock.py).
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable

from image.session.claim import Claim


class ClaimReply(enum.StrEnum):
    """A holder's answer to a claim that is passed to it."""

    TAKEN = "taken"
    LEASED = "leased"
    OTHER = "other"
    UNPROVEN = "unproven"  # taken, but the service has not answered the holder yet: ask again before saying ready
    REFUSED = "refused"


class _Phase(enum.Enum):
    ASKING = enum.auto()  # holds the lock, asks for the lease
    LEASED = enum.auto()
    CLOSED = enum.auto()


class ClaimRegistry:
    """Thread-safe. Times are of `time.monotonic`."""

    def __init__(
        self,
        claim: Claim,
        *,
        on_claim: Callable[[Claim], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_claim` is called, under the mutex, with each claim taken."""
        self._work_id = claim.work_id
        self._on_claim = on_claim
        self._clock = clock
        self._mutex = threading.Lock()
        self._phase = _Phase.ASKING
        self._announced = False
        self._secrets = [claim.secret]
        self._deadline = clock() + claim.gate

    def offer(self, claim: Claim) -> ClaimReply:
        """Another process brings a claim."""
        with self._mutex:
            if self._phase is _Phase.CLOSED:
                return ClaimReply.REFUSED
            if claim.work_id != self._work_id:
                return ClaimReply.OTHER
            if self._phase is _Phase.LEASED:
                return ClaimReply.LEASED
            if claim.secret in self._secrets:
                self._secrets.remove(claim.secret)
            self._secrets.append(claim.secret)
            self._deadline = max(self._deadline, self._clock() + claim.gate)
            self._on_claim(claim)
            return ClaimReply.TAKEN if self._announced else ClaimReply.UNPROVEN

    def secret(self) -> str:
        """The newest secret that has not been refused."""
        with self._mutex:
            return self._secrets[-1]

    def announced(self, gate: float) -> None:
        """The dispatcher has just been told `ready`: it has `gate` seconds from now to ack."""
        with self._mutex:
            self._announced = True
            self._deadline = max(self._deadline, self._clock() + gate)

    def leased(self) -> None:
        with self._mutex:
            if self._phase is _Phase.ASKING:
                self._phase = _Phase.LEASED

    def discard(self, secret: str) -> bool:
        """The service refused this secret. True where another one is left to try; False closes the registry."""
        with self._mutex:
            if len(self._secrets) > 1:
                self._secrets.remove(secret)
                return True
            self._phase = _Phase.CLOSED
            return False

    def give_up(self) -> bool:
        """Closes the registry if the last promise of an ack has lapsed; False says how it is: keep asking."""
        with self._mutex:
            if self._clock() < self._deadline:
                return False
            self._phase = _Phase.CLOSED
            return True

    def close(self) -> None:
        """No claim is taken from here on."""
        with self._mutex:
            self._phase = _Phase.CLOSED
