"""A person's wake lock: ticks let a sandbox stay awake while somebody's command is in it (`hands run`, `cp`, `shell`).

A sandbox has no metadata (docs/wire/tensorlake.md#52-names), so the lock is a process in it that sleeps. It holds while
that process runs, and the process ends by itself after LOCK_SECONDS: whoever stays longer takes a new one. No word from
inside counts (docs/architecture.md#i10): the process's name says until when it is good, and is signed with the
environment's key, for this sandbox alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Final

from shared.ports import ProcessSpec, ProcessState

LOCK_SECONDS: Final = 300
"""How long a sandbox stays awake at most after its person's machine has died."""
_GOOD_SECONDS: Final = 3600  # that a name is good for: by so much the clock of a person's machine may be wrong
_NAME: Final = re.compile(r"wake-([0-9a-f]{8,10})-[0-9a-f]{8}-([0-9a-f]{32})")
_INFO: Final = b"wake lock 1\n"


def wake_lock(key: str, sandbox_id: str, now: float, user: str | None) -> ProcessSpec:
    """A new one, of its own name. `now` is Unix time."""
    said = f"wake-{int(now) + _GOOD_SECONDS:08x}-{secrets.token_hex(4)}"
    return ProcessSpec(f"{said}-{_signature(key, sandbox_id, said)}", "sleep", (str(LOCK_SECONDS),), user=user)


def locks_among(processes: Sequence[ProcessState]) -> Sequence[str]:
    """Names of those that run and look like locks; `is_genuine` says whether they are."""
    return [each.name for each in processes if each.running and _NAME.fullmatch(each.name)]


def is_genuine(name: str, key: str, sandbox_id: str, now: float) -> bool:
    found = _NAME.fullmatch(name)
    if found is None or not now < int(found[1], 16) <= now + 2 * _GOOD_SECONDS:
        return False
    return hmac.compare_digest(found[2], _signature(key, sandbox_id, name.rpartition("-")[0]))


def _signature(key: str, sandbox_id: str, said: str) -> str:
    text = _INFO + f"{sandbox_id}\n{said}".encode()
    return hmac.new(key.encode(errors="surrogateescape"), text, hashlib.sha256).hexdigest()[:32]
