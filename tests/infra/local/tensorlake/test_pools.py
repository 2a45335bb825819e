"""Pools with the real SDK: warm containers, claims, limits, what a claim inherits, and the end of a pool."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from tensorlake.sandbox import Sandbox, SandboxClient
from tensorlake.sandbox.exceptions import PoolInUseError, PoolNotFoundError, RemoteAPIError

from tests.infra.local.tensorlake.conftest import KEY, TensorlakeStage, out
from tests.support.waiting import PATIENCE, until

IMAGE = "tensorlake/ubuntu-minimal"


@pytest.fixture
def client(stage: TensorlakeStage) -> Iterator[SandboxClient]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield SandboxClient(api_url=stage.service.url, api_key=KEY)


def containers(client: SandboxClient, pool: str) -> list[tuple[str, str]]:
    """(state, id) of each."""
    return [(each.state, each.id) for each in client.get_pool(pool).value.containers or []]


def made(client: SandboxClient, **options: Any) -> str:
    return str(client.create_pool(image=IMAGE, **options).value.pool_id)


def claimed(stage: TensorlakeStage, client: SandboxClient, pool: str) -> Sandbox:
    identity = client.claim(pool).value.sandbox_id
    sandbox = Sandbox.connect(identity, **stage.sdk)
    stage.made.append(sandbox)
    return sandbox


def test_a_claim_takes_a_warm_container_which_is_replaced(stage: TensorlakeStage, client: SandboxClient) -> None:
    pool = made(client, warm_containers=2, max_containers=3, cpus=1.0)
    assert [state for state, _ in containers(client, pool)] == ["Idle", "Idle"]
    sandbox = claimed(stage, client, pool)
    assert out(sandbox, "echo up") == "up"
    info = client.get(sandbox.sandbox_id).value
    assert (info.pool_id, info.image, info.name) == (pool, IMAGE, None)
    assert sorted(state for state, _ in containers(client, pool)) == ["Idle", "Idle", "Running"]
    assert sandbox.sandbox_id in [row.sandbox_id for row in client.list()]


def test_without_a_warm_container_a_claim_starts_a_cold_one(stage: TensorlakeStage, client: SandboxClient) -> None:
    pool = made(client)
    assert containers(client, pool) == []
    assert out(claimed(stage, client, pool), "echo up") == "up"


def test_a_full_pool_makes_a_claim_wait_until_a_container_is_free(
    stage: TensorlakeStage, client: SandboxClient
) -> None:
    pool = made(client, max_containers=1)
    first = claimed(stage, client, pool)
    second: list[str] = []

    def claim() -> None:
        # Not by the SDK, which would keep every other thread from asking meanwhile.
        headers = {"authorization": f"Bearer {KEY}"}
        answer = httpx2.post(f"{stage.service.url}/sandbox-pools/{pool}/sandboxes", headers=headers, timeout=PATIENCE)
        second.append(answer.json()["sandbox_id"])

    waiting = threading.Thread(target=claim)
    waiting.start()
    until(lambda: [row.pending_reason for row in client.list() if row.pool_id == pool and row.pending_reason])
    (reason,) = [row.pending_reason for row in client.list() if row.pool_id == pool and row.pending_reason]
    assert (reason, second) == ("pool_at_capacity", [])
    first.terminate()
    waiting.join(PATIENCE)
    sandbox = Sandbox.connect(second[0], **stage.sdk)
    stage.made.append(sandbox)
    assert out(sandbox, "echo up") == "up"


def test_a_claimed_sandbox_is_suspended_at_its_time_out_and_wakes(
    stage: TensorlakeStage, client: SandboxClient
) -> None:
    sandbox = claimed(stage, client, made(client, timeout_secs=1))
    until(lambda: client.get(sandbox.sandbox_id).value.status.value == "suspended")
    assert out(sandbox, "echo awake") == "awake"


def test_an_update_replaces_the_warm_containers_and_keeps_the_claimed(
    stage: TensorlakeStage, client: SandboxClient
) -> None:
    pool = made(client, warm_containers=1)
    sandbox = claimed(stage, client, pool)
    before = [each for state, each in containers(client, pool) if state == "Idle"]
    changed = client.update_pool(pool, image=IMAGE, warm_containers=2, cpus=2.0).value
    assert (changed.warm_containers, changed.resources.cpus) == (2, 2.0)
    idle = [each for state, each in containers(client, pool) if state == "Idle"]
    assert len(idle) == 2 and not set(idle) & set(before)
    assert out(sandbox, "echo still") == "still"


def test_a_pool_with_a_claimed_container_is_not_deleted(stage: TensorlakeStage, client: SandboxClient) -> None:
    pool = made(client, warm_containers=1)
    sandbox = claimed(stage, client, pool)
    with pytest.raises(PoolInUseError):
        client.delete_pool(pool)
    sandbox.terminate()
    client.delete_pool(pool)
    with pytest.raises(PoolNotFoundError):
        client.get_pool(pool)
    assert pool not in [row.pool_id for row in client.list_pools()]


def test_a_pool_that_cannot_be_is_refused(client: SandboxClient) -> None:
    with pytest.raises(RemoteAPIError, match="warm_containers must not be more"):
        client.create_pool(image=IMAGE, warm_containers=2, max_containers=1)
    with pytest.raises(RemoteAPIError, match="not registered"):
        client.create_pool(image="unheard-of")


def test_a_key_says_which_project_it_belongs_to(stage: TensorlakeStage) -> None:
    answer = stage.post("/platform/v1/keys/introspect")
    assert answer.status_code == 200
    assert set(answer.json()) == {"id", "projectId", "organizationId"}


def test_a_sandbox_that_timed_out_says_so(stage: TensorlakeStage, client: SandboxClient) -> None:
    sandbox = stage.create(timeout_secs=1)
    until(lambda: client.get(sandbox.sandbox_id).value.status.value == "terminated")
    info = client.get(sandbox.sandbox_id).value
    assert (info.outcome, info.termination_reason) == ("timeout", "timeout")
