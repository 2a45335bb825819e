"""The webhook's answers: who may wake us, and what an unauthenticated caller sees."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from functions.on_run_started import on_run_started
from functions.state import STATE, FunctionsState
from shared.service import Service
from shared.settings import Settings
from tests.support.signing import KEY, OTHER_KEY, delivery, signed

# Port 9 of this machine answers nobody: a drain of this bundle ends as unavailable.
ENVIRON = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "not-a-real-environment-key",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    "TENSORLAKE_API_KEY": "not-a-real-tensorlake-key",
    "TENSORLAKE_API_URL": "http://127.0.0.1:9",
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY,
}


@contextlib.contextmanager
def serving(environ: Mapping[str, str]) -> Iterator[TestClient]:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
        state = FunctionsState(Service(Settings.from_environ(environ)), background=False)
        yield {STATE: state}
        await state.service.aclose()

    app = Starlette(routes=[Route("/", on_run_started, methods=["GET", "POST"])], lifespan=lifespan)
    with TestClient(app) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with serving(ENVIRON) as client:
        yield client


def test_a_signed_delivery_is_answered_200_even_when_the_drain_can_reach_nobody(client: TestClient) -> None:
    body = delivery()
    answer = client.post("/", content=body, headers=signed(body))
    assert answer.status_code == 200
    (drain,) = answer.json()["drains"]
    assert drain["end"] == "unavailable"
    assert drain["items"] == []


def test_an_event_of_another_type_is_ignored_with_200(client: TestClient) -> None:
    body = delivery("session.updated")
    answer = client.post("/", content=body, headers=signed(body))
    assert (answer.status_code, answer.json()) == (200, {"ignored": "session.updated"})


def test_a_rotated_key_may_sign_beside_the_old_one() -> None:
    body = delivery("agent.updated")
    with serving(ENVIRON | {"ANTHROPIC_WEBHOOK_SIGNING_KEY": f"{OTHER_KEY},{KEY}"}) as client:
        for key in (KEY, OTHER_KEY):
            assert client.post("/", content=body, headers=signed(body, key)).status_code == 200


def test_a_second_signature_that_is_garbage_does_not_spoil_the_first(client: TestClient) -> None:
    body = delivery("agent.updated")
    headers = signed(body)
    headers["webhook-signature"] = "garbage " + headers["webhook-signature"]
    assert client.post("/", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("age", [400.0, -400.0])
def test_a_delivery_outside_the_five_minutes_is_refused(client: TestClient, age: float) -> None:
    body = delivery()
    assert client.post("/", content=body, headers=signed(body, age=age)).status_code == 401


def test_a_wrong_key_a_changed_body_and_missing_headers_are_refused(client: TestClient) -> None:
    body = delivery()
    assert client.post("/", content=body, headers=signed(body, OTHER_KEY)).status_code == 401
    assert client.post("/", content=body + b" ", headers=signed(body)).status_code == 401
    assert client.post("/", content=body).status_code == 401


@given(
    body=st.binary(max_size=200),
    signature=st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=60),
    stamp=st.sampled_from(["", "0", "nan", "1e999", "-1", "99999999999999999999", "abc"]),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
def test_nothing_that_a_stranger_sends_makes_an_error_of_ours(
    client: TestClient, body: bytes, signature: str, stamp: str
) -> None:
    headers = [
        (b"webhook-id", b"x"),
        (b"webhook-timestamp", stamp.encode()),
        (b"webhook-signature", signature.encode("latin-1")),
    ]
    assert client.post("/", content=body, headers=headers).status_code == 401


@pytest.mark.parametrize("body", [b"not json", b"[]", b"{}", b'{"data": 1}', b'{"data": {"type": 7}}', b"[" * 60_000])
def test_a_signed_body_that_is_no_event_is_answered_400(client: TestClient, body: bytes) -> None:
    answer = client.post("/", content=body, headers=signed(body))
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request"


def test_a_body_of_more_than_64_kib_is_answered_413_however_it_is_signed(client: TestClient) -> None:
    body = b"x" * (64 * 1024 + 1)
    assert client.post("/", content=body, headers=signed(body)).status_code == 413


def test_what_cannot_be_signed_is_refused_whatever_its_body_is(client: TestClient) -> None:
    whole = signed(b"")
    for headers in (
        {},
        whole | {"webhook-id": ""},
        whole | {"webhook-signature": "v2,x"},
        whole | {"webhook-timestamp": "soon"},
        signed(b"", age=301),
        signed(b"", age=-302),
    ):
        answer = client.post("/", content=b"x" * (2 * 1024 * 1024), headers=headers)
        assert answer.status_code == 401


def test_a_delivery_that_comes_again_does_nothing(client: TestClient) -> None:
    body = delivery("session.updated")
    headers = signed(body, delivery_id="whe_again")
    assert client.post("/", content=body, headers=headers).json() == {"ignored": "session.updated"}
    assert client.post("/", content=body, headers=headers).json() == {"ignored": "repeated"}
    assert client.post("/", content=body, headers=signed(body)).json() == {"ignored": "session.updated"}


def test_an_id_that_nobody_signed_keeps_no_delivery_out(client: TestClient) -> None:
    body = delivery("session.updated")
    forged = signed(body, OTHER_KEY, delivery_id="whe_guessed")
    assert client.post("/", content=body, headers=forged).status_code == 401
    assert client.post("/", content=body, headers=signed(body, delivery_id="whe_guessed")).status_code == 200


@pytest.mark.parametrize("age, word", [(720, "seconds_old=720"), (-725, "seconds_ahead=725")])
def test_a_stale_delivery_is_told_in_the_log_once_a_minute_since_the_clock_may_be_off(
    caplog: pytest.LogCaptureFixture, age: int, word: str
) -> None:
    body = delivery()
    with serving(ENVIRON) as client:
        for _ in range(50):
            assert client.post("/", content=body, headers=signed(body, age=age)).status_code == 401
    said = [each.getMessage() for each in caplog.records if each.getMessage().startswith("webhook.stale")]
    assert len(said) == 1 and "clock" in said[0]
    assert word[:-1] in said[0]


def test_another_method_is_answered_405(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("key", ["", "whsec_not+base64!", "whsec_", "file:/nowhere/key"])
def test_without_a_usable_signing_key_the_endpoint_fails_closed(key: str) -> None:
    body = delivery()
    with serving(ENVIRON | {"ANTHROPIC_WEBHOOK_SIGNING_KEY": key}) as client:
        answer = client.post("/", content=body, headers=signed(body))
    assert answer.status_code == 503
    assert "ANTHROPIC_WEBHOOK_SIGNING_KEY" in answer.json()["error"]["message"]
