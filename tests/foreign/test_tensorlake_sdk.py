"""What Tensorlake's own SDK must be able to do on the offline service, beside what tests/infra/local/tensorlake tries:
names and identities, what is not there, and a pool's record, limit and end."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from tensorlake.sandbox import Sandbox, SandboxClient
from tensorlake.sandbox.exceptions import PoolNotFoundError, RemoteAPIError, SandboxNotFoundError
from tensorlake.sandbox.models import NetworkConfig

from tests.support.waiting import until
from tests.support.world import OfflineWorld

IMAGE = "tensorlake/ubuntu-minimal"
KEY = "tl-key-of-no-real-account"


@pytest.fixture
def client(world: OfflineWorld) -> Iterator[SandboxClient]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield SandboxClient(api_url=world.tensorlake.url, api_key=KEY)


@pytest.fixture
def pools(client: SandboxClient) -> Iterator[list[str]]:
    """Those that a test makes, to be ended with what was claimed from them."""
    made: list[str] = []
    yield made
    for pool in made:
        for container in client.get_pool(pool).value.containers or []:
            if container.state != "Idle":
                client.delete(container.id)
        client.delete_pool(pool)


def states(client: SandboxClient, pool: str) -> list[str]:
    return sorted(each.state for each in client.get_pool(pool).value.containers or [])


def test_a_handle_has_the_identity_whichever_way_it_was_made(world: OfflineWorld) -> None:
    sdk: Any = {"api_url": world.tensorlake.url, "api_key": KEY}
    made = Sandbox.create(name="foreign-identity", **sdk)
    try:
        assert made.sandbox_id != "foreign-identity"
        for way in (made.sandbox_id, "foreign-identity"):
            assert Sandbox.connect(way, **sdk).sandbox_id == made.sandbox_id
    finally:
        made.terminate()


def test_what_is_not_there_is_said_by_its_own_error(client: SandboxClient) -> None:
    with pytest.raises(SandboxNotFoundError):
        client.delete("no-sandbox-of-this-name")
    with pytest.raises(SandboxNotFoundError):
        client.get("no-sandbox-of-this-name")
    with pytest.raises(PoolNotFoundError):
        client.delete_pool("no-pool-of-this-name")
    with pytest.raises(RemoteAPIError) as refused:  # the SDK has no error of its own for it
        client.claim("no-pool-of-this-name")
    assert refused.value.status_code == 404


def test_a_pool_is_shown_listed_and_updated_with_its_network(client: SandboxClient, pools: list[str]) -> None:
    closed = NetworkConfig(allow_internet_access=False, allow_out=["example.com"], deny_out=[])
    pool = client.create_pool(image=IMAGE, cpus=1.0, memory_mb=1024, disk_mb=10_240, network=closed).value.pool_id
    pools.append(pool)
    (listed,) = [row for row in client.list_pools() if row.pool_id == pool]
    for record in (client.get_pool(pool).value, listed):
        assert (record.image, record.resources.memory_mb, record.network_policy) == (IMAGE, 1024, closed)
    changed = client.update_pool(pool, image=IMAGE, memory_mb=2048, disk_mb=10_240, warm_containers=1).value
    assert (changed.resources.memory_mb, changed.warm_containers) == (2048, 1)
    assert changed.network_policy == closed  # which was not named


def test_a_pool_at_its_limit_warms_no_further_container(client: SandboxClient, pools: list[str]) -> None:
    pool = client.create_pool(image=IMAGE, warm_containers=1, max_containers=2).value.pool_id
    pools.append(pool)
    for _ in range(2):
        client.claim(pool)
    until(lambda: states(client, pool) == ["Running", "Running"], "a third container, or a missing one")


def test_the_warm_containers_of_a_pool_end_with_it(client: SandboxClient, world: OfflineWorld) -> None:
    pool = client.create_pool(image=IMAGE, warm_containers=2).value.pool_id
    warm = [each.id for each in client.get_pool(pool).value.containers or []]
    assert len(warm) == 2
    client.delete_pool(pool)

    def ended() -> bool:
        rows = {row["id"]: row["status"] for row in world.tensorlake_admin.get("state")["sandboxes"]}
        return all(rows.get(each, "terminated") == "terminated" for each in warm)

    until(ended, "they outlive their pool")
