"""Lists of which one row cannot be read: the others are used, and the row is counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.ports import Doubtful, Listing, SandboxRecord, SnapshotRecord
from shared.secret import Secret
from tests.support.http_stub import StubHandler, stub_server

BOX = {
    "namespace": "default",
    "status": "running",
    "resources": {"cpus": 1.0, "memory_mb": 1024, "disk_mb": 1024},
    "created_at": 1_760_000_000_000,
}
GOOD = [{**BOX, "id": f"box{number}", "name": f"name{number}"} for number in range(2)]
TAKEN = {"namespace": "default", "status": "completed", "snapshot_type": "filesystem", "created_at": 1_760_000_000_000}
SHOTS = [{**TAKEN, "id": f"shot{number}", "sandbox_id": "box0"} for number in range(2)]


@pytest.fixture
def answers() -> Iterator[tuple[dict[str, Any], TensorlakeSandboxes]]:
    """What the service's lists answer, and a host on it."""
    said: dict[str, Any] = {"sandboxes": [], "snapshots": []}

    class Handler(StubHandler):
        def do_GET(self) -> None:
            key = "snapshots" if "snapshots" in self.path else "sandboxes"
            self.answer(200, json.dumps({key: said[key]}).encode())

    with stub_server(Handler) as url:
        yield (
            said,
            TensorlakeSandboxes(api_url=url, api_key=Secret("TENSORLAKE_API_KEY", "tl-no-key"), bind_seconds=20.0),
        )


async def lists(
    host: TensorlakeSandboxes,
) -> tuple[Listing[SandboxRecord] | Doubtful, Listing[SnapshotRecord] | Doubtful]:
    try:
        return await host.list_sandboxes(), await host.list_snapshots()
    finally:
        await host.aclose()


def test_lists_that_can_be_read_are_complete(answers: tuple[dict[str, Any], TensorlakeSandboxes]) -> None:
    said, host = answers
    said.update(sandboxes=GOOD, snapshots=SHOTS)
    boxes, shots = asyncio.run(lists(host))
    assert isinstance(boxes, Listing) and boxes.complete and [box.id for box in boxes.rows] == ["box0", "box1"]
    assert isinstance(shots, Listing) and shots.complete and [shot.id for shot in shots.rows] == ["shot0", "shot1"]


@pytest.mark.parametrize("odd", [{"status": "hibernating"}, {"created_at": "yesterday-ish"}])
def test_one_row_that_cannot_be_read_hides_no_other(
    answers: tuple[dict[str, Any], TensorlakeSandboxes], odd: Mapping[str, Any]
) -> None:
    said, host = answers
    said.update(
        sandboxes=[GOOD[0], {**GOOD[1], **odd, "id": "odd"}, GOOD[1]],
        snapshots=[SHOTS[0], {**TAKEN, "id": "odd", "sandbox_id": "box0", "created_at": "yesterday-ish"}, SHOTS[1]],
    )
    boxes, shots = asyncio.run(lists(host))
    assert isinstance(boxes, Listing) and {"box0", "box1"} <= {box.id for box in boxes.rows}
    assert boxes.unreadable == (0 if boxes.complete else 1)
    assert isinstance(shots, Listing) and {"shot0", "shot1"} <= {shot.id for shot in shots.rows}
    assert shots.unreadable == (0 if shots.complete else 1)
