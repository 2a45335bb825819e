"""What the public address of a server in a sandbox shows to whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest
from starlette.testclient import TestClient

from functions.asgi import app
from shared.owner_keys import HEADER, owner_key
from tests.support.serving import TOKEN
from tests.support.signing import KEY, delivery, signed

ENVIRON = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-tensorlake-key",
    "FUNCTIONS_TOKEN": TOKEN,
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY,
}
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}
OWNER = {HEADER: owner_key("no-tensorlake-key", "status")}


@pytest.fixture(params=["in a sandbox", "on a host"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[TestClient, bool]]:
    inside = request.param == "in a sandbox"
    environ = ENVIRON | ({"SERVER_SANDBOX": "hands-server-x"} if inside else {})
    with mock.patch.dict(os.environ, environ, clear=True), TestClient(app) as client:
        yield client, inside


def test_only_the_webhook_is_open_without_a_token(place: tuple[TestClient, bool]) -> None:
    client, inside = place
    for path in ("/healthz", "/readyz"):
        answers = client.get(path).status_code, client.get(path, headers=AUTHORIZED).status_code
        assert (answers[0] == 401) == inside and answers[1] in (200, 503)
    assert client.get("/status").status_code == 401
    for path in ("/poll_tick", "/fork_best_of_n"):
        assert client.post(path, json={}).status_code == 401
    body = delivery("session.status_idled")
    assert client.post("/", content=body, headers=signed(body)).json() == {"ignored": "session.status_idled"}


def test_the_owners_keys_open_what_tells_and_nothing_that_acts(place: tuple[TestClient, bool]) -> None:
    client, inside = place
    health = f"/healthz?key={owner_key('no-tensorlake-key', 'health')}"
    assert client.get(health).status_code == 200
    assert client.get("/status", headers=OWNER).json()["sandbox"] == ("hands-server-x" if inside else "")
    assert client.get(f"/status?key={OWNER[HEADER]}").status_code == 401  # never in a URL
    assert client.get("/status", headers={HEADER: owner_key("no-tensorlake-key", "health")}).status_code == 401
    assert client.post("/poll_tick", headers=OWNER).status_code == 401
    wrong = client.get("/healthz?key=wrong", headers={HEADER.encode(): "\u00e9".encode()})
    assert wrong.status_code == (401 if inside else 200)


def test_status_counts_strangers(place: tuple[TestClient, bool]) -> None:
    client, _ = place
    for path in ("/", "/.env", "/wp-login.php"):
        assert client.post(path, content=b"x").status_code in (401, 404)
    report = client.get("/status", headers=OWNER).json()
    assert report["visits"]["strangers"]["count"] == 3
    assert report["visits"]["webhooks"] == {"count": 0, "last_at": None}
    assert report["webhooks_open"] is True and report["own_ticks"] == {"count": 0, "failed": 0}
