"""One environment of the offline platform for each test of certify."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.local.platform import CLAUDE_ADMIN
from tests.support.world import API_KEY, OfflineWorld, Place

PING, LEASE = 0.2, 300.0


@pytest.fixture
def ground_place(world: OfflineWorld, place: Place) -> Iterator[dict[str, str]]:
    """The variables of an environment of this test's own, with what a person has. Knobs are reset after it."""
    before = world.claude_admin.get("settings")
    world.claude_admin.patch("settings", {"ping_interval": PING, "lease_ttl": LEASE})
    yield {
        **place.environ,
        "ANTHROPIC_API_KEY": API_KEY,
        "ANTHROPIC_AGENT_ID": world.agent_id,
        CLAUDE_ADMIN: world.claude.admin_token,
    }
    world.claude_admin.patch("settings", before)
