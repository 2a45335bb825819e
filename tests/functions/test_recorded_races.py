"""Races with an Idempotency-Key or Prefer: respond-async, asked of two served copies that share nothing but the service
(docs/races.md#races-that-nobody-waits-for)."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urljoin

import httpx2
import pytest

from shared import names
from shared.ports import SandboxRecord
from shared.races.records import BEAT_SECONDS, RaceRecords, SeenRecord
from shared.reconcile.reconciler import Reconciler
from shared.reports import Act
from shared.service import Service
from tests.support.serving import FRAMEWORK, TOKEN, UVICORN, kill_server, serving
from tests.support.waiting import until
from tests.support.world import IMAGE, OfflineWorld, Place

GATE: Final = "/workspace/go"
GATED: Final[Mapping[str, Any]] = {
    "source": {"image": IMAGE},
    "n": 1,
    "script": f"until [ -e {GATE} ]; do sleep 0.05; done; echo through",
}
QUICK: Final[Mapping[str, Any]] = {"source": {"image": IMAGE}, "n": 1, "script": "echo quick"}


@dataclass
class RacingCopies:
    """Two copies of the functions, and who calls them."""

    place: Place
    first: httpx2.Client
    second: httpx2.Client
    pool: ThreadPoolExecutor

    def later(self, copy: httpx2.Client, body: Any, **headers: str) -> Future[httpx2.Response]:
        return self.pool.submit(post, copy, body, **headers)

    def branches_of(self, race_id: str) -> list[Mapping[str, Any]]:
        """The sandboxes that were ever made for the race's first branch."""
        everything = self.place.sandbox_state()["sandboxes"]
        prefix = f"{self.place.settings.prefix}-{names.environment_tag(self.place.environment_id)}-r{race_id}-0-"
        return [box for box in everything if box["name"].startswith(prefix)]

    def open_gate(self, race_id: str) -> None:
        """The race's branch goes on; waits until there is one."""
        (branch,) = until(lambda: [box for box in self.branches_of(race_id) if box["status"] == "running"])
        assert asyncio.run(with_host(self.place, lambda host: host.write_file(branch["id"], GATE, b""))) is None

    def record_of(self, race_id: str) -> str:
        return names.race_record_name(self.place.settings.prefix, self.place.environment_id, race_id)


def post(copy: httpx2.Client, body: Any = GATED, **headers: str) -> httpx2.Response:
    return copy.post("/fork_best_of_n", json=body, headers={name.replace("_", "-"): at for name, at in headers.items()})


async def with_host(place: Place, work: Any) -> Any:
    service = Service(place.settings)
    try:
        return await work(service.host)
    finally:
        await service.aclose()


def race_id_of(place: Place, key: str) -> str:
    return names.derived_race_id(place.environment_id, "operator", key)


@pytest.fixture(scope="module")
def copies(world: OfflineWorld) -> Iterator[RacingCopies]:
    place = world.place()
    headers = {"authorization": f"Bearer {TOKEN}"}
    options: dict[str, Any] = {"headers": headers, "timeout": 90.0, "trust_env": False}
    with (
        serving(place, UVICORN) as one,
        serving(place, UVICORN) as other,
        httpx2.Client(base_url=one, **options) as first,
        httpx2.Client(base_url=other, **options) as second,
        ThreadPoolExecutor(4) as pool,
    ):
        yield RacingCopies(place, first, second, pool)


def test_a_repeat_finds_the_running_and_the_finished_race_from_any_copy(copies: RacingCopies) -> None:
    key = secrets.token_hex(8)
    race_id = race_id_of(copies.place, key)
    asked = copies.later(copies.first, GATED, idempotency_key=key)
    until(lambda: copies.branches_of(race_id), "the race did not begin")
    repeats = [copies.later(copy, GATED, idempotency_key=key) for copy in (copies.first, copies.second)]
    until(lambda: copies.second.get(f"/fork_best_of_n/{race_id}").json()["state"] == "running")
    other = post(copies.second, {**GATED, "n": 2}, idempotency_key=key)
    copies.open_gate(race_id)
    report = asked.result(90).json()
    assert report["race_id"] == race_id and report["winner"] == "b0"
    assert [each.result(90).json() for each in repeats] == [report, report]
    reordered = dict(reversed(list(GATED.items())))
    assert [post(copy, reordered, idempotency_key=key).json() for copy in (copies.first, copies.second)] == [report] * 2
    assert (other.status_code, other.json()["error"]["type"]) == (422, "idempotency_key_reused")
    assert len(copies.branches_of(race_id)) == 1, "one race alone"


def test_two_copies_that_are_asked_at_once_run_one_race(copies: RacingCopies) -> None:
    keys = [secrets.token_hex(8) for _ in range(3)]
    pairs = [[copies.later(copy, QUICK, idempotency_key=key) for copy in (copies.first, copies.second)] for key in keys]
    for key, pair in zip(keys, pairs, strict=True):
        one, other = (each.result(90) for each in pair)
        assert (one.status_code, other.status_code) == (200, 200)
        assert one.json() == other.json()
        assert len(copies.branches_of(race_id_of(copies.place, key))) == 1


def test_a_race_that_nobody_waits_for_is_read_back_from_any_copy(copies: RacingCopies) -> None:
    accepted = post(copies.first, GATED, prefer="respond-async")
    assert (accepted.status_code, accepted.headers["preference-applied"]) == (202, "respond-async")
    race_id = accepted.json()["race_id"]
    where = urljoin("/fork_best_of_n", accepted.headers["location"])
    assert where == f"/fork_best_of_n/{race_id}"
    running = copies.second.get(where)
    assert (running.json()["state"], running.json()["report"]) == ("running", None)
    assert int(running.headers["retry-after"]) > 0
    copies.open_gate(race_id)
    ended = until(lambda: (now := copies.second.get(where).json())["state"] != "running" and now)
    assert (ended["state"], ended["report"]["branches"][0]["stdout_tail"]) == ("finished", "through")
    assert copies.first.get(where).json()["report"] == ended["report"]
    lives = datetime.fromisoformat(ended["expires_at"]) - datetime.fromisoformat(ended["asked_at"])
    assert timedelta(hours=23) < lives < timedelta(hours=25)


@pytest.mark.parametrize("asked", ["the copy that runs it", "another copy"])
def test_a_race_that_is_deleted_ends_with_all_it_made_and_says_so(copies: RacingCopies, asked: str) -> None:
    key = secrets.token_hex(8)
    race_id = post(copies.first, GATED, prefer="respond-async", idempotency_key=key).json()["race_id"]
    where = f"/fork_best_of_n/{race_id}"
    until(lambda: copies.branches_of(race_id), "the race did not begin")
    told = (copies.first if asked == "the copy that runs it" else copies.second).delete(where)
    assert (told.status_code, told.json()["state"]) == (202, "running")
    ended = until(lambda: (now := copies.second.get(where).json())["state"] != "running" and now)
    report = ended["report"]
    assert (ended["state"], report["cancelled"], report["winner"]) == ("cancelled", True, None)
    assert {branch["reason"] for branch in report["branches"]} == {"the race was cancelled"}
    until(lambda: all(box["status"] == "terminated" for box in copies.branches_of(race_id)), "a branch lives on")
    for copy in (copies.first, copies.second):
        again = copy.delete(where)
        assert (again.status_code, again.json()["state"]) == (200, "cancelled")
    assert post(copies.second, GATED, idempotency_key=key).json() == report


def test_a_race_that_is_over_is_not_changed_by_a_delete(copies: RacingCopies) -> None:
    report = post(copies.first, QUICK, idempotency_key=secrets.token_hex(8)).json()
    told = copies.second.delete(f"/fork_best_of_n/{report['race_id']}")
    assert (told.status_code, told.json()["state"], told.json()["report"]) == (200, "finished", report)


def test_a_caller_that_says_how_long_it_waits_gets_the_report_within_that_time(copies: RacingCopies) -> None:
    quick = post(copies.first, QUICK, prefer="respond-async, wait=20")
    assert (quick.status_code, quick.json()["winner"]) == (200, "b0")


def test_a_gateway_that_cuts_the_call_loses_nothing(copies: RacingCopies) -> None:
    key = secrets.token_hex(8)
    race_id = race_id_of(copies.place, key)
    with pytest.raises(httpx2.TimeoutException):
        copies.first.post("/fork_best_of_n", json=GATED, headers={"idempotency-key": key}, timeout=1.0)
    until(lambda: copies.branches_of(race_id), "the race did not begin")
    copies.open_gate(race_id)
    assert post(copies.second, GATED, idempotency_key=key).json()["winner"] == "b0"
    assert len(copies.branches_of(race_id)) == 1


def test_a_stream_with_a_key_tells_the_race_and_its_repeat_the_end(copies: RacingCopies) -> None:
    key = secrets.token_hex(8)
    headers = {"idempotency_key": key, "accept": "application/x-ndjson"}
    first, repeat = (post(copy, QUICK, **headers).text.splitlines() for copy in (copies.first, copies.second))
    assert '"event":"race"' in first[0] and '"event":"report"' in first[-1]
    assert repeat == [first[-1]]


def test_what_was_refused_before_it_began_leaves_its_key_free(copies: RacingCopies) -> None:
    key = secrets.token_hex(8)
    nowhere = {**QUICK, "source": {"session_id": "sesn_0123456789Nobody"}}
    for _ in range(2):
        assert post(copies.first, nowhere, idempotency_key=key).status_code == 404
    assert post(copies.second, nowhere, prefer="respond-async").status_code == 404
    assert post(copies.second, QUICK, idempotency_key=key).status_code == 200


def test_a_race_that_failed_says_so_to_whoever_asks_again(copies: RacingCopies) -> None:
    key = secrets.token_hex(8)
    failing = {**QUICK, "setup": "exit 3"}
    assert post(copies.first, failing, idempotency_key=key).status_code == 422
    again = post(copies.second, failing, idempotency_key=key)
    assert (again.status_code, again.json()["error"]["type"]) == (422, "setup_failed")
    told = copies.second.get(f"/fork_best_of_n/{race_id_of(copies.place, key)}").json()
    assert (told["state"], told["error"]["type"], told["report"]) == ("failed", "setup_failed", None)


def test_nobody_without_a_token_reads_a_race_and_nobody_reads_one_that_is_not_there(copies: RacingCopies) -> None:
    nowhere = "/fork_best_of_n/000000000000"
    assert copies.first.get(nowhere, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert copies.first.get(nowhere).json()["error"]["type"] == "race_not_found"
    assert copies.first.get("/fork_best_of_n/no-id").status_code == 404
    assert copies.first.delete(nowhere, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert copies.first.delete(nowhere).json()["error"]["type"] == "race_not_found"
    assert copies.first.delete("/fork_best_of_n").status_code == 405


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9", '""'])
def test_a_key_that_is_none_is_refused(copies: RacingCopies, key: str) -> None:
    answer = copies.first.post(
        "/fork_best_of_n",
        json=QUICK,
        headers=[(b"idempotency-key", key.encode("utf-8"))],
    )
    assert answer.status_code == 400 and "Idempotency-Key" in answer.json()["error"]["message"]


def test_a_race_whose_copy_was_killed_is_lost_and_its_record_goes_in_time(world: OfflineWorld) -> None:
    place = world.place()
    pids: list[int] = []
    headers = {"authorization": f"Bearer {TOKEN}", "prefer": "respond-async"}
    with pytest.raises(ProcessLookupError), serving(place, UVICORN, pids=pids) as url:
        accepted = httpx2.post(f"{url}/fork_best_of_n", json=GATED, headers=headers, timeout=60, trust_env=False)
        until(lambda: len(place.sandboxes()) == 2, "its record and its branch are not there")
        kill_server(pids[0])
    race_id = accepted.json()["race_id"]

    async def seen(ahead: float) -> SeenRecord | None:
        async def look(host: Any) -> SeenRecord | None:
            return await RaceRecords(host, place.settings, place.environment, now=lambda: time.time() + ahead).look(
                race_id
            )

        found = await with_host(place, look)
        assert found is None or isinstance(found, SeenRecord)
        return found

    now = asyncio.run(seen(0))
    assert now is not None
    assert (now.state(time.time()), now.state(time.time() + 181)) == ("running", "lost")
    assert asyncio.run(seen(86_401)) is None, "what is past its time is not told, reaped or not"

    async def tick(ahead: float) -> list[Act]:
        service = Service(place.settings)
        reconciler: Reconciler = replace(
            service.reconciler(place.environment), now=lambda: datetime.now(UTC) + timedelta(seconds=ahead)
        )
        try:
            return [action.act for action in (await reconciler.reconcile()).actions]
        finally:
            await service.aclose()

    assert asyncio.run(tick(200)) == [Act.END_RACE], "the branch, and not the record"
    assert [box["name"] for box in place.sandboxes()] == [
        names.race_record_name(place.settings.prefix, place.environment_id, race_id)
    ]
    assert asyncio.run(tick(86_460)) == [Act.END_RACE]
    assert place.sandboxes() == []


def test_a_server_that_is_stopped_says_so_of_the_races_behind_its_answers(copies: RacingCopies) -> None:
    with serving(copies.place, UVICORN) as url:
        headers = {"authorization": f"Bearer {TOKEN}", "prefer": "respond-async"}
        answer = httpx2.post(f"{url}/fork_best_of_n", json=GATED, headers=headers, timeout=60, trust_env=False)
        race_id = answer.json()["race_id"]
    told = copies.first.get(f"/fork_best_of_n/{race_id}").json()
    assert (told["state"], told["error"]["type"]) == ("failed", "stopped")
    assert [box for box in copies.branches_of(race_id) if box["status"] != "terminated"] == []


def test_a_function_of_its_own_answers_at_a_races_location(copies: RacingCopies) -> None:
    """As Google serves it: no path stands before the id."""
    target = (*FRAMEWORK[:4], "--target", "fork_best_of_n", *FRAMEWORK[6:], "--debug")
    race_id = post(copies.first, QUICK, idempotency_key=secrets.token_hex(8)).json()["race_id"]
    with serving(copies.place, target) as url, httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
        assert http.get(f"/{race_id}").status_code == 401
        told = http.get(f"/{race_id}", headers={"authorization": f"Bearer {TOKEN}"}).json()
    assert told["report"]["winner"] == "b0"


def test_a_record_reaches_nothing_and_falls_asleep_soon_after_its_race(copies: RacingCopies) -> None:
    key = secrets.token_hex(8)
    assert post(copies.first, QUICK, idempotency_key=key).status_code == 200
    name = copies.record_of(race_id_of(copies.place, key))
    found = asyncio.run(with_host(copies.place, lambda host: host.find(name)))
    assert isinstance(found, SandboxRecord) and not found.egress.internet and found.egress.allow == ()
    assert found.timeout_seconds is not None and BEAT_SECONDS < found.timeout_seconds <= 90


def test_a_sleeping_record_is_woken_for_who_asks(copies: RacingCopies) -> None:
    key = secrets.token_hex(8)
    report = post(copies.first, QUICK, idempotency_key=key).json()
    name = copies.record_of(race_id_of(copies.place, key))

    async def let_sleep(host: Any) -> None:
        found = await host.find(name)
        assert await host.suspend(found.id) is None

    asyncio.run(with_host(copies.place, let_sleep))
    assert copies.second.get(f"/fork_best_of_n/{report['race_id']}").json()["report"] == report
