"""Rolling redeploys with key rotation, while the soak runs.

Each time a new environment key is made, a copy with it starts beside its predecessor, the predecessor is ended with
SIGTERM, and its key is revoked.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Final

from tests.support.beside import beside
from tests.support.world import Place

EVERY: Final = 60.0
"""Seconds from one redeploy to the next."""
Copy = Callable[[Place], AbstractContextManager[object]]


@contextlib.contextmanager
def redeployed(
    place: Place, copies: Sequence[Copy], told: Callable[[str], None], problems: list[str]
) -> Iterator[None]:
    """One more copy than there are, replaced every minute until the block is left, by each kind of `copies` in turn.
    `told` is called with each new key."""

    def roll(over: threading.Event) -> None:
        admin = place.world.claude_admin
        key = ""
        current = ExitStack()
        try:
            for copy in itertools.cycle(copies):
                if over.is_set():
                    return
                made = admin.post("keys/environment", {"environment_id": place.environment_id})["value"]
                successor = ExitStack()
                successor.enter_context(copy(place.adjusted(ANTHROPIC_ENVIRONMENT_KEY=made)))
                current.close()
                if key:
                    admin.delete("keys", {"value": key})
                current, key = successor, made
                told(made)
                over.wait(EVERY)
        except Exception as error:  # the thread's edge
            problems.append(f"a redeploy failed: {error!r}")
        finally:
            current.close()

    with beside("redeploy", roll):
        yield
