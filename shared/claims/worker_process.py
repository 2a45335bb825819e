"""The process that a worker is: its name, how it is started, and what its end means."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from typing import Final

from image.session import claim as wire
from shared.ports import ListedItem, ProcessSpec, ProcessState, WorkItem

WORKER_NAMES: Final = "hands-"
"""Names of the processes that are workers begin so."""

_ROOT: Final = "root"
NOT_THE_ITEMS_FAULT: Final = frozenset(
    {wire.Exit.SERVED, wire.Exit.LEASE_LOST, wire.Exit.NEVER_ACKED, wire.Exit.LOCKED_OUT, wire.Exit.PASSED_ON}
    | {wire.Exit.GIVEN_UP, wire.Exit.SETUP_FAILED}
    | {wire.Exit.STOPPED, wire.Exit.LIFETIME, wire.Exit.UNREADABLE, wire.Exit.UNREACHABLE, wire.Exit.NO_USER}
)


def attempt_prefix(item: WorkItem | ListedItem) -> str:
    """Names of this item's workers begin so. A work id may come again, with another time of creation."""
    digest = hashlib.sha256(f"{item.id}\n{item.created_at.isoformat()}".encode()).hexdigest()
    return f"{WORKER_NAMES}{digest[:12]}-"


def attempt_name(item: WorkItem, now: float) -> str:
    """A new one, which says when (Unix time) its worker was started."""
    return f"{attempt_prefix(item)}{int(now):08x}-{secrets.token_hex(4)}"


def started_ago(item: WorkItem, name: str, now: float) -> float | None:
    """Seconds since the worker of this name was started; None where the name does not say, as those of a bundle before
    whose workers know no GIVE_UP_SIGNAL."""
    began, dash, _ = name.removeprefix(attempt_prefix(item)).partition("-")
    try:
        return now - int(began, 16) if dash else None
    except ValueError:
        return None


def worker_process(name: str, claim: wire.Claim, user: str | None) -> ProcessSpec:
    """A worker that starts as root and becomes `user` as its first act: no process of that user can look into it, not
    even while the service starts it (docs/security.md#what-a-sandbox-hides-from-its-agent). Without a `user`, as the
    image's own."""
    return ProcessSpec(
        name=name,
        command=wire.WORKER_PYTHON,
        args=("-I", wire.worker_path(claim.worker_digest)),
        env={
            wire.CLAIM_VARIABLE: claim.to_json(),
            wire.STATE_VARIABLE: wire.STATE_DIRECTORY,
            **({wire.USER_VARIABLE: user} if user else {}),
        },
        user=_ROOT if user else None,
        secrets=secrets_of(claim),
    )


def not_as_root(process: ProcessSpec) -> ProcessSpec | None:
    """The same worker, started as the user that it would become; None where it is not to start as root."""
    user = process.env.get(wire.USER_VARIABLE)
    return replace(process, user=user) if process.user == _ROOT and user else None


def died(process: ProcessState) -> bool:
    """Waits for a lock, overlapping claims and ends that somebody ordered are no deaths."""
    return process.exit_code not in NOT_THE_ITEMS_FAULT


def secrets_of(claim: wire.Claim) -> tuple[str, ...]:
    own = (claim.secret, claim.capability_token, claim.session_key, claim.nonce, *(claim.tool_secrets or {}).values())
    own += (*(claim.signed or {}).values(), (claim.credential or {}).get("password"))
    return tuple(text for text in own if text)


def describe(state: ProcessState) -> str:
    if state.exit_code is None:
        return "killed by a signal"
    try:
        return wire.Exit(state.exit_code).name.lower()
    except ValueError:
        return f"exit status {state.exit_code}"
