"""What an agent may ask of fork_best_of_n: a race in its own session, and only while its work item is served.

The agent can read its capability token (docs/architecture.md#i6), so a token must not reach further than its session
does by itself. Whatever starts elsewhere, stays longer than the race or runs the operator's own code is the operator's
alone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from functions.requests import HttpError

if TYPE_CHECKING:
    from functions.state import FunctionsState
    from shared.capability import Capability
    from shared.ports import WorkQueue

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 15.0


async def require_admitted(caller: Capability, state: FunctionsState) -> None:
    """Returns for an agent's call that may go on. Raises HttpError 403 or 503."""
    environment = state.settings.environments.get(caller.environment_id)
    if environment is None:
        raise HttpError(403, "forbidden", "this token is for an environment that is not served here")
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            await require_live_item(caller, state.service.queue(environment), state.settings.reconcile.pages)
    except TimeoutError:
        raise _unclear(caller, "no answer in time") from None


async def require_live_item(caller: Capability, queue: WorkQueue, pages: int) -> None:
    """Returns while the work item that the capability was issued with is `starting` or `active` for its session.

    The item is looked for in the environment's list, newest first, in at most `pages` pages: with the environment key
    the service answers no look-up of a single item (docs/wire/anthropic.md#12-credentials). Raises HttpError: 403 once
    the item has ended, 503 where that is unknown.
    """
    from shared.ports import ItemState, Listing

    for count in (1, pages):  # a living item is almost always on the first page
        listing = await queue.list_items(count)
        if not isinstance(listing, Listing):
            raise _unclear(caller, listing.reason)
        for item in listing.rows:
            if item.id == caller.work_id:
                if item.session_id == caller.session_id and item.state in (ItemState.STARTING, ItemState.ACTIVE):
                    return
                raise _over()
        if listing.complete and not listing.unreadable:
            raise _over()
    raise _unclear(caller, "it is not among the newest")


def _over() -> HttpError:
    return HttpError(403, "session_over", "the work item that this token was issued for is over")


def _unclear(caller: Capability, reason: str) -> HttpError:
    log.warning("capability.doubtful work=%s reason=%s", caller.work_id, reason)
    return HttpError(503, "try_again", "the work item could not be looked up just now", headers={"retry-after": "2"})
