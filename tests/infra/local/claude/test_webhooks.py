"""The webhook sender against a receiver on a real socket (docs/wire/anthropic.md#9-webhooks)."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import pytest
from standardwebhooks import Webhook

from tests.infra.local.claude.conftest import ClaudeStage, message
from tests.support.waiting import until

SIGNING_KEY = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
RUN_STARTED = "session.status_run_started"


class WebhookReceiver(ThreadingHTTPServer):
    """Keeps what arrived; answers with the next of `statuses`, then 200, as long as it may `go`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ReceivingHandler)
        self.statuses: list[int] = []
        self.arrived: list[tuple[dict[str, str], bytes]] = []
        self.go = threading.Event()
        self.go.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        bodies = [json.loads(body) for _, body in self.arrived]
        return [body for body in bodies if kind is None or body["data"]["type"] == kind]


class _ReceivingHandler(BaseHTTPRequestHandler):
    server: WebhookReceiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.go.wait(5)
        self.server.arrived.append((dict(self.headers.items()), body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("location", "http://127.0.0.1:1/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def receiver(stage: ClaudeStage) -> Iterator[WebhookReceiver]:
    server = WebhookReceiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    stage.settings(webhook_backoff_scale=0.0)
    try:
        yield server
    finally:
        server.go.set()
        for endpoint in stage.admin.get("/_admin/webhooks").json()["data"]:
            stage.admin.delete(f"/_admin/webhooks/{endpoint['id']}")
        server.shutdown()
        server.server_close()
        thread.join(5)


def subscribe(stage: ClaudeStage, receiver: WebhookReceiver, *types: str) -> str:
    body = {"url": receiver.url, "signing_key": SIGNING_KEY, "types": list(types) or None}
    answer = stage.admin.post("/_admin/webhooks", json=body)
    assert answer.status_code == 201, answer.text
    identifier: str = answer.json()["id"]
    return identifier


def deliveries(stage: ClaudeStage, session_id: str) -> list[dict[str, Any]]:
    everything = stage.admin.get("/_admin/state").json()["deliveries"]
    return [delivery for delivery in everything if delivery["session_id"] == session_id]


def settled(stage: ClaudeStage, session_id: str) -> list[dict[str, Any]]:
    """The session's deliveries once none is pending."""

    def look() -> list[dict[str, Any]]:
        found = deliveries(stage, session_id)
        return [] if any(delivery["outcome"] == "pending" for delivery in found) else found

    return list(until(look, "all deliveries are settled"))


def test_a_delivery_is_thin_signed_and_accepted_by_the_sdk(stage: ClaudeStage, receiver: WebhookReceiver) -> None:
    subscribe(stage, receiver, RUN_STARTED)
    session_id = stage.session("hello")
    until(lambda: receiver.arrived, "a delivery")
    headers, raw = receiver.arrived[0]
    event = stage.api.beta.webhooks.unwrap(raw.decode(), headers=headers, key=SIGNING_KEY)
    assert (event.data.type, event.data.id) == (RUN_STARTED, session_id)
    body = json.loads(raw)
    assert set(body) == {"type", "id", "created_at", "data"}
    assert set(body["data"]) == {"type", "id", "organization_id", "workspace_id"}
    lowered = {name.lower(): value for name, value in headers.items()}
    assert lowered["webhook-id"] == body["id"]
    with pytest.raises(Exception, match="signature"):
        Webhook("whsec_" + base64.b64encode(b"another key").decode()).verify(raw, headers)


def test_every_transition_to_running_is_announced_and_the_item_is_there_by_then(
    stage: ClaudeStage, receiver: WebhookReceiver
) -> None:
    subscribe(stage, receiver, RUN_STARTED)
    session_id = stage.session("$ one\n$ two")
    for _ in range(2):
        [call] = stage.until_idle(session_id, "requires_action").stop_reason.event_ids
        stage.send(session_id, stage.answer(call))
        until(lambda: stage.types(session_id)[-1] == "session.status_idle", "parked again or done")
    stage.until_idle(session_id)
    until(lambda: len(receiver.events()) == 3, "three run-started events")
    assert len({event["id"] for event in receiver.events()}) == 3
    assert stage.poll().data.id == session_id


def test_the_other_types_follow_the_sessions_life(stage: ClaudeStage, receiver: WebhookReceiver) -> None:
    subscribe(stage, receiver)
    session_id = stage.session("hello")
    stage.until_idle(session_id)
    stage.api.beta.sessions.update(session_id, title="t")
    stage.api.beta.sessions.archive(session_id)
    stage.api.beta.sessions.delete(session_id)
    until(lambda: len(receiver.events()) == 6, "six events")
    kinds = sorted(event["data"]["type"] for event in receiver.events())
    assert kinds == [
        "session.deleted",
        "session.status_idled",
        "session.status_run_started",
        "session.status_terminated",
        "session.thread_idled",
        "session.updated",
    ]
    assert receiver.events("session.thread_idled")[0]["data"]["session_thread_id"].startswith("sthr_")


def test_a_failing_endpoint_gets_three_attempts_and_then_the_event_is_dropped(
    stage: ClaudeStage, receiver: WebhookReceiver
) -> None:
    receiver.statuses = [500, 503, 500]
    subscribe(stage, receiver, RUN_STARTED)
    [delivery] = settled(stage, stage.session("hello"))
    assert [attempt["status"] for attempt in delivery["attempts"]] == [500, 503, 500]
    assert delivery["outcome"] == "dropped"
    assert len({json.loads(body)["id"] for _, body in receiver.arrived}) == 1


def test_an_attempt_that_succeeds_ends_the_retries(stage: ClaudeStage, receiver: WebhookReceiver) -> None:
    receiver.statuses = [500]
    subscribe(stage, receiver, RUN_STARTED)
    [delivery] = settled(stage, stage.session("hello"))
    assert ([attempt["status"] for attempt in delivery["attempts"]], delivery["outcome"]) == ([500, 200], "delivered")


def test_an_endpoint_that_is_not_there_is_an_error_in_the_log(stage: ClaudeStage, receiver: WebhookReceiver) -> None:
    body = {"url": "http://127.0.0.1:9/hook", "signing_key": SIGNING_KEY}
    stage.admin.post("/_admin/webhooks", json={**body, "types": [RUN_STARTED]})
    [delivery] = settled(stage, stage.session("hello"))
    assert delivery["outcome"] == "dropped"
    assert "ConnectError" in delivery["attempts"][0]["error"]


def test_a_redirect_disables_the_endpoint_until_it_is_enabled_and_nothing_is_replayed(
    stage: ClaudeStage, receiver: WebhookReceiver
) -> None:
    receiver.statuses = [302]
    endpoint = subscribe(stage, receiver, RUN_STARTED)
    [delivery] = settled(stage, stage.session("hello"))
    assert (len(delivery["attempts"]), delivery["outcome"]) == (1, "endpoint disabled")
    assert deliveries(stage, stage.session("hello")) == []
    assert stage.admin.post(f"/_admin/webhooks/{endpoint}/enable").status_code == 200
    [delivery] = settled(stage, stage.session("hello"))
    assert delivery["outcome"] == "delivered"
    assert len(receiver.arrived) == 2


def test_uninterrupted_failure_disables_the_endpoint_when_that_is_switched_on(
    stage: ClaudeStage, receiver: WebhookReceiver
) -> None:
    stage.settings(webhook_disable_after=0.001)
    receiver.statuses = [500, 500, 500]
    subscribe(stage, receiver, RUN_STARTED)
    [delivery] = settled(stage, stage.session("hello"))
    assert delivery["outcome"] == "endpoint disabled"


def test_duplicates_carry_the_same_id(stage: ClaudeStage, receiver: WebhookReceiver) -> None:
    stage.settings(webhook_duplicates=2.0)
    subscribe(stage, receiver, RUN_STARTED)
    assert len(settled(stage, stage.session("hello"))) == 3
    assert len({event["id"] for event in receiver.events()}) == 1


def test_events_can_be_dropped_and_reordered(stage: ClaudeStage, receiver: WebhookReceiver) -> None:
    subscribe(stage, receiver, RUN_STARTED)
    stage.settings(webhook_drop=1.0)
    assert deliveries(stage, stage.session("hello")) == []
    stage.settings(webhook_drop=0.0, webhook_reorder_window=0.3)
    sessions = [stage.session("hello") for _ in range(12)]
    until(lambda: len(receiver.events()) == 12, "all have arrived")
    arrived = [event["data"]["id"] for event in receiver.events()]
    assert sorted(arrived) == sorted(sessions)
    assert arrived != sessions


def test_the_api_does_not_wait_for_a_slow_endpoint(stage: ClaudeStage, receiver: WebhookReceiver) -> None:
    receiver.go.clear()
    subscribe(stage, receiver, RUN_STARTED)
    session_id = stage.session("hello")
    stage.until_idle(session_id)
    stage.send(session_id, message("again"))
    stage.until_idle(session_id)
    assert [delivery["outcome"] for delivery in deliveries(stage, session_id)] == ["pending", "pending"]
    receiver.go.set()
    assert {delivery["outcome"] for delivery in settled(stage, session_id)} == {"delivered"}


@pytest.mark.parametrize(
    "body", [{"url": "ftp://x", "signing_key": SIGNING_KEY}, {"url": "http://x/", "signing_key": "whsec_"}]
)
def test_an_endpoint_that_cannot_work_is_refused(stage: ClaudeStage, body: dict[str, str]) -> None:
    answer = stage.admin.post("/_admin/webhooks", json=body)
    assert answer.status_code == 400
    assert SIGNING_KEY not in answer.text


def test_a_work_item_makes_no_webhook_of_its_own(stage: ClaudeStage, receiver: WebhookReceiver) -> None:
    subscribe(stage, receiver)
    session_id = stage.session()
    item = stage.claim()
    stage.beat(item.id)
    stage.stop(item.id, force=True)
    with pytest.raises(anthropic.NotFoundError):
        stage.worker.beta.environments.work.ack("work_nowhere", environment_id=stage.environment_id)
    assert deliveries(stage, session_id) == []
