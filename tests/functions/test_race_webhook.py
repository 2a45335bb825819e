"""on_finish: who may ask for it, where it may go, and what is told."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final

import pytest
from standardwebhooks import Webhook
from starlette.testclient import TestClient

from functions import race_webhook
from shared.secret import Secret
from tests.functions.test_agent_auth import RACE, SESSION
from tests.functions.test_race_wishes import OPERATOR, agent, post, served
from tests.support.waiting import until

KEY: Final = "whsec_" + base64.b64encode(b"a key of nobody at all, 32 bytes").decode()
OPERATORS: Final = {**RACE, "source": {"session_id": SESSION}}


class FinishReceiver:
    """Takes deliveries, and answers with these statuses, then 204."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        left = list(statuses)
        got = self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status = left.pop(0) if left else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{self.place}/told?token=SECRET-IN-ADDRESS"


@pytest.fixture
def receiver() -> Iterator[FinishReceiver]:
    made = FinishReceiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def told_of(http: TestClient, receiver: FinishReceiver, **more: Any) -> dict[str, Any]:
    answer = post(http, OPERATOR, {**OPERATORS, "on_finish": receiver.url, **more})
    assert answer.status_code == 200, answer.text
    until(lambda: receiver.got, "nobody was told")
    headers, body = receiver.got[-1]
    said: dict[str, Any] = Webhook(KEY).verify(body, headers)
    assert headers["webhook-id"] == f"race_{said['data']['race_id']}"
    assert said["data"]["race_id"] == answer.json()["race_id"]
    return said


def test_the_end_of_a_race_is_told_with_a_signature(receiver: FinishReceiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "functions")
    with served(RACE_WEBHOOK_SIGNING_KEY=KEY, RACE_WEBHOOK_HOSTS=receiver.place) as http:
        said = told_of(http, receiver)
        until(lambda: "race.told" in caplog.text)
    assert (said["type"], said["data"]["state"], said["data"]["score"]) == ("race.finished", "finished", 1.0)
    assert said["data"]["winner"] in ("b0", "b1")
    assert KEY not in caplog.text and "SECRET-IN-ADDRESS" not in caplog.text


def test_whoever_is_told_can_read_the_report_back(receiver: FinishReceiver) -> None:
    with served(RACE_WEBHOOK_SIGNING_KEY=KEY, RACE_WEBHOOK_HOSTS=receiver.place) as http:
        body = {**OPERATORS, "on_finish": receiver.url}
        race_id = post(http, OPERATOR, body, prefer="respond-async").json()["race_id"]
        until(lambda: receiver.got, "nobody was told")
        now = http.get(f"/fork_best_of_n/{race_id}", headers=OPERATOR).json()
    assert (now["state"], now["report"]["race_id"]) == ("finished", race_id)


def deliver(receiver: FinishReceiver) -> bool:
    return asyncio.run(race_webhook.tell(receiver.url, "abc", {"state": "finished"}, Secret("KEY", KEY)))


def test_a_delivery_is_tried_again_a_few_times_and_follows_no_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_webhook, "FIRST_PAUSE", 0.01)
    for statuses, taken, calls in (
        ([500, 503, 429], True, 4),
        ([500] * 9, False, race_webhook.ATTEMPTS),
        ([410], False, 1),
        ([302], False, 1),
    ):
        receiver = FinishReceiver(*statuses)
        assert deliver(receiver) is taken
        assert len(receiver.got) == calls
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
        receiver.server.shutdown()
        receiver.server.server_close()


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/x",
        "http://listed.example/x",
        "https://listed.example:8443/x",
        "https://listed.example.evil.example/x",
        "https://evil.example/?https://listed.example/",
        "https://user@listed.example/x",
        "https://listed.example@evil.example/",
        "https://listed.example#@evil.example/",
        "https://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:80/x",
        "http://[::1]/x",
        "file:///etc/passwd",
        "gopher://listed.example/",
        "https://listed.example/\r\nx: y",
        "https://",
        "https://listed.example:99999/",
    ],
)
def test_what_the_operator_has_not_listed_is_refused_before_anything_is_made(url: str) -> None:
    with served(RACE_WEBHOOK_SIGNING_KEY=KEY, RACE_WEBHOOK_HOSTS="listed.example 127.0.0.1:9") as http:
        answer = post(http, OPERATOR, {**OPERATORS, "on_finish": url})
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "on_finish")
    assert "169.254" not in answer.text


def test_an_agent_may_not_and_without_settings_nobody_may() -> None:
    with served(RACE_WEBHOOK_SIGNING_KEY=KEY, RACE_WEBHOOK_HOSTS="listed.example") as http:
        agents = post(http, agent(), {**RACE, "on_finish": "https://listed.example/"})
        dry = post(http, OPERATOR, {**OPERATORS, "on_finish": "https://listed.example/", "dry_run": True})
    with served() as http:
        unset = post(http, OPERATOR, {**OPERATORS, "on_finish": "https://listed.example/"})
    with served(RACE_WEBHOOK_SIGNING_KEY="no-key!", RACE_WEBHOOK_HOSTS="listed.example") as http:
        wrong = post(http, OPERATOR, {**OPERATORS, "on_finish": "https://listed.example/"})
    assert (agents.status_code, agents.json()["error"]["field"]) == (403, "on_finish")
    assert dry.status_code == 200
    assert (unset.status_code, unset.json()["error"]["field"]) == (400, "on_finish")
    assert wrong.status_code == 503 and "RACE_WEBHOOK_SIGNING_KEY" in wrong.text and "no-key!" not in wrong.text
    assert json.loads(unset.text)["error"]["message"].count("RACE_WEBHOOK") == 2
