"""A pool of the service that keeps sandboxes warm for one environment (SANDBOX_POOL, docs/pool.md).

A claim gives a sandbox without a name; the rename to the session's name is what makes it the session's, and as names
are unique it is atomic (docs/wire/tensorlake.md#52-names, docs/wire/tensorlake.md#512-pools). Whatever is wrong with
the pool, the session gets a sandbox of its own the ordinary way: the pool is then left alone for a while, and it is
said once.

A sandbox of a pool is what the pool says and not what the environment says. So the pool is compared with the
environment before the first claim and every few minutes, and one that differs is not used: a session's egress must not
depend on who made a pool.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from shared.backoff import pauses
from shared.deadline import Clock
from shared.ports import Absent, PoolRecord, SandboxHost, SandboxRecord, SandboxSpec

log = logging.getLogger(__name__)

CLAIM_SECONDS: Final = 5.0
"""A claim that takes longer is no gain over a create: a full pool lets it wait until another sandbox ends."""
_COMPARED: Final = 300.0  # seconds for which a pool that fitted is taken to fit
_FIRST_PAUSE: Final = 30.0  # seconds without the pool after it failed
_LONGEST_PAUSE: Final = 300.0


def differences(pool: PoolRecord, spec: SandboxSpec) -> list[str]:
    """What the sandboxes of the pool have and those of this spec would not: each is a reason not to use it."""
    found = [
        f"its {what} is {theirs}, the environment's {ours}"
        for what, theirs, ours in (
            ("image", pool.image, spec.image),
            ("number of CPUs", pool.cpus, spec.cpus),
            ("memory in MB", pool.memory_mb, spec.memory_mb),
            ("disk in MB", pool.disk_mb, spec.disk_mb),
            ("idle time-out in seconds", pool.timeout_seconds, spec.timeout_seconds),
        )
        if theirs != ours
    ]
    theirs, ours = pool.egress, spec.egress
    if (theirs.internet, set(theirs.allow), set(theirs.deny)) != (ours.internet, set(ours.allow), set(ours.deny)):
        found.append("its network policy is not the environment's (SANDBOX_ALLOW_OUT)")
    if pool.entrypoint:
        found.append("it has an entrypoint")
    return found


class WarmPool:
    """One environment's, and what this process knows of it."""

    def __init__(self, pool_id: str, environment_id: str, clock: Clock = time.monotonic) -> None:
        self.id = pool_id
        self._environment_id = environment_id
        self._clock = clock
        self._fits_until = 0.0
        self._again_at = 0.0
        self._pauses: Iterator[float] = pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._failed = False

    @property
    def may_serve(self) -> bool:
        """False for a while after it failed."""
        return self._clock() >= self._again_at

    async def claim(self, host: SandboxHost, spec: SandboxSpec) -> SandboxRecord | str | None:
        """A running sandbox without a name; None, or once the reason, where one has to be created."""
        unfit = await self._unfit(host, spec)
        if unfit is not None:
            return self.failed(unfit)
        match await host.claim_from_pool(self.id, CLAIM_SECONDS):
            case SandboxRecord() as sandbox:
                return replace(sandbox, egress=spec.egress, timeout_seconds=spec.timeout_seconds)
            case Absent():
                self._fits_until = 0.0
                return self.failed("there is no such pool")
            case problem:
                return self.failed(f"a claim was not answered with a sandbox: {problem.reason}")

    def served(self) -> None:
        """A sandbox of it has got its name."""
        self._pauses = pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._failed = False

    def failed(self, why: str) -> str | None:
        """It is left alone for a while. The reason, unless it has been told since it worked last."""
        self._again_at = self._clock() + next(self._pauses)
        if self._failed:
            return None
        self._failed = True
        log.warning("pool.unusable environment=%s pool=%s reason=%s", self._environment_id, self.id, why)
        return f"the pool {self.id} is not used: {why}"

    async def _unfit(self, host: SandboxHost, spec: SandboxSpec) -> str | None:
        if self._clock() < self._fits_until:
            return None
        match await host.pool(self.id):
            case PoolRecord() as pool:
                found = differences(pool, spec)
                if found:
                    return "; ".join(found)
                self._fits_until = self._clock() + _COMPARED
                return None
            case Absent():
                return "there is no such pool"
            case problem:
                return f"it could not be looked at: {problem.reason}"
