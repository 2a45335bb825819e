"""What a session's set-up may read with the operator's rights: signed addresses of objects, a repository's credential.

Both are made for one hand-over, and only where an operator has switched them on; then the session is looked up for its
metadata, one call more. What cannot be had is a line in the log here, and the set-up's own clear error in the sandbox.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from image.session.setup import BadSetup, Wishes
from shared.environment_settings import Environment
from shared.errors import HandsError
from shared.operator_code import function_of
from shared.ports import SessionRecord, WorkQueue

_MOST: Final = 16  # objects; their addresses travel in the claim
_LONGEST_ADDRESS: Final = 4096
_SECONDS: Final = 20.0
_GROUP: Final = "serverless_hands.credentials"
_MARGIN: Final = 300.0  # seconds that an address is good for beyond the set-up's own limit

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SetupAccess:
    """`signed`: addresses by the objects' URLs. `credential`: `username` and `password`."""

    signed: Mapping[str, str] | None = field(default=None, repr=False)
    credential: Mapping[str, str] | None = field(default=None, repr=False)


async def setup_access(environment: Environment, queue: WorkQueue, session_id: str) -> SetupAccess:
    """Never raises for what a service or a plug-in does."""
    policy = environment.setup
    if policy is None or not (environment.setup_stores or environment.setup_credentials):
        return SetupAccess()
    session = await queue.session(session_id)
    if not isinstance(session, SessionRecord):
        log.warning("setup.no_access session=%s reason=%s", session_id, "its metadata could not be read")
        return SetupAccess()
    try:
        wishes = policy.wishes(session.metadata)
    except BadSetup:  # the worker tells the agent
        return SetupAccess()
    return await access_for(environment, wishes, f"session={session_id}")


async def access_for(environment: Environment, wishes: Wishes, whose: str) -> SetupAccess:
    """What these wishes may read. `whose`: for the log. Never raises for what a service or a plug-in does."""
    policy = environment.setup
    if policy is None or not (environment.setup_stores or environment.setup_credentials):
        return SetupAccess()
    try:
        async with asyncio.timeout(_SECONDS):
            signed, credential = await asyncio.gather(
                asyncio.to_thread(_signed, wishes, environment.setup_stores, policy.seconds + _MARGIN),
                _credential(environment.setup_credentials, wishes.repo),
            )
    except Exception as error:  # the edge: foreign libraries and the operator's own code
        reason = str(error) if isinstance(error, HandsError) else type(error).__name__
        log.warning("setup.no_access %s reason=%s", whose, reason)
        return SetupAccess()
    return SetupAccess(signed, credential)


def _signed(wishes: Wishes, stores: tuple[str, ...], seconds: float) -> dict[str, str] | None:
    urls = [each.url for each in wishes.files if each.url.startswith(stores)][:_MOST] if stores else []
    if not urls:
        return None
    from shared.object_addresses import signed

    found = {url: address for url, address in signed(urls, int(seconds)) if len(address) <= _LONGEST_ADDRESS}
    return found or None


async def _credential(target: str, repo: str) -> dict[str, str] | None:
    """Of the operator's function, which gets the repository's URL and gives a name and a password, or None."""
    if not target or not repo:
        return None
    plugin = await asyncio.to_thread(function_of, target, _GROUP)
    given = await plugin(repo) if inspect.iscoroutinefunction(plugin) else await asyncio.to_thread(plugin, repo)
    if given is None:
        return None
    username, password = given
    if not all(isinstance(each, str) and each.isprintable() and each for each in (username, password)):
        raise ValueError("a name and a password are printable texts")
    return {"username": username, "password": password}
