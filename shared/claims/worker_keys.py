"""What the functions and the workers of one session know, and nobody else in its sandbox.

Both keys are derived from the environment key, so that every copy of the functions makes the same ones and nothing of
them is kept anywhere. The environment key cannot be found from them (docs/security.md#keys-of-the-workers).
"""

from __future__ import annotations

import hashlib
import hmac

from shared.ports import ListedItem, WorkItem


def session_key(environment_key: str, session_id: str) -> str:
    """32 bytes in hex, the same in every claim of a session."""
    return _derived(environment_key, "session", session_id)


def nonce(environment_key: str, item: WorkItem | ListedItem) -> str:
    """32 bytes in hex, the same in every claim of a work item: a worker that a copy of the functions started is
    believed by the next one."""
    return _derived(environment_key, "notices", item.id, item.created_at.isoformat())


def _derived(environment_key: str, *purpose: str) -> str:
    text = "\n".join(("serverless hands: workers", *purpose))
    return hmac.new(environment_key.encode(errors="surrogateescape"), text.encode(), hashlib.sha256).hexdigest()
