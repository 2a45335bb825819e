"""The functions on the servers that their users run: a webhook comes, and the session is served."""

from __future__ import annotations

import concurrent.futures

import httpx2
import pytest

from tests.faults.test_claims_under_faults import PROMPT, assert_served_once
from tests.support.serving import FRAMEWORK, SERVERS, TOKEN, UVICORN, serving, webhooks_to
from tests.support.signing import delivery, signed
from tests.support.waiting import until
from tests.support.world import Place

AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize("server", SERVERS)
def test_a_webhook_leads_to_a_served_session(place: Place, server: str) -> None:
    with serving(place, SERVERS[server]) as url, webhooks_to(place, url + "/on_run_started"):
        session = place.session(PROMPT)
        place.wait_done(session)
    assert_served_once(place, session)


def test_the_reference_integrations_path_is_the_webhooks_too(place: Place) -> None:
    with serving(place, UVICORN) as url, webhooks_to(place, url + "/"):
        session = place.session(PROMPT)
        place.wait_done(session)
    assert_served_once(place, session)


@pytest.mark.parametrize("server", SERVERS)
def test_a_tick_serves_what_no_webhook_announced(place: Place, server: str) -> None:
    with serving(place, SERVERS[server]) as url:
        session = place.session(PROMPT)
        answer = httpx2.post(f"{url}/poll_tick", headers=AUTHORIZED, timeout=60, trust_env=False)
        assert answer.status_code == 200
        (drain,) = answer.json()["drains"]
        assert [item["end"] for item in drain["items"]] == ["handed_over"]
        place.wait_done(session)
    assert_served_once(place, session)


@pytest.mark.parametrize("target", ["on_run_started", "poll_tick", "fork_best_of_n"])
def test_each_function_is_a_target_of_its_own(place: Place, target: str) -> None:
    command = [target if part == "bundle" else part for part in FRAMEWORK]
    with serving(place, [*command, "--debug"]) as url:
        answer = httpx2.post(url, content=b"{}", timeout=60, trust_env=False)
        assert answer.status_code == 401


def test_i3_the_same_webhook_ten_times_starts_one_worker(place: Place) -> None:
    with serving(place, UVICORN) as one, serving(place, FRAMEWORK) as other:
        session = place.session(PROMPT)
        body = delivery()

        def send(number: int) -> int:
            url = (one, other)[number % 2]
            return httpx2.post(url, content=body, headers=signed(body), timeout=60, trust_env=False).status_code

        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            assert set(pool.map(send, range(10))) == {200}
        place.wait_done(session)
    assert_served_once(place, session)


def test_i8_two_servers_that_both_get_every_webhook_serve_each_session_once(place: Place) -> None:
    with (
        serving(place, UVICORN) as one,
        serving(place, FRAMEWORK) as other,
        webhooks_to(place, one),
        webhooks_to(place, other),
    ):
        sessions = [place.session(PROMPT) for _ in range(5)]
        for session in sessions:
            place.wait_done(session)
    for session in sessions:
        assert len(place.items(session)) == 1
    assert len(place.sandboxes()) == 5


@pytest.mark.parametrize("server", ["uvicorn", "functions-framework under gunicorn"])
def test_wrong_requests_get_the_right_answers(place: Place, server: str) -> None:
    with serving(place, SERVERS[server]) as url, httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
        assert client.get("/poll_tick", headers=AUTHORIZED).status_code == 405
        assert client.post("/poll_tick").status_code == 401
        assert client.post("/poll_tick", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.post("/on_run_started", content=b"{}").status_code == 401
        assert client.post("/on_run_started", content=b"x" * (1024 * 1024 + 1)).status_code == 401
        assert client.post("/poll_tick", headers=AUTHORIZED, content=b"x" * (1024 * 1024 + 1)).status_code == 413
        assert client.post("/nothing/here").status_code == 404
        bad = client.post("/fork_best_of_n", headers=AUTHORIZED, content=b'{"branches": 7}')
        assert bad.status_code == 400
        assert bad.json()["error"]["field"]


def test_without_their_keys_the_endpoints_fail_closed(place: Place) -> None:
    with serving(place, UVICORN, FUNCTIONS_TOKEN="", ANTHROPIC_WEBHOOK_SIGNING_KEY="") as url:
        body = delivery()
        assert httpx2.post(url, content=body, headers=signed(body), trust_env=False).status_code == 503
        assert httpx2.post(f"{url}/poll_tick", headers=AUTHORIZED, trust_env=False).status_code == 503
        assert httpx2.post(f"{url}/fork_best_of_n", headers=AUTHORIZED, trust_env=False).status_code == 503


def test_a_server_says_when_it_is_ready(place: Place) -> None:
    with serving(place, UVICORN) as url:
        until(
            lambda: httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200, "the server did not become ready"
        )
