"""Keys for whoever owns a server that lives in a sandbox: derived from the Tensorlake key, which both ends hold.

They open what tells of the server (`/status`) and what its supervisor asks (`/healthz`), and nothing that acts.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

HEADER = "x-hands-owner"
PARAMETER = "key"


def owner_key(tensorlake_key: str, purpose: Literal["status", "health"]) -> str:
    """64 hexadecimal digits."""
    return hmac.new(
        tensorlake_key.encode(errors="surrogateescape"), f"hands owner {purpose}".encode(), hashlib.sha256
    ).hexdigest()
