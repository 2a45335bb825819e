"""Table 1.2: every kind of credential against every group of routes."""

from __future__ import annotations

from dataclasses import dataclass

import httpx2
import pytest

from infra.local.claude.clock import ManualClock
from infra.local.claude.credentials import Keyring, SessionsToken
from infra.local.claude.errors import ClaudeApiError
from tests.infra.local.claude.conftest import API_KEY, BETA, ClaudeStage
from tests.infra.local.claude.test_work_api import token_of


@dataclass
class Cast:
    """A session with a started item, and who may call on it."""

    stage: ClaudeStage
    session_id: str
    work_id: str
    tokens: dict[str, str]

    def call(self, who: str, method: str, path: str, json: object = None) -> httpx2.Response:
        url = path.format(
            env=self.stage.environment_id, work=self.work_id, session=self.session_id, agent=self.stage.agent_id
        )
        headers = {"authorization": f"Bearer {self.tokens[who]}", **BETA}
        return self.stage.raw.request(method, url, headers=headers, json=json)


@pytest.fixture
def cast(stage: ClaudeStage) -> Cast:
    other_environment, other_key = stage.another_environment()
    session_id = stage.session()
    item = stage.claim()
    other_session = stage.api.beta.sessions.create(agent=stage.agent_id, environment_id=other_environment)
    other_item = stage.client(other_key).beta.environments.work.poll(other_environment)
    assert other_item is not None and other_item.data.id == other_session.id
    revoked = stage.admin.post("/_admin/keys/environment", json={"environment_id": stage.environment_id})
    stage.admin.request("DELETE", "/_admin/keys", json={"value": revoked.json()["value"]})
    tokens = {
        "api": API_KEY,
        "env": stage.environment_key,
        "item": token_of(item),
        "other env": other_key,
        "other item": token_of(other_item),
        "revoked": revoked.json()["value"],
        "unknown": "sk-ant-oat01-never-issued",
    }
    return Cast(stage, session_id, item.id, tokens)


ROWS = [
    # method, path, api, env, item, other env, other item
    ("GET", "/v1/agents", 200, 401, 401, 401, 401),
    ("GET", "/v1/agents/{agent}", 200, 401, 401, 401, 401),
    ("GET", "/v1/environments", 200, 401, 401, 401, 401),
    ("GET", "/v1/environments/{env}", 200, 401, 401, 401, 401),
    ("GET", "/v1/sessions", 200, 401, 401, 401, 401),
    ("GET", "/v1/sessions/{session}", 200, 200, 200, 404, 404),
    ("GET", "/v1/sessions/{session}/events", 200, 200, 200, 404, 404),
    ("GET", "/v1/sessions/{session}/threads", 200, 200, 200, 404, 404),
    ("POST", "/v1/sessions/{session}", 200, 403, 403, 403, 403),
    ("GET", "/v1/environments/{env}/work/poll", 403, 200, 403, 403, 403),
    ("GET", "/v1/environments/{env}/work", 200, 200, 403, 403, 403),
    ("GET", "/v1/environments/{env}/work/stats", 200, 200, 403, 403, 403),
    ("GET", "/v1/environments/{env}/work/{work}", 200, 403, 403, 403, 403),
    ("POST", "/v1/environments/{env}/work/{work}/ack", 403, 200, 403, 403, 403),
    ("POST", "/v1/environments/{env}/work/{work}/stop", 200, 200, 200, 403, 403),
    ("DELETE", "/v1/sessions/{session}", 200, 401, 401, 401, 401),
]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]} {row[1]}" for row in ROWS])
def test_who_may_call_what(cast: Cast, row: tuple[str, str, int, int, int, int, int]) -> None:
    method, path, *expected = row
    for who, status in zip(("api", "env", "item", "other env", "other item"), expected, strict=True):
        if who == "api" and method == "DELETE":
            continue
        assert (who, cast.call(who, method, path).status_code) == (who, status)
    for who in ("revoked", "unknown"):
        assert (who, cast.call(who, method, path).status_code) == (who, 401)


def test_heartbeats_are_for_environment_keys_and_the_items_own_token(cast: Cast) -> None:
    path = "/v1/environments/{env}/work/{work}/heartbeat?expected_last_heartbeat="
    first = cast.call("item", "POST", path + "NO_HEARTBEAT")
    assert first.status_code == 200
    assert cast.call("env", "POST", path + first.json()["last_heartbeat"]).status_code == 200
    for who in ("api", "other env", "other item"):
        assert (who, cast.call(who, "POST", path + "NO_HEARTBEAT").status_code) == (who, 403)


def test_a_revoked_key_is_told_so_without_a_request_id_in_the_body(cast: Cast) -> None:
    answer = cast.call("revoked", "GET", "/v1/environments/{env}/work/poll")
    body = answer.json()
    assert (body["error"]["type"], body["request_id"]) == ("authentication_error", None)
    assert "revoked" in body["error"]["message"]


def test_an_x_api_key_header_counts_as_well_and_none_is_401(stage: ClaudeStage) -> None:
    url = "/v1/agents"
    assert stage.raw.get(url, headers={"x-api-key": API_KEY, **BETA}).status_code == 200
    assert stage.raw.get(url, headers=BETA).status_code == 401


def test_without_the_beta_header_the_routes_are_not_there(stage: ClaudeStage) -> None:
    url, headers = "/v1/agents", {"x-api-key": API_KEY}
    assert stage.raw.get(url, headers=headers).status_code == 404
    stage.settings(require_beta_header=False)
    assert stage.raw.get(url, headers=headers).status_code == 200


def test_tokens_can_expire_at_once_and_end_with_their_item_after_the_grace(cast: Cast) -> None:
    assert cast.call("item", "GET", "/v1/sessions/{session}").status_code == 200
    cast.stage.settings(token_grace=0)
    cast.stage.stop(cast.work_id, force=True)
    assert cast.call("item", "GET", "/v1/sessions/{session}").status_code == 401
    assert cast.stage.admin.post("/_admin/tokens/expire").json()["expired"] >= 1
    assert cast.call("other item", "GET", "/v1/sessions/{session}").status_code == 401


def test_the_envelope_repeats_the_request_id_of_the_header(stage: ClaudeStage) -> None:
    headers = {"x-api-key": API_KEY, **BETA}
    answer = stage.raw.get("/v1/sessions/sesn_nowhere", headers=headers)
    assert answer.status_code == 404
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "not_found_error"
    assert answer.json()["request_id"] == answer.headers["request-id"]


def test_the_admin_api_wants_its_token(stage: ClaudeStage) -> None:
    url = "/_admin/state"
    assert stage.raw.get(url).status_code == 403
    assert stage.raw.get(url, headers={"X-Admin-Token": "guess"}).status_code == 403
    state = stage.admin.get("/_admin/state")
    assert state.status_code == 200
    for secret in (API_KEY, stage.environment_key, stage.service.admin_token):
        assert secret not in state.text


def test_the_admins_state_may_be_that_of_one_session(stage: ClaudeStage) -> None:
    one, _ = stage.session("hello"), stage.session("hello")
    state = stage.admin.get(f"/_admin/state?session={one}").json()
    assert [session["id"] for session in state["sessions"]] == [one]
    assert [item["data"]["id"] for item in state["items"]] == [one]


def test_a_sessions_token_can_have_a_lifetime_of_its_own() -> None:
    clock = ManualClock()
    keyring = Keyring(clock)
    principal = SessionsToken("env_1", "work_1", "sesn_1")
    short, long = keyring.mint_token(principal, 10.0), keyring.mint_token(principal, None)
    clock.advance(10.0)
    with pytest.raises(ClaudeApiError) as caught:
        keyring.classify({"authorization": f"Bearer {short}"})
    assert (caught.value.status, short in str(caught.value)) == (401, False)
    assert keyring.classify({"authorization": f"Bearer {long}"}) == principal
    keyring.retire_tokens("work_1", grace=5.0)
    clock.advance(4.0)
    assert keyring.classify({"authorization": f"Bearer {long}"}) == principal
    clock.advance(1.0)
    with pytest.raises(ClaudeApiError):
        keyring.classify({"authorization": f"Bearer {long}"})
