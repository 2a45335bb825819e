"""Bind: get the one running sandbox of a session (docs/claim-protocol.md#step-2-bind).

Create comes first, always, because a create by name is atomic: of any number of dispatchers racing for one session,
one creates and the others are told that the name is taken (docs/architecture.md#i2). Whoever holds the name is then
looked at and waited for. Nothing is concluded from a look-up that failed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from shared.backoff import pauses
from shared.deadline import Deadline
from shared.ports import (
    Absent,
    Created,
    Doubtful,
    NameTaken,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
)

_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 2.0
_FRESH: Final = 3.0  # seconds; nothing is ended on a look that took longer (docs/architecture.md#i5)


@dataclass(frozen=True, slots=True)
class Bound:
    sandbox: SandboxRecord


@dataclass(frozen=True, slots=True)
class Unbound:
    """No sandbox for now. The item stays un-acked and is offered again."""

    reason: str


async def bind(host: SandboxHost, spec: SandboxSpec, deadline: Deadline, *, resume_suspended: bool) -> Bound | Unbound:
    """The sandbox called `spec.name`, running; made if there is none, resumed if it sleeps.

    With `resume_suspended` false a sleeping sandbox is ended and a fresh one made in its place.
    """
    waits = pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
    reason = "time ran out"
    while not deadline.passed:
        match await host.create(spec):
            case Created(sandbox):
                return Bound(sandbox)
            case Refused(reason=refusal):
                return Unbound(f"create refused: {refusal}")
            case NameTaken():
                reason = "the name is taken by a sandbox that does not come to run"
            case Doubtful(reason=doubt):
                reason = f"create failed: {doubt}"
        match await _settle(host, spec.name, deadline, resume_suspended=resume_suspended):
            case SandboxRecord() as sandbox:
                return Bound(sandbox)
            case Unbound() as unbound:
                return unbound
            case None:
                pass
        await asyncio.sleep(min(next(waits), deadline.left()))
    return Unbound(reason)


async def _settle(
    host: SandboxHost, name: str, deadline: Deadline, *, resume_suspended: bool
) -> SandboxRecord | Unbound | None:
    """The holder of the name once it runs; None when the name has become free, or nobody knows."""
    waits = pauses(_FIRST_PAUSE, _LONGEST_PAUSE)
    while not deadline.passed:
        asked = deadline.left()
        found = await host.find(name)
        old = asked - deadline.left() > _FRESH
        match found:
            case Absent():
                return None
            case Doubtful():
                pass
            case SandboxRecord(name=other) if other != name:
                return Unbound("the service answered with a sandbox of another name")
            case SandboxRecord(status=SandboxStatus.RUNNING | SandboxStatus.SNAPSHOTTING) as sandbox:
                return sandbox
            case SandboxRecord(status=SandboxStatus.SUSPENDED) as sandbox:
                if not resume_suspended:
                    if not old:
                        await host.terminate(sandbox.id)
                elif await host.resume(sandbox.id) is None:
                    return sandbox
            case SandboxRecord(status=SandboxStatus.FAILED | SandboxStatus.TIMEOUT) as sandbox if not old:
                await host.terminate(sandbox.id)  # it never ran and holds the name
            case SandboxRecord():
                pass  # pending, suspending, terminated but not yet forgotten, or a status of tomorrow: wait
        await asyncio.sleep(min(next(waits), deadline.left()))
    return None
