"""The work queue over the wire, through the SDK (docs/wire/anthropic.md#3-work-queue)."""

from __future__ import annotations

import base64
import json
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anthropic
import httpx2
import pytest

from tests.infra.local.claude.conftest import BETA, ClaudeStage
from tests.support.waiting import until


def token_of(item: Any) -> str:
    raw = base64.urlsafe_b64decode(item.secret + "=" * (-len(item.secret) % 4))
    token: str = json.loads(raw)["sessions_token"]
    return token


def test_a_created_session_is_queued_with_and_without_initial_events(stage: ClaudeStage) -> None:
    silent, running = stage.session(), stage.session("$ ls")
    assert (stage.status(silent), stage.poll().data.id) == ("idle", silent)
    assert stage.poll().data.id == running
    assert stage.poll() is None


def test_an_empty_poll_is_null_with_a_json_content_type(stage: ClaudeStage) -> None:
    url = f"/v1/environments/{stage.environment_id}/work/poll"
    headers = {"authorization": f"Bearer {stage.environment_key}", **BETA}
    answer = stage.raw.get(url, headers=headers)
    assert (answer.status_code, answer.content) == (200, b"null")
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.headers["request-id"].startswith("req_")


def test_each_answer_has_one_date_which_a_knob_moves(stage: ClaudeStage) -> None:
    def ahead() -> float:
        answer = stage.raw.get("/v1/environments")  # a refusal
        (date,) = answer.headers.get_list("date")
        return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()

    assert abs(ahead()) < 100
    stage.settings(date_offset=-600)
    assert -700 < ahead() < -500


def test_a_poll_holds_until_its_time_is_over(stage: ClaudeStage) -> None:
    start = time.monotonic()
    assert stage.poll(block_ms=300) is None
    assert 0.29 <= time.monotonic() - start < 20


def test_a_held_poll_gets_an_item_the_moment_it_arrives(stage: ClaudeStage) -> None:
    found: list[tuple[Any, float]] = []
    waiter = threading.Thread(target=lambda: found.append((stage.poll(block_ms=999), time.monotonic())))
    waiter.start()
    time.sleep(0.2)
    created = time.monotonic()
    session_id = stage.session()
    waiter.join()
    assert found[0][0].data.id == session_id
    assert found[0][1] - created < 0.9  # and not when its time is over


def test_a_held_poll_whose_client_has_gone_takes_nothing(stage: ClaudeStage) -> None:
    url = f"/v1/environments/{stage.environment_id}/work/poll?block_ms=999"
    headers = {"authorization": f"Bearer {stage.environment_key}", **BETA}
    with pytest.raises(httpx2.ReadTimeout):
        stage.raw.get(url, headers=headers, timeout=0.1)
    time.sleep(0.05)
    session_id = stage.session()
    assert stage.poll().data.id == session_id


@pytest.mark.parametrize("block_ms", [0, 1000, -1])
def test_a_block_time_out_of_range_is_400(stage: ClaudeStage, block_ms: int) -> None:
    with pytest.raises(anthropic.BadRequestError, match="block_ms"):
        stage.poll(block_ms=block_ms)


def test_the_secret_is_on_the_polls_answer_alone_and_new_on_each_hand_out(stage: ClaudeStage) -> None:
    session_id = stage.session()
    first = stage.poll()
    time.sleep(0.02)
    second = stage.poll(reclaim_older_than_ms=1)
    assert first.id == second.id and first.secret != second.secret
    acknowledged = stage.worker.beta.environments.work.ack(first.id, environment_id=stage.environment_id)
    assert (acknowledged.state, acknowledged.secret) == ("starting", None)
    assert [item.secret for item in stage.items()] == [None]
    for token in (token_of(first), token_of(second)):
        assert stage.client(token).beta.sessions.retrieve(session_id).id == session_id


def test_the_secret_can_be_withheld(stage: ClaudeStage) -> None:
    stage.settings(null_secret=True)
    stage.session()
    assert stage.poll().secret is None


def test_a_lost_heartbeat_meets_412_with_the_state_the_sdk_reads(stage: ClaudeStage) -> None:
    stage.session()
    item = stage.claim()
    beat = stage.beat(item.id)
    assert (beat.state, beat.lease_extended, beat.ttl_seconds) == ("active", True, 300)
    with pytest.raises(anthropic.APIStatusError) as caught:
        stage.beat(item.id)
    assert type(caught.value).__name__ == "BetaHeartbeatPreconditionFailedError"
    assert caught.value.status_code == 412
    details = caught.value.body["error"]["details"]  # type: ignore[index]  # the SDK types it as object
    assert details["error_code"] == "heartbeat_precondition_failed"
    assert details["current_state"]["last_heartbeat"] == beat.last_heartbeat
    assert stage.beat(item.id, beat.last_heartbeat).lease_extended is True


def test_a_lapsed_lease_makes_the_item_claimable_without_a_webhook(stage: ClaudeStage) -> None:
    stage.settings(lease_ttl=0.3)
    stage.session()
    item = stage.claim()
    stage.beat(item.id)
    assert stage.poll() is None
    again = until(stage.poll, "the item is offered again")
    assert again.id == item.id
    with pytest.raises(anthropic.APIStatusError) as caught:
        stage.beat(item.id)
    assert caught.value.body["error"]["details"]["current_state"]["state"] == "queued"  # type: ignore[index]


def test_time_passes_for_an_item_and_its_creation_may_stay(stage: ClaudeStage) -> None:
    stage.session("$ ls")
    item = stage.claim()
    path = f"/_admin/work/{item.id}/age"
    before = stage.admin.post(path, json={"seconds": 0}).json()
    kept = stage.admin.post(path, json={"seconds": 5, "created": False}).json()
    assert kept["created_at"] == before["created_at"] and kept["acknowledged_at"] < before["acknowledged_at"]
    assert stage.admin.post(path, json={"seconds": 5}).json()["created_at"] < before["created_at"]
    assert stage.admin.post(path, json={"seconds": 5, "created": "no"}).status_code == 400


def test_an_item_can_be_made_to_lapse_by_hand(stage: ClaudeStage) -> None:
    stage.session()
    item = stage.claim()
    assert stage.poll(reclaim_older_than_ms=1) is None
    assert stage.admin.post(f"/_admin/work/{item.id}/lapse").json()["state"] == "queued"
    assert stage.poll().id == item.id


def test_stops_answer_200_with_the_item_however_often(stage: ClaudeStage) -> None:
    stage.session()
    item = stage.claim()
    assert stage.stop(item.id).state == "stopping"
    assert stage.stop(item.id).state == "stopping"
    assert stage.stop(item.id, force=True).state == "stopped"
    assert stage.stop(item.id, force=True).state == "stopped"


def test_the_list_is_newest_first_and_paged(stage: ClaudeStage) -> None:
    sessions = [stage.session() for _ in range(5)]
    work = stage.worker.beta.environments.work
    page = work.list(stage.environment_id, limit=2)
    assert len(page.data) == 2 and page.next_page is not None
    assert [item.data.id for item in work.list(stage.environment_id, limit=2)] == sessions[::-1]


def test_stats_over_the_wire(stage: ClaudeStage) -> None:
    for _ in range(3):
        stage.session()
    work = stage.worker.beta.environments.work
    work.poll(stage.environment_id, anthropic_worker_id="host-1")
    stats = work.stats(stage.environment_id)
    assert (stats.depth, stats.pending, stats.workers_polling) == (2, 1, 1)


def test_metadata_of_an_item_merges_and_null_deletes(stage: ClaudeStage) -> None:
    stage.session()
    work, item = stage.api.beta.environments.work, stage.poll()
    work.update(item.id, environment_id=stage.environment_id, metadata={"a": "1", "b": "2"})
    changed = work.update(item.id, environment_id=stage.environment_id, metadata={"a": None})
    assert changed.metadata == {"b": "2"}
    assert work.retrieve(item.id, environment_id=stage.environment_id).metadata == {"b": "2"}


def test_a_deleted_sessions_entry_answers_404_once_and_polling_moves_past_it(stage: ClaudeStage) -> None:
    doomed, other = stage.session(), stage.session()
    stage.api.beta.sessions.delete(doomed)
    with pytest.raises(anthropic.NotFoundError):
        stage.poll()
    assert stage.poll().data.id == other


def test_a_healthcheck_item_comes_on_request_and_ends_with_a_forced_stop(stage: ClaudeStage) -> None:
    stage.admin.post("/_admin/healthchecks", json={"environment_id": stage.environment_id})
    item = stage.claim()
    assert item.data.type == "healthcheck"
    assert stage.stop(item.id, force=True).state == "stopped"
    assert stage.poll() is None


def test_the_queue_of_a_cloud_environment(stage: ClaudeStage) -> None:
    cloud = stage.api.beta.environments.create(name="cloud", config={"type": "cloud"})
    minted = stage.admin.post("/_admin/keys/environment", json={"environment_id": cloud.id}).json()["value"]
    work = stage.client(minted).beta.environments.work
    with pytest.raises(anthropic.BadRequestError):
        work.poll(cloud.id)
    with pytest.raises(anthropic.NotFoundError):
        work.list(cloud.id)
    assert work.stats(cloud.id).workers_polling is None


def test_a_lost_poll_answer_leaves_the_item_reserved_until_the_window_is_over(stage: ClaudeStage) -> None:
    stage.session()
    stage.fault(path="/work/poll$", action="drop_after", times=1)
    with pytest.raises(anthropic.APIConnectionError):
        stage.poll()
    assert stage.poll() is None
    time.sleep(0.05)
    assert stage.poll(reclaim_older_than_ms=20) is not None


def test_a_lost_heartbeat_answer_is_a_beat_all_the_same(stage: ClaudeStage) -> None:
    stage.session()
    item = stage.claim()
    stage.fault(path="/heartbeat$", query="NO_HEARTBEAT", action="drop_after", times=1)
    with pytest.raises(anthropic.APIConnectionError):
        stage.beat(item.id)
    with pytest.raises(anthropic.APIStatusError) as caught:
        stage.beat(item.id)
    assert caught.value.body["error"]["details"]["current_state"]["state"] == "active"  # type: ignore[index]
