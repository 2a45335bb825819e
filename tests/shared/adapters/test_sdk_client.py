"""A rotated key gets a new client; the old one is closed, and not under the calls that still use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shared.adapters import anthropic_queue, tensorlake_sandboxes
from shared.adapters.anthropic_queue import AnthropicQueue
from shared.adapters.sdk_client import RetiredClients
from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.secret import CACHE_SECONDS, Secret


class Client:
    """Stands for either SDK's."""

    def __init__(self, **options: Any) -> None:
        self.key = options.get("auth_token") or options.get("api_key")
        self.closed = False

    async def close(self) -> None:
        self.closed = True


def queue(key: Secret) -> AnthropicQueue:
    return AnthropicQueue(base_url="http://127.0.0.1:9", environment_id="env_1", key=key, reclaim_seconds=90.0)


def host(key: Secret) -> TensorlakeSandboxes:
    return TensorlakeSandboxes(api_url="http://127.0.0.1:9", api_key=key, bind_seconds=45.0)


@pytest.mark.parametrize(
    "make, connect", [(queue, lambda made: made._connected()), (host, lambda made: made._lifecycle())]
)
def test_the_client_of_a_rotated_key_is_replaced_once_kept_open_and_closed_in_the_end(
    make: Callable[[Secret], Any], connect: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (anthropic_queue, tensorlake_sandboxes):
        monkeypatch.setattr(module, "_client_class", lambda: Client)
    now = [0.0]
    monkeypatch.setenv("SOME_KEY", "old")

    async def scenario() -> None:
        made = make(Secret("SOME_KEY", "env:SOME_KEY", clock=lambda: now[0]))
        old = await connect(made)
        assert await connect(made) is old
        monkeypatch.setenv("SOME_KEY", "new")
        now[0] = CACHE_SECONDS + 1
        new, same = await asyncio.gather(connect(made), connect(made))
        assert (old.key, new.key, new is same) == ("old", "new", True)
        assert not old.closed
        await made.aclose()
        assert old.closed
        assert new.closed

    asyncio.run(scenario())


def test_a_retired_client_is_closed_by_itself_when_its_time_is_over() -> None:
    async def scenario() -> None:
        closed = asyncio.Event()

        async def close() -> None:
            closed.set()

        async def fail() -> None:
            raise RuntimeError("it was closed before")

        retired = RetiredClients(seconds=0.0)
        retired.add(fail)
        retired.add(close)
        await asyncio.wait_for(closed.wait(), 30)
        await retired.aclose()

    asyncio.run(scenario())
