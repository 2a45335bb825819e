"""A secret whose place is slow, or that a service refuses: the loop goes on, and a rotated key is found at once."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared import secret as secrets
from shared.adapters.anthropic_queue import AnthropicQueue
from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.errors import SecretUnavailable
from shared.ports import ProcessSpec, Refused
from shared.secret import CACHE_SECONDS, RETRY_SECONDS, Secret
from tests.support.http_stub import StubHandler, stub_server

ROOT = Path(__file__).resolve().parents[2]


class SlowSecretStore:
    """A place that answers when it is told to. Each read is counted."""

    def __init__(self, value: str = "first") -> None:
        self.value: str | None = value
        self.reads = 0
        self.open = threading.Event()
        self.open.set()

    def read(self, scheme: str, place: str) -> str:
        from shared import secret_stores

        assert (scheme, place) == ("gcp-sm", "projects/p/secrets/s")
        self.reads += 1
        assert self.open.wait(60)
        if self.value is None:
            raise secret_stores.NotReadable("no answer")
        return self.value


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowSecretStore]:
    from shared import secret_stores

    made = SlowSecretStore()
    monkeypatch.setattr(secret_stores, "read", made.read)
    yield made
    made.open.set()


class LoopClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> LoopClock:
    return LoopClock()


def of(store: SlowSecretStore, clock: Callable[[], float]) -> Secret:
    return Secret("SOME_KEY", "gcp-sm:projects/p/secrets/s", clock=clock)


def test_the_loop_goes_on_while_a_store_is_asked_and_many_who_wait_ask_it_once(
    store: SlowSecretStore, clock: LoopClock
) -> None:
    async def scenario() -> None:
        secret = of(store, clock)
        store.open.clear()
        waiting = [asyncio.create_task(secret.areveal()) for _ in range(20)]
        for _ in range(100):  # the loop turns although the store holds its answer back
            await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        store.open.set()
        assert set(await asyncio.gather(*waiting)) == {"first"}
        assert store.reads == 1

    asyncio.run(scenario())


def test_a_file_that_is_a_pipe_which_nobody_writes_holds_up_neither_the_loop_nor_the_end_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "key")
    monkeypatch.setattr(secrets, "LONGEST_READ_SECONDS", 0.1)
    with pytest.raises(SecretUnavailable, match="SOME_KEY"):
        asyncio.run(Secret("SOME_KEY", f"file:{tmp_path / 'key'}").areveal())  # and the loop can be closed
    os.close(os.open(tmp_path / "key", os.O_RDWR | os.O_NONBLOCK))  # lets the thread go


def test_while_an_old_value_is_good_nobody_waits_long_for_a_newer_one_and_it_comes_by_itself(
    store: SlowSecretStore, clock: LoopClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "PATIENCE_SECONDS", 0.05)

    async def scenario() -> None:
        secret = of(store, clock)
        assert await secret.areveal() == "first"
        clock.now, store.value = CACHE_SECONDS + 1, "second"
        store.open.clear()
        assert await secret.areveal() == "first"
        store.open.set()
        while await secret.areveal() != "second":
            await asyncio.sleep(0.01)
        assert store.reads == 2

    asyncio.run(scenario())


def test_a_caller_who_gives_up_takes_the_read_away_from_nobody(store: SlowSecretStore, clock: LoopClock) -> None:
    async def scenario() -> None:
        secret = of(store, clock)
        store.open.clear()
        first, second = (asyncio.create_task(secret.areveal()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        store.open.set()
        assert await second == "first"
        assert store.reads == 1

    asyncio.run(scenario())


def test_a_refused_value_is_read_again_at_once_but_not_each_time(store: SlowSecretStore, clock: LoopClock) -> None:
    async def scenario() -> None:
        secret = of(store, clock)
        assert await secret.areveal() == "first"
        assert await secret.refused("first") is False
        assert store.reads == 2
        store.value = "second"
        assert await secret.refused("first") is False  # it was asked a moment ago
        assert store.reads == 2
        clock.now += RETRY_SECONDS
        assert await secret.refused("first") is True
        assert await secret.areveal() == "second"
        assert await secret.refused("first") is True  # a call that began with the old value
        assert store.reads == 3

    asyncio.run(scenario())


def test_calls_that_are_refused_together_wait_for_one_read_and_go_on_with_it(
    store: SlowSecretStore, clock: LoopClock
) -> None:
    async def scenario() -> None:
        secret = of(store, clock)
        await secret.areveal()
        store.value = "second"
        assert await asyncio.gather(*(secret.refused("first") for _ in range(10))) == [True] * 10
        assert store.reads == 2

    asyncio.run(scenario())


def test_a_refused_value_stays_good_where_its_store_fails(store: SlowSecretStore, clock: LoopClock) -> None:
    async def scenario() -> None:
        secret = of(store, clock)
        await secret.areveal()
        store.value = None
        assert await secret.refused("first") is False
        assert await secret.areveal() == "first"

    asyncio.run(scenario())


@pytest.fixture
def rotated() -> Iterator[str]:
    """A service that takes the second key alone."""

    class Handler(StubHandler):
        def do_GET(self) -> None:
            good = self.headers.get("authorization") == "Bearer second"
            body = b'{"data": [], "next_page": null}' if good and "/work" in self.path else b"{}"
            self.answer((200 if "/work" in self.path else 404) if good else 401, body)

    with stub_server(Handler) as url:
        yield url


def test_a_call_that_meets_a_rotated_key_is_made_again_with_the_new_one(rotated: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("first")

    async def scenario() -> None:
        queue = AnthropicQueue(
            base_url=rotated, environment_id="env_1", key=Secret("KEY", f"file:{key}"), reclaim_seconds=90.0
        )
        host = TensorlakeSandboxes(api_url=rotated, api_key=Secret("KEY", f"file:{key}"), bind_seconds=20.0)
        try:
            assert isinstance(await queue.list_items(1), Refused)
        finally:
            await queue.aclose()
        queue = AnthropicQueue(
            base_url=rotated, environment_id="env_1", key=Secret("KEY", f"file:{key}"), reclaim_seconds=90.0
        )
        try:
            await queue._connected()
            await host._lifecycle()
            key.write_text("second")
            assert not isinstance(await queue.list_items(1), Refused)
            assert type(await host.find("box")).__name__ == "Absent"
        finally:
            await queue.aclose()
            await host.aclose()

    asyncio.run(scenario())


def test_a_sandbox_that_refuses_a_rotated_key_is_called_again_with_the_new_one(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("first")
    good, shown = ["first"], []

    class Handler(StubHandler):
        def reply(self) -> None:
            self.body()
            shown.append(f"{self.command} {self.headers.get('authorization')}")
            if self.headers.get("authorization") != f"Bearer {good[0]}":
                self.answer(401)
            elif self.path.endswith("/sandboxes/box"):
                row = {"id": "box", "namespace": "default", "status": "running", "created_at": 1_760_000_000_000}
                sizes = {"cpus": 1.0, "memory_mb": 1024, "disk_mb": 1024}
                self.answer(200, json.dumps({**row, "resources": sizes, "sandbox_url": url}).encode())
            else:
                self.answer(200, b"{}")

        do_GET = do_POST = reply

    async def scenario() -> None:
        host = TensorlakeSandboxes(api_url=url, api_key=Secret("KEY", f"file:{key}"), bind_seconds=20.0)
        try:
            assert await host.touch("box") is None
            good[0] = "second"
            key.write_text("second")
            assert await host.start("box", ProcessSpec("one", "true", ())) is None
            assert [each.split()[-1] for each in shown if each.startswith("POST")] == ["first", "second"]
        finally:
            await host.aclose()

    with stub_server(Handler) as url:
        asyncio.run(scenario())


def test_on_the_loop_no_secret_is_read_in_the_way_that_blocks() -> None:
    """`reveal` is for commands and threads: in functions/ and shared/ these are Lambda's entry point, the start of a
    process's telemetry, before it serves, and a store for outputs, all of whose calls shared/outputs/collector.py makes
    in threads."""
    callers = {
        str(path.relative_to(ROOT))
        for folder in ("functions", "shared")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "reveal"
    }
    assert callers == {"functions/aws_lambda.py", "shared/otel.py", "shared/outputs/stores.py"}
