"""How many connections a server may hold: as many as it may have descriptors, less what it opens itself.

A shell and systemd start a process with 1,024 and let it raise that by itself, mostly to some hundred thousand.
"""

from __future__ import annotations

import logging
import resource
from typing import Final

log = logging.getLogger(__name__)

RESERVED: Final = 512  # for calls to both services, files, pipes, and connections that are being evicted
MOST_CONNECTIONS: Final = 4_096
ENOUGH: Final = MOST_CONNECTIONS + RESERVED


def check_descriptor_limit() -> None:
    """Raise the limit, and say so where the system does not let it be enough."""
    limit = raise_descriptor_limit()
    if limit < ENOUGH:
        log.warning("server.few_descriptors limit=%d wanted=%d connections=%d", limit, ENOUGH, most_connections(limit))


def raise_descriptor_limit(wanted: int = ENOUGH) -> int:
    """How many descriptors this process may have open, raised to `wanted` where the system allows it without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted if soft == resource.RLIM_INFINITY else soft
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (ValueError, OSError):
        return soft
    return raised


def most_connections(descriptors: int) -> int:
    return max(1, min(MOST_CONNECTIONS, descriptors - min(RESERVED, descriptors // 2)))
