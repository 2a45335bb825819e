"""Create, find, list, update, end: as the contract's transcripts say, with the real SDK."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from tensorlake.sandbox import AsyncSandbox, Sandbox, SandboxStatus
from tensorlake.sandbox.exceptions import (
    RemoteAPIError,
    SandboxError,
    SandboxNotFoundError,
    SandboxNotRoutableError,
    SandboxPending,
)

from infra.local.tensorlake.egress import TRIAL_HOSTS
from tests.infra.local.tensorlake.conftest import TensorlakeStage, out
from tests.support.waiting import until


def test_a_sandbox_is_created_found_by_id_and_name_and_ended(stage: TensorlakeStage) -> None:
    name = stage.name()
    sandbox = stage.create(name=name, cpus=2, memory_mb=2048, disk_mb=20480, timeout_secs=60, exposed_ports=[8080, 80])
    info = Sandbox.connect(name, **stage.sdk).info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert (info.name, info.timeout_secs, info.exposed_ports) == (name, 60, [80, 8080])
    assert (info.resources.cpus, info.resources.memory_mb, info.resources.disk_mb) == (2.0, 2048, 20480)
    assert Sandbox.connect(sandbox.sandbox_id, **stage.sdk).run("echo", ["hi"]).stdout == "hi"
    sandbox.terminate()
    with pytest.raises(SandboxNotFoundError):
        Sandbox.connect(name, **stage.sdk)
    answer = stage.raw.get(f"/sandboxes/{sandbox.sandbox_id}").json()
    assert answer["status"] == "terminated" and "sandbox_url" not in answer


def test_both_path_forms_reach_the_same_sandbox(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    flat = stage.raw.get(f"/sandboxes/{sandbox.sandbox_id}").json()
    prefixed = stage.raw.get(f"/v1/namespaces/default/sandboxes/{sandbox.sandbox_id}").json()
    assert flat == prefixed
    assert stage.raw.get(f"/v1/namespaces/other/sandboxes/{sandbox.sandbox_id}").status_code == 404


def test_a_taken_name_is_refused_before_any_side_effect(stage: TensorlakeStage) -> None:
    holder = stage.named()
    with pytest.raises(RemoteAPIError) as refusal:
        Sandbox.create(name=holder.name, **stage.sdk)
    assert (refusal.value.status_code, refusal.value.code) == (409, "CONFLICT")
    assert len(list(Sandbox.list(**stage.sdk))) == 1


@pytest.mark.parametrize("attempt", range(2))
def test_twenty_threads_racing_for_one_name_make_one_sandbox(stage: TensorlakeStage, attempt: int) -> None:
    name = stage.name(f"race{attempt}")
    barrier = Barrier(20)

    def contend(_: int) -> tuple[str, str]:
        barrier.wait()
        handle = Sandbox.get_or_create(name, **stage.sdk)
        return handle.sandbox_id, str(handle.bind_outcome)

    stage.settings(create_seconds=0.1)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(contend, range(20)))
    assert len({sandbox_id for sandbox_id, _ in answers}) == 1
    assert [outcome for _, outcome in answers].count("created") == 1
    assert len(stage.raw.get("/sandboxes").json()["sandboxes"]) == 1


def test_twenty_racing_creates_answer_one_200_and_nineteen_409(stage: TensorlakeStage) -> None:
    name = stage.name("race")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: stage.post("/sandboxes", {"name": name}).status_code, range(20)))
    assert sorted(answers) == [200] + [409] * 19


@pytest.mark.parametrize("name", ["", "Upper", "a_b", "1st", "-a", "a-", "a b", "a" * 64, "a/b", "ä"])
def test_a_name_that_breaks_the_rules_is_a_400_that_says_so(stage: TensorlakeStage, name: str) -> None:
    answer = stage.post("/sandboxes", {"name": name})
    assert answer.status_code == 400 and "name" in answer.json()["error"]


def test_a_longest_name_is_taken(stage: TensorlakeStage) -> None:
    assert stage.post("/sandboxes", {"name": "a" + "b" * 62}).status_code == 200


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"exposed_ports": [9501]}, "9501"),
        ({"exposed_ports": [0]}, "exposed_ports"),
        ({"timeout_secs": -1}, "timeout_secs"),
        ({"resources": {"cpus": 0}}, "cpus"),
        ({"auto_resume": False}, "auto_resume"),
        ({"image": "nobody/nothing"}, "not registered"),
    ],
)
def test_a_bad_create_names_what_is_wrong(stage: TensorlakeStage, body: dict[str, object], word: str) -> None:
    answer = stage.post("/sandboxes", body)
    assert answer.status_code == 400 and word in answer.json()["error"]
    assert stage.raw.get("/sandboxes").json() == {"sandboxes": []}


def test_a_create_without_waiting_is_pending_first_and_ready_later(stage: TensorlakeStage) -> None:
    stage.settings(create_seconds=0.3)
    pending = Sandbox.create(name=stage.name(), wait=False, **stage.sdk)
    assert str(pending.state.value) == "pending"
    assert pending.ready(timeout=5, poll_interval=0.05).run("echo", ["up"]).stdout == "up"


def test_a_list_is_paged_by_cursor_and_has_the_ended(stage: TensorlakeStage) -> None:
    stage.settings(start_faults=[{"outcome": "stuck_pending", "times": None}])  # a list needs no bodies
    made = [stage.post("/sandboxes", {"wait": False}).json()["sandbox_id"] for _ in range(103)]
    stage.raw.delete(f"/sandboxes/{made[0]}")
    first = stage.raw.get("/sandboxes").json()
    assert len(first["sandboxes"]) == 100 and first["cursor"]
    assert [row.sandbox_id for row in Sandbox.list(**stage.sdk)] == made
    assert first["sandboxes"][0]["status"] == "terminated"


def test_an_update_renames_and_replaces_settings(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    old, new = sandbox.name, stage.name("new")
    sandbox.update(name=new)
    sandbox.update(exposed_ports=[8080, 80, 80], allow_unauthenticated_access=True, auto_resume=False)
    info = Sandbox.connect(new, **stage.sdk).info()
    assert (info.exposed_ports, info.allow_unauthenticated_access, info.auto_resume) == ([80, 8080], True, False)
    with pytest.raises(SandboxNotFoundError):
        Sandbox.connect(old, **stage.sdk)
    assert stage.named(exposed_ports=[1]).sandbox_id != sandbox.sandbox_id


def test_a_rename_to_a_taken_name_changes_nothing(stage: TensorlakeStage) -> None:
    one, two = stage.named(), stage.named()
    answer = stage.raw.patch(f"/sandboxes/{two.sandbox_id}", json={"name": one.name, "auto_resume": False})
    assert answer.status_code == 409
    assert stage.raw.get(f"/sandboxes/{two.sandbox_id}").json()["auto_resume"] is True


def test_a_network_policy_is_echoed_and_reported_as_not_enforced(stage: TensorlakeStage) -> None:
    sandbox = stage.named(allow_internet_access=False, allow_out=["example.com"])
    policy = sandbox.info().network_policy
    assert policy is not None and policy.allow_out == ["example.com"]
    assert any("network" in text for text in stage.service.ready["isolation"]["not_enforced"])


def test_a_network_policy_holds_for_the_names_that_try_it(stage: TensorlakeStage) -> None:
    if not stage.service.ready["isolation"]["isolated"]:
        pytest.skip("this level says that it is not isolated")

    def opened(sandbox: Sandbox) -> list[str]:
        found = [out(sandbox, f"getent hosts {host}").split() for host in TRIAL_HOSTS]
        return [host for address, host in found if address == "127.0.0.1"]

    one, two = TRIAL_HOSTS
    assert opened(stage.named()) == [one, two]
    assert opened(stage.named(allow_internet_access=False)) == []
    assert opened(stage.named(deny_out=[one])) == [two]
    sandbox = stage.named(allow_out=["*.two.test"])
    assert opened(sandbox) == [two]
    answer = stage.raw.patch(f"/sandboxes/{sandbox.sandbox_id}", json={"network": {"allow_out": [one]}})
    assert (answer.status_code, opened(sandbox)) == (200, [one])
    stage.settings(egress_enforced=False)
    try:
        assert opened(stage.named(snapshot_id=sandbox.checkpoint().snapshot_id, allow_out=[two])) == [one, two]
    finally:
        stage.settings(egress_enforced=True)


def test_an_ended_sandbox_refuses_data_plane_calls_and_ends_again(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    name = sandbox.name
    sandbox.terminate()
    with pytest.raises(RemoteAPIError) as refusal:
        sandbox.run("echo", ["x"])
    assert (refusal.value.status_code, refusal.value.code) == (404, "NOT_FOUND")
    assert stage.raw.delete(f"/sandboxes/{sandbox.sandbox_id}").status_code == 200
    assert stage.create(name=name).sandbox_id != sandbox.sandbox_id


def test_a_dying_name_reads_running_for_the_delay_that_is_set(stage: TensorlakeStage) -> None:
    stage.settings(name_release_seconds=0.4)
    sandbox = stage.named()
    name = sandbox.name
    sandbox.terminate()
    assert stage.raw.get(f"/sandboxes/{name}").json()["status"] == "running"
    assert stage.raw.get(f"/sandboxes/{sandbox.sandbox_id}").json()["status"] == "terminated"
    assert stage.post("/sandboxes", {"name": name}).status_code == 409
    until(lambda: stage.raw.get(f"/sandboxes/{name}").status_code == 404)


def test_a_pending_sandbox_can_be_cancelled(stage: TensorlakeStage) -> None:
    stage.settings(create_seconds=5)
    pending = stage.post("/sandboxes", {"name": stage.name(), "wait": False}).json()
    assert stage.raw.delete(f"/sandboxes/{pending['sandbox_id']}").status_code == 200
    row = stage.raw.get(f"/sandboxes/{pending['sandbox_id']}").json()
    assert (row["status"], row["termination_reason"]) == ("terminated", "cancelled")


def test_a_start_that_fails_carries_its_reason_and_keeps_the_name(stage: TensorlakeStage) -> None:
    stage.settings(start_faults=[{"outcome": "failed", "reason": "ConfigurationError", "status": 422}])
    name = stage.name()
    with pytest.raises(SandboxError) as failure:
        stage.create(name=name)
    assert failure.value.reason == "ConfigurationError"
    holder = stage.raw.get(f"/sandboxes/{name}").json()
    assert holder["status"] == "failed"
    stage.raw.delete(f"/sandboxes/{holder['id']}")
    assert stage.create(name=name).status is SandboxStatus.RUNNING


def test_a_stuck_start_is_pending_to_the_end_of_the_budget(stage: TensorlakeStage) -> None:
    stage.settings(start_faults=[{"outcome": "stuck_pending", "pending_reason": "no_resources_available"}])
    with pytest.raises(SandboxPending) as stuck:
        stage.create(name=stage.name(), request_timeout=2.5)
    assert str(stuck.value.pending_reason) in ("no_resources_available", "PendingReason.NO_RESOURCES_AVAILABLE")


def test_a_stuck_start_ends_for_lack_of_capacity_when_a_bound_is_given(stage: TensorlakeStage) -> None:
    stage.settings(start_faults=[{"outcome": "stuck_pending"}])
    with pytest.raises(SandboxError) as failure:
        stage.create(name=stage.name(), max_pending_secs=1)
    assert failure.value.reason == "no_capacity"


def test_a_start_without_a_url_is_not_routable(stage: TensorlakeStage) -> None:
    stage.settings(start_faults=[{"outcome": "no_url"}])
    with pytest.raises(SandboxNotRoutableError):
        stage.create(name=stage.name())


def test_over_the_quota_a_create_answers_the_status_chosen(stage: TensorlakeStage) -> None:
    stage.settings(max_sandboxes=1, over_quota_status=402)
    stage.named()
    with pytest.raises(RemoteAPIError) as refusal:
        stage.named()
    assert refusal.value.status_code == 402


def test_over_a_limit_of_calls_an_answer_says_when_to_come_again(stage: TensorlakeStage) -> None:
    stage.settings(calls_a_minute=1)
    first, second = stage.raw.get("/sandboxes"), stage.raw.get("/sandboxes")
    stage.settings(calls_a_minute=None)
    assert (first.status_code, first.headers["x-ratelimit-remaining"]) == (200, "0")
    assert second.status_code == 429 and 0 < int(second.headers["retry-after"]) <= 60
    assert "x-ratelimit-limit" not in stage.raw.get("/sandboxes").headers


def test_a_request_without_a_key_is_refused(stage: TensorlakeStage) -> None:
    for headers in ({"authorization": ""}, {"authorization": "Basic x"}):
        assert stage.raw.get("/sandboxes", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/sandboxes/{id}/file_systems", {"file_system_id": "f", "mount_path": "/m"}),
        ("GET", "/v1/namespaces/default/sandboxes/{id}/logs", None),
        ("GET", "/archived-sandboxes", None),
        ("POST", "/sandboxes", {"file_systems": [{"file_system_id": "f", "mount_path": "/m"}]}),
    ],
)
def test_what_is_not_supported_offline_says_so(stage: TensorlakeStage, method: str, path: str, body: object) -> None:
    sandbox = stage.named()
    answer = stage.raw.request(method, path.format(id=sandbox.sandbox_id), json=body)
    assert answer.status_code == 501
    assert answer.json()["code"] == "NOT_SUPPORTED_OFFLINE" and "not supported offline" in answer.json()["error"]


def test_an_entrypoint_runs_at_start(stage: TensorlakeStage) -> None:
    sandbox = stage.named(entrypoint=["sleep", "77"])
    assert [(each.command, each.args) for each in sandbox.list_processes()] == [("sleep", ["77"])]


def test_fifty_parallel_async_creates_all_run(stage: TensorlakeStage) -> None:
    async def one(number: int) -> str:
        sandbox = await AsyncSandbox.create(name=f"many-{number}", **stage.sdk)
        result = await sandbox.run("echo", [str(number)])
        return str(result.stdout)

    async def everything() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(20)))

    assert asyncio.run(everything()) == [str(number) for number in range(20)]


def test_a_create_takes_well_under_a_second(each_level: TensorlakeStage) -> None:
    """On a machine that does nothing else; on any other, no longer than twenty starts of an interpreter."""

    def seconds(what: Callable[[], object]) -> float:
        begin = time.monotonic()
        what()
        return time.monotonic() - begin

    each_level.named()
    took, interpreter = [], []
    for _ in range(5):
        took.append(seconds(each_level.named))
        interpreter.append(seconds(lambda: subprocess.run([sys.executable, "-I", "-c", ""], check=True)))
    assert min(took) < max(0.5, 20 * min(interpreter))


def test_a_sandbox_that_dies_is_failed(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    stage.admin.post(f"sandboxes/{sandbox.sandbox_id}/fail")
    assert sandbox.status is SandboxStatus.FAILED
    with pytest.raises(RemoteAPIError):
        sandbox.run("true")


def test_the_sdk_sees_names_of_one_user_and_a_clean_environment(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    environment = out(sandbox, "env", env={"MINE": "1"}).splitlines()
    names = {line.partition("=")[0] for line in environment}
    processors = {"OMP_NUM_THREADS", "PYTHON_CPU_COUNT"}
    assert names - {"PWD", "SHLVL", "_", "WORKSPACE", "OLDPWD"} == {"PATH", "HOME", "LANG", "MINE", *processors}
