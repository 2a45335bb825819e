"""How many races an agent's own work item may have at once in one process."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from shared.ports import CommandOutput, ItemState
from tests.functions.test_agent_auth import RACE, Listed, client, item, listing, post
from tests.support.fake_host import FakeCall, FakeFault, FakeHost, Method
from tests.support.waiting import until

OTHER: Final = "work_2"


def test_a_work_item_has_one_race_at_a_time() -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def program(call: FakeCall) -> CommandOutput:
        begun.set()
        await asyncio.to_thread(go_on.wait, 30)
        return CommandOutput(0, "", "", timed_out=False)

    queue = Listed(listing(item(ItemState.ACTIVE), item(ItemState.ACTIVE, OTHER)))
    with client(queue, FakeHost(latency=0.001, program=program)) as http, ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(post, http)
            assert begun.wait(30)
            second = post(http)
            dry = post(http, {**RACE, "dry_run": True})
            begun.clear()
            other = pool.submit(post, http, work_id=OTHER)
            until(begun.is_set, "another work item's race did not begin")
        finally:
            go_on.set()
        assert (first.result(30).status_code, other.result(30).status_code) == (200, 200)
        assert (second.status_code, second.json()["error"]["type"]) == (429, "race_running")
        assert dry.status_code == 200
        assert post(http).status_code == 200  # the one before is over


def test_a_race_that_came_to_nothing_does_not_count() -> None:
    refused = [FakeFault.REFUSED]

    def meet(method: Method, what: str) -> FakeFault | None:
        return refused[0] if refused and method == "snapshot" else None

    with client(Listed(listing(item(ItemState.ACTIVE))), FakeHost(latency=0.001, meet=meet)) as http:
        assert post(http).status_code == 409
        refused.clear()
        assert post(http).status_code == 200
