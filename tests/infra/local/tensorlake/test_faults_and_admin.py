"""Faults against the real SDK's retries, and the admin routes."""

from __future__ import annotations

import time

import httpx2
import pytest
from tensorlake.sandbox import Sandbox
from tensorlake.sandbox.exceptions import RemoteAPIError, SandboxError

from tests.infra.local.tensorlake.conftest import KEY, TensorlakeStage
from tests.support.admin import fault


def test_a_retry_code_makes_the_sdk_try_again(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    body = {"error": "not yet", "code": "SANDBOX_NOT_READY"}
    rule = {"path": "/processes/run", "action": "status", "status": 503, "body": body, "times": 2}
    with fault(stage.admin, rule):
        assert sandbox.run("echo", ["x"]).stdout == "x"
        assert stage.admin.get("faults")["data"][0]["fired"] == 2


def test_a_burst_of_502_is_hidden_from_a_read(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    with fault(stage.admin, {"method": "GET", "path": "/sandboxes/", "action": "status", "status": 502, "times": 2}):
        assert sandbox.info().sandbox_id == sandbox.sandbox_id


def test_a_429_on_create_is_not_retried_and_has_no_effect(stage: TensorlakeStage) -> None:
    with (
        fault(stage.admin, {"method": "POST", "path": "/sandboxes$", "action": "status", "status": 429}),
        pytest.raises(RemoteAPIError) as refusal,
    ):
        stage.named()
    assert refusal.value.status_code == 429
    assert stage.raw.get("/sandboxes").json() == {"sandboxes": []}


def test_a_lost_answer_leaves_its_effect(stage: TensorlakeStage) -> None:
    name = stage.name()
    with (
        fault(stage.admin, {"method": "POST", "path": "/sandboxes$", "action": "drop_after"}),
        pytest.raises(SandboxError),
    ):
        stage.create(name=name)
    assert Sandbox.connect(name, **stage.sdk).run("echo", ["alive"]).stdout == "alive"


def test_latency_is_added_to_every_round_trip(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    stage.admin.put("latency", {"seconds": 0.15})
    begin = time.monotonic()
    sandbox.run("true")
    assert time.monotonic() - begin >= 0.15


def test_start_and_resume_take_the_seconds_that_are_set(stage: TensorlakeStage) -> None:
    stage.settings(create_seconds=0.2, process_start_seconds=0.2, resume_seconds=0.2)
    begin = time.monotonic()
    sandbox = stage.named()
    created = time.monotonic()
    sandbox.run("true")
    ran = time.monotonic()
    sandbox.suspend()
    suspended = time.monotonic()
    sandbox.resume()
    assert created - begin >= 0.2 and ran - created >= 0.2 and time.monotonic() - suspended >= 0.2


def test_requests_are_counted_by_route(stage: TensorlakeStage) -> None:
    stage.admin.delete("counts")
    sandbox = stage.named()
    sandbox.run("true")
    Sandbox.connect(sandbox.name, **stage.sdk)
    counts = stage.admin.get("counts")
    assert counts["routes"] == {"POST /sandboxes": 1, "POST /api/v1/processes/run": 1, "GET /sandboxes/{key}": 1}
    assert counts["total"] == 3


def test_the_admin_routes_need_their_token(stage: TensorlakeStage) -> None:
    wrong: list[dict[str, str]] = [{}, {"x-admin-token": "guess"}, {"authorization": f"Bearer {KEY}"}]
    for headers in wrong:
        for path in ("state", "settings", "faults", "latency", "counts"):
            answer = httpx2.get(f"{stage.service.url}/_admin/{path}", headers=headers, trust_env=False)
            assert answer.status_code == 403


def test_an_unknown_knob_is_refused(stage: TensorlakeStage) -> None:
    headers = {"x-admin-token": stage.service.admin_token}
    answer = stage.raw.patch("/_admin/settings", json={"nonsense": 1}, headers=headers)
    assert answer.status_code == 400 and "nonsense" in answer.json()["error"]


def test_the_state_shows_isolation_and_sandboxes(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    state = stage.admin.get("state")
    assert state["isolation"]["level"] == stage.level and state["isolation"]["not_enforced"]
    assert [row["id"] for row in state["sandboxes"]] == [sandbox.sandbox_id]
    (named,) = stage.admin.get(f"state?named={sandbox.name[1:]}")["sandboxes"]
    assert named["id"] == sandbox.sandbox_id
    assert stage.admin.get("state?named=another")["sandboxes"] == []


def test_a_reset_forgets_everything(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    name = sandbox.name
    sandbox.checkpoint(poll_interval=0.05, wait_until="completed")
    stage.settings(create_seconds=9)
    stage.admin.post("reset")
    assert stage.raw.get("/sandboxes").json() == {"sandboxes": []}
    assert stage.raw.get("/snapshots").json() == {"snapshots": []}
    assert stage.create(name=name).run("echo", ["new"]).stdout == "new"
