"""Whether what one function issues is what another accepts: two parts of a deployment each have their half of it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

from starlette.requests import Request

from functions.auth import caller_of
from functions.requests import HttpError
from shared.capability import FORK
from shared.claims.dispatcher import Dispatcher
from shared.ports import WorkItem
from shared.settings import Settings
from tests.fuzz.stage import NothingQueued
from tests.support.fake_host import FakeHost


def accepted(dispatching: Settings, forking: Settings) -> bool:
    """A claim as the dispatcher hands it over, its token shown to fork_best_of_n's own check."""
    return asyncio.run(_accepted(asyncio.run(issued(dispatching)), forking))


async def issued(dispatching: Settings) -> str:
    """The token in a claim as the dispatcher hands it over."""
    (environment,) = dispatching.environments.values()
    item = WorkItem("work_1", environment.id, "session", "sesn_1", datetime.now(UTC), "a-secret-of-nobody")
    claim = await Dispatcher(dispatching, environment, NothingQueued(), FakeHost())._claim(item, "a-secret-of-nobody")
    assert claim.capability_token is not None and claim.fork_url is not None
    return claim.capability_token


async def _accepted(token: str, forking: Settings) -> bool:
    headers = [(b"authorization", f"Bearer {token}".encode())]
    request = Request({"type": "http", "method": "POST", "path": "/", "headers": headers})
    try:
        caller = await caller_of(request, forking, FORK)
    except HttpError as error:
        assert error.status in (401, 403)
        return False
    return caller is not None and caller.work_id == "work_1" and caller.expires_at > time.time()
