"""How often `hands top` and `hands ps -w` look at everything again."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rich.console import Console

from infra.cli.environ import Loaded
from infra.cli.fleet import ps, top
from infra.cli.fleet.pace import CALLS_A_MINUTE, Pause
from infra.cli.fleet.survey import look
from tests.support.many_sessions import many_sessions, variables


class Enough(Exception):
    """The watching was seen long enough."""


async def watched_ps(loaded: Loaded, pause: Pause) -> None:
    await ps.watched(loaded, await look(loaded, time.time()), everything=False, pause=pause)


async def watched_top(loaded: Loaded, pause: Pause) -> None:
    await top.watched(loaded, await top.overview(loaded), Console(file=io.StringIO()), pause)


@pytest.mark.parametrize("watched", [watched_ps, watched_top])
def test_a_look_that_takes_many_calls_is_made_less_often(watched: Callable[[Loaded, Any], Awaitable[None]]) -> None:
    with many_sessions() as service:
        paused = 0.0

        async def pause(seconds: float) -> None:
            nonlocal paused
            paused += seconds
            if paused >= 20.0:
                raise Enough

        async def go() -> None:
            with pytest.raises(Enough):
                await watched(Loaded(variables(service), None), pause)

        asyncio.run(go())
        # What a client sends again to a service that is slow to answer comes on top.
        assert service.calls.total() > 50 and service.calls.total() / paused * 60 <= 1.1 * CALLS_A_MINUTE
