"""How often to look again at everything. The limits of both services are the organisation's, and its sessions need
them: a look that takes many calls is made less often.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

LEAST: Final = 2.0  # seconds
CALLS_A_MINUTE: Final = 240  # of both services, at most: a fifth of what the Claude API allows for reads

Pause = Callable[[float], Awaitable[None]]


def pause_after(calls: int) -> float:
    """Seconds until the next look, after one that took so many calls."""
    return max(LEAST, calls * 60 / CALLS_A_MINUTE)
