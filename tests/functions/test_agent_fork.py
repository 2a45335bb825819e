"""An agent forks its own sandbox in the middle of its turn: all of it real but the two services and the brain."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import pytest

from image.session.worker import fork_tool_schema
from shared import names
from shared.capability import FORK, Capability, issue, signing_key
from shared.ports import OpenCalls, WorkItem
from shared.reports import ItemEnd
from shared.service import Service
from tests.support.serving import TOKEN, UVICORN, serving
from tests.support.waiting import until
from tests.support.world import OfflineWorld, Place

RACE: Final = {
    "branches": [
        {"name": "right", "script": "echo 42 > answer.txt"},
        {"name": "wrong", "script": "echo 41 > answer.txt"},
        {"name": "broken", "script": "echo I cannot >&2; exit 3"},
    ],
    "judge": {"type": "command", "script": 'test "$(cat answer.txt)" = 42 && echo 1 || echo 0'},
    "min_score": 1,
    "promote": "workspace",
}


def session_of_a_forker(place: Place, prompt: str) -> str:
    tools: list[Any] = [{"type": "agent_toolset_20260401"}, fork_tool_schema.definition()]
    api = place.world.api
    agent = api.beta.agents.create(name="forker", model="claude-opus-5", tools=tools)
    message: Any = {"type": "user.message", "content": [{"type": "text", "text": prompt}]}
    return api.beta.sessions.create(agent=agent.id, environment_id=place.environment_id, initial_events=[message]).id


def fork_results(place: Place, session_id: str) -> list[tuple[str, bool]]:
    """Text and is_error of every custom tool's result."""
    events = place.world.api.beta.sessions.events.list(session_id, types=["user.custom_tool_result"])
    raw: list[Mapping[str, Any]] = [event.to_dict() for event in events]
    return [(event["content"][0]["text"], bool(event["is_error"])) for event in raw]


def capability(forked: Forked, **changes: Any) -> str:
    """What the dispatcher issues for the session's newest item, `changes` made."""
    fields: dict[str, Any] = {
        "function": FORK,
        "environment_id": forked.place.environment_id,
        "session_id": forked.session_id,
        "work_id": forked.place.item(forked.session_id)["id"],
        "branches": 8,
        "seconds": 60.0,
        "expires_at": int(time.time()) + 600,
    }
    return issue(Capability(**{**fields, **changes}), signing_key(TOKEN))


def post(url: str, token: str, body: Mapping[str, Any]) -> httpx2.Response:
    return httpx2.post(
        f"{url}/fork_best_of_n",
        json=body,
        headers={"authorization": f"Bearer {token}"},
        timeout=60.0,
        trust_env=False,
    )


@dataclass(frozen=True, slots=True)
class Forked:
    """A session whose agent has forked; its worker still holds the lease. `url` is the functions'."""

    place: Place
    session_id: str
    url: str


@pytest.fixture(scope="module")
def forked(world: OfflineWorld) -> Iterator[Forked]:
    plain = world.place(FUNCTIONS_TOKEN=TOKEN, AGENT_FORK="true", FUNCTIONS_PUBLIC_URL="http://127.0.0.1:9")
    with serving(plain, UVICORN) as url:
        place = plain.adjusted(FUNCTIONS_PUBLIC_URL=url, RUNNER_MAX_IDLE_SECONDS="60")
        prompt = f"$ echo mine > notes.txt\nfork {json.dumps(RACE)}\n$ cat notes.txt answer.txt"
        session_id = session_of_a_forker(place, prompt)
        asyncio.run(hand_over(place))
        place.wait_done(session_id)
        yield Forked(place, session_id, url)


async def hand_over(place: Place) -> None:
    async with place.dispatcher() as dispatcher:
        report = await dispatcher.drain()
    assert [item.end for item in report.items] == [ItemEnd.HANDED_OVER], report


def test_an_agent_forks_in_its_turn_and_goes_on_with_the_winners_files(forked: Forked) -> None:
    ((text, is_error),) = fork_results(forked.place, forked.session_id)
    assert not is_error, text
    assert text.startswith("Winner: right"), text
    assert "in your working directory now: 1 added" in text
    assert "[wrong] failed, score 0" in text
    assert "[broken] failed" in text and "stderr: I cannot" in text
    (answer,) = forked.place.answers(forked.session_id)
    assert "mine" in answer and "42" in answer.split("Winner")[-1], answer
    # What it made is ended, and its worker and lease were never touched.
    place, session_id = forked.place, forked.session_id
    ledger = names.race_ledger_name(place.settings.prefix, place.environment_id, session_id)
    assert {box["name"] for box in place.sandboxes()} == {place.sandbox(session_id), ledger}
    assert [item["state"] for item in forked.place.items(forked.session_id)] == ["active"]


def test_the_token_is_good_for_that_session_and_no_other(forked: Forked) -> None:
    own, url = capability(forked), forked.url
    dry = {**RACE, "dry_run": True}
    assert post(url, own, dry).status_code == 200
    other = forked.place.session("$ true")
    assert post(url, own, {**dry, "source": {"session_id": other}}).status_code == 403
    assert post(url, capability(forked, session_id=other), dry).status_code == 403
    queued = forked.place.item(other)["id"]
    assert post(url, capability(forked, session_id=other, work_id=queued), dry).status_code == 403
    assert post(url, capability(forked, work_id="work_of_nobody"), dry).status_code == 403
    assert post(url, capability(forked, expires_at=int(time.time()) - 1), dry).status_code == 401
    flipped = "A" if own[-1] != "A" else "B"
    assert post(url, own[:-1] + flipped, dry).status_code == 401
    assert post(url, own, {**dry, "deadline": 61}).status_code == 403


def test_two_copies_hold_an_agent_to_one_race_a_work_item_and_to_one_budget_of_the_day(forked: Forked) -> None:
    """Two server processes that share nothing but the service."""
    gated = {"n": 1, "script": "until [ -e /workspace/go ]; do sleep 0.1; done", "max_sandbox_seconds": 100}
    own, place = capability(forked), forked.place
    other_place = place.adjusted(RACE_AGENT_SANDBOX_SECONDS_PER_DAY="1")
    with serving(other_place, UVICORN) as second, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, forked.url, own, gated)
        branch = until(lambda: _running_branches(place), "the race did not begin")[0]
        refused = post(second, own, gated)
        asyncio.run(_open_gate(place, branch["id"]))
        assert first.result(90).status_code == 200
        # On a busy machine the ledger is written behind the report.
        spent = until(lambda: (now := post(second, own, gated)).json()["error"]["type"] != "race_running" and now)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "race_running")
    assert (spent.status_code, spent.json()["error"]["type"]) == (429, "budget_spent")
    assert int(spent.headers["retry-after"]) > 0


def _running_branches(place: Place) -> list[Mapping[str, Any]]:
    kinds = ((names.parse(place.settings.prefix, box["name"]), box) for box in place.sandboxes())
    return [box for kind, box in kinds if isinstance(kind, names.RaceSandbox) and box["status"] == "running"]


async def _open_gate(place: Place, sandbox_id: str) -> None:
    service = Service(place.settings)
    try:
        assert await service.host.write_file(sandbox_id, "/workspace/go", b"") is None
    finally:
        await service.aclose()


def test_the_token_dies_with_its_item(forked: Forked) -> None:
    """Last in this file: it ends the session's work."""
    token, place = capability(forked), forked.place
    dry = {**RACE, "dry_run": True}
    assert post(forked.url, token, dry).status_code == 200
    place.world.api.beta.environments.work.stop(
        place.item(forked.session_id)["id"], environment_id=place.environment_id, force=True
    )
    answer = post(forked.url, token, dry)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "session_over")


def test_i1_a_fork_whose_worker_is_lost_is_answered_and_the_turn_goes_on(world: OfflineWorld) -> None:
    place = world.place()
    session = session_of_a_forker(place, "fork {branches: [{name: a, script: 'true'}]}")

    async def play() -> None:
        async with place.dispatcher() as dispatcher:
            queue = dispatcher.queue
            item = await queue.poll()
            assert isinstance(item, WorkItem)
            while not isinstance(calls := await queue.open_calls(session), OpenCalls) or not calls.ids:
                await asyncio.sleep(0.1)
            assert calls.custom == frozenset(calls.ids) and not calls.given_up
            assert await queue.force_stop(item.id) is None
            assert await queue.give_up_calls(session, calls) is None
            assert await queue.open_calls(session) == OpenCalls()

    asyncio.run(play())
    until(lambda: "lost before it answered" in "".join(place.answers(session)), "the turn does not go on")
