"""`python -m infra.local.claude`: options, ready line, admin knobs."""

from __future__ import annotations

import base64
from pathlib import Path

import anthropic
import httpx2
import pytest

from tests.infra.local.claude.conftest import ClaudeStage, message
from tests.support.preloaded import forked_run, forked_service
from tests.support.waiting import until

KEYS = {
    "LOCAL_CLAUDE_API_KEY": "sk-ant-api03-fake",
    "LOCAL_CLAUDE_ENVIRONMENT_KEY": "sk-ant-oat01-fake",
    "LOCAL_CLAUDE_SIGNING_KEY": "whsec_" + base64.b64encode(b"fake key, fake key, fake key").decode(),
}

CONFIG = """
settings: {lease_ttl: 7, ping_interval: 1}
latency: [{path: /v1/agents, seconds: 0.01}]
faults: [{path: /v1/agents, action: status, status: 529, times: 1}]
script: {turns: [{rounds: [{say: from the file}]}]}
"""


def test_one_command_makes_everything_a_demo_needs(tmp_path: Path) -> None:
    config = tmp_path / "local.yaml"
    config.write_text(CONFIG)
    args = ["--config", str(config), "--environment-id", "env_demo", "--agent-id", "agent_demo"]
    args += ["--webhook-url", "http://127.0.0.1:9/hook", "--lease-ttl", "3"]
    with forked_service("infra.local.claude", args, KEYS) as service:
        assert (service.ready["environment_id"], service.ready["agent_id"]) == ("env_demo", "agent_demo")
        client = anthropic.Anthropic(api_key=KEYS["LOCAL_CLAUDE_API_KEY"], base_url=service.url, max_retries=0)
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.beta.agents.retrieve("agent_demo")
        assert caught.value.status_code == 529
        assert client.beta.agents.retrieve("agent_demo").id == "agent_demo"
        session = client.beta.sessions.create(
            agent="agent_demo", environment_id="env_demo", initial_events=[message("hello")]
        )
        events = client.beta.sessions.events
        until(lambda: list(events.list(session.id, types=["agent.message"])), "the brain has spoken")
        [said] = events.list(session.id, types=["agent.message"])
        assert said.to_dict()["content"] == [{"type": "text", "text": "from the file"}]
        worker = client.copy(auth_token=KEYS["LOCAL_CLAUDE_ENVIRONMENT_KEY"], api_key=None)
        assert worker.beta.environments.work.poll("env_demo") is not None
        admin = {"X-Admin-Token": service.admin_token}
        assert httpx2.get(f"{service.url}/_admin/settings", headers=admin).json()["lease_ttl"] == 3
        [endpoint] = httpx2.get(f"{service.url}/_admin/webhooks", headers=admin).json()["data"]
        assert endpoint["types"] == ["session.status_run_started"]
    assert service.returncode == 0
    assert service.stderr_tail() == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--brain", "nowhere:Brain"], "no brain at"),
        (["--lease-ttl", "-1"], "lease_ttl"),
        (["--webhook-url", "http://127.0.0.1:9/"], "LOCAL_CLAUDE_SIGNING_KEY"),
        (["--script", "/does/not/exist.yaml"], "/does/not/exist.yaml"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(args: list[str], words: str) -> None:
    done = forked_run(["-m", "infra.local.claude", *args])
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_settings_are_checked_all_or_nothing(stage: ClaudeStage) -> None:
    answer = stage.admin.patch("/_admin/settings", json={"lease_ttl": 5, "ping_interval": -1})
    assert answer.status_code == 400 and "ping_interval" in answer.text
    assert stage.admin.get("/_admin/settings").json()["lease_ttl"] == 300.0
    assert stage.admin.patch("/_admin/settings", json={"lease_tll": 5}).status_code == 400


def test_requests_are_counted_by_route_dropped_ones_too(stage: ClaudeStage) -> None:
    stage.admin.delete("/_admin/requests")
    stage.session()
    stage.fault(path="/ack$", action="drop_before", times=1)
    item = stage.poll()
    with pytest.raises(anthropic.APIConnectionError):
        stage.worker.beta.environments.work.ack(item.id, environment_id=stage.environment_id)
    log = stage.admin.get("/_admin/requests").json()
    assert log["counts"] == {
        "POST /v1/sessions": 1,
        "GET /v1/environments/{env}/work/poll": 1,
        "POST /v1/environments/{env}/work/{work}/ack": 1,
    }
    assert [entry["status"] for entry in log["recent"]] == [200, 200, None]


def test_injected_errors_wear_the_services_envelope(stage: ClaudeStage) -> None:
    stage.fault(path="/v1/agents", action="status", status=429, headers={"retry-after": "3"}, times=1)
    with pytest.raises(anthropic.RateLimitError) as caught:
        stage.api.beta.agents.list()
    assert caught.value.response.headers["retry-after"] == "3"
    assert caught.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]  # the SDK types it as object


def test_the_script_of_a_running_service_can_be_replaced(stage: ClaudeStage) -> None:
    try:
        answer = stage.admin.put("/_admin/script", content="turns: [{when: magic, rounds: [{say: abracadabra}]}]")
        assert answer.status_code == 200
        session_id = stage.session("magic please")
        stage.until_idle(session_id)
        assert stage.said(session_id) == ["abracadabra"]
        assert stage.admin.put("/_admin/script", content="turns: 7").status_code == 400
    finally:
        stage.admin.put("/_admin/script", content="turns: []")


def test_bad_bodies_are_400_and_unknown_routes_404(stage: ClaudeStage) -> None:
    headers = {"x-api-key": KEYS["LOCAL_CLAUDE_API_KEY"] + "-for-tests", "anthropic-beta": "managed-agents-2026-04-01"}
    for content in (b"{", b"[1]", b"\xff"):
        answer = stage.raw.post("/v1/sessions", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert stage.raw.get("/v1/nothing", headers=headers).json()["error"]["type"] == "not_found_error"
    assert stage.raw.put("/v1/sessions", headers=headers).status_code == 405
