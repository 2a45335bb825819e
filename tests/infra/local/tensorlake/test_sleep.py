"""Suspend, resume, wake on request, idle timer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tensorlake.sandbox import Sandbox, SandboxStatus
from tensorlake.sandbox.exceptions import RemoteAPIError, SandboxError

from tests.infra.local.tensorlake.conftest import TensorlakeStage
from tests.support.waiting import until

COUNTER = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done"
NEVER = {"policy": "never"}


def count(stage: TensorlakeStage, sandbox: Sandbox) -> int:
    """How far the counter is, asked behind the back of the wake-up."""
    row = next(each for each in stage.admin.get("state")["sandboxes"] if each["id"] == sandbox.sandbox_id)
    lines: int = row["processes"][0]["output_lines"]
    return lines


def test_a_suspended_sandbox_stands_still_and_goes_on_where_it_was(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    sandbox.start_process("sh", ["-c", COUNTER], name="count", restart=NEVER)
    until(lambda: count(each_level, sandbox) > 3)
    sandbox.suspend()
    assert sandbox.status is SandboxStatus.SUSPENDED
    before = count(each_level, sandbox)
    time.sleep(0.3)
    assert count(each_level, sandbox) - before <= 1
    sandbox.resume()
    assert sandbox.status is SandboxStatus.RUNNING
    until(lambda: count(each_level, sandbox) > before + 3)


def test_grandchildren_in_other_groups_are_frozen_too(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    script = f"(setsid sh -c '{COUNTER}' &) ; sleep 600"
    sandbox.start_process("sh", ["-c", script], name="count", restart=NEVER)
    until(lambda: count(each_level, sandbox) > 3)
    sandbox.suspend()
    before = count(each_level, sandbox)
    time.sleep(0.3)
    assert count(each_level, sandbox) - before <= 1


def test_a_process_its_user_stopped_stays_stopped_after_the_thaw(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    process = sandbox.start_process("sh", ["-c", COUNTER]).value
    until(lambda: count(stage, sandbox) > 3)
    sandbox.send_signal(process.pid, 19)
    time.sleep(0.1)
    before = count(stage, sandbox)
    sandbox.suspend()
    sandbox.resume()
    time.sleep(0.2)
    assert count(stage, sandbox) - before <= 1


def test_traffic_wakes_a_sleeper_once_for_many_callers(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    sandbox.suspend()
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda number: sandbox.run("echo", [str(number)]).stdout, range(8)))
    assert said == [str(number) for number in range(8)]
    assert sandbox.status is SandboxStatus.RUNNING


def test_a_look_does_not_wake_a_sleeper(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    sandbox.suspend()
    handle = Sandbox.connect(sandbox.name, **stage.sdk)
    assert handle.status is SandboxStatus.SUSPENDED
    assert [row.status for row in Sandbox.list(**stage.sdk)] == [SandboxStatus.SUSPENDED]


def test_without_auto_resume_traffic_is_a_409_until_it_is_resumed(stage: TensorlakeStage) -> None:
    sandbox = stage.named(auto_resume=False)
    sandbox.suspend()
    with pytest.raises(RemoteAPIError) as refusal:
        sandbox.run("echo", ["x"])
    assert refusal.value.status_code == 409
    sandbox.resume()
    assert sandbox.run("echo", ["x"]).stdout == "x"


def test_get_or_create_resumes_a_sleeper(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    sandbox.suspend()
    again = Sandbox.get_or_create(sandbox.name, **stage.sdk)
    assert str(again.bind_outcome) == "resumed"
    assert (again.sandbox_id, again.status) == (sandbox.sandbox_id, SandboxStatus.RUNNING)


def test_suspend_and_resume_answer_202_until_they_are_done(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    stage.settings(suspend_seconds=3600, resume_seconds=3600)
    path = f"/sandboxes/{sandbox.sandbox_id}"
    assert stage.post(f"{path}/suspend").status_code == 202
    assert stage.raw.get(path).json()["status"] == "suspending"
    assert "sandbox_url" in stage.raw.get(path).json()
    assert stage.post(f"{path}/suspend?wait_ms=10").status_code == 202
    stage.settings(suspend_seconds=0)
    assert stage.post(f"{path}/suspend?wait_ms=15000").status_code == 200
    assert stage.post(f"{path}/suspend").status_code == 200
    assert stage.post(f"{path}/resume?wait_ms=10").status_code == 202
    stage.settings(resume_seconds=0)
    assert stage.post(f"{path}/resume?wait_ms=15000").status_code == 200
    assert stage.post(f"{path}/resume").status_code == 200


def test_an_ephemeral_sandbox_cannot_sleep_until_it_is_named(stage: TensorlakeStage) -> None:
    sandbox = stage.create()
    with pytest.raises((RemoteAPIError, SandboxError)):
        sandbox.suspend()
    assert stage.post(f"/sandboxes/{sandbox.sandbox_id}/suspend").status_code == 400
    sandbox.update(name=stage.name())
    sandbox.suspend()
    assert sandbox.status is SandboxStatus.SUSPENDED


def test_the_idle_timer_suspends_the_named_and_ends_the_ephemeral(stage: TensorlakeStage) -> None:
    named, ephemeral = stage.named(timeout_secs=1), stage.create(timeout_secs=1)
    begin = time.monotonic()
    until(lambda: named.status is SandboxStatus.SUSPENDED)
    until(lambda: ephemeral.status is SandboxStatus.TERMINATED)
    assert time.monotonic() - begin > 0.5


def test_traffic_holds_the_idle_timer_back_and_a_look_does_not(stage: TensorlakeStage) -> None:
    busy, running = (stage.named(timeout_secs=1) for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        quiet = pool.submit(running.run, "sh", ["-c", "until [ -e over ]; do sleep 0.1; done"])
        until(running.list_processes, "the quiet command does not run")
        watched = stage.named(timeout_secs=1)  # the last one: when its time is over, so is that of the others

        def asleep() -> bool:
            busy.run("true")
            return watched.status is SandboxStatus.SUSPENDED

        until(asleep, "a look holds the timer back")
        statuses = [busy.status, running.status]
        running.write_file("/workspace/over", b"")
        quiet.result()
    assert statuses == [SandboxStatus.RUNNING, SandboxStatus.RUNNING]


def test_an_operator_can_let_the_time_pass(stage: TensorlakeStage) -> None:
    sandbox = stage.named(timeout_secs=3600)
    stage.admin.post(f"sandboxes/{sandbox.sandbox_id}/expire")
    assert sandbox.status is SandboxStatus.SUSPENDED
    sandbox.resume()
    passed = [stage.admin.post(f"sandboxes/{sandbox.sandbox_id}/age", {"seconds": 2000})["status"] for _ in range(2)]
    assert passed == ["running", "suspended"]


def test_a_sleeper_is_kept_for_good_or_for_as_long_as_was_set(stage: TensorlakeStage) -> None:
    kept, other = stage.named(), stage.named()
    kept.suspend()
    assert kept.status is SandboxStatus.SUSPENDED
    stage.settings(retention_seconds=0.05)
    until(lambda: kept.status is SandboxStatus.TERMINATED, "it is kept for longer")
    assert other.status is SandboxStatus.RUNNING
    stage.settings(retention_seconds=None)
    other.suspend()
    assert other.status is SandboxStatus.SUSPENDED
