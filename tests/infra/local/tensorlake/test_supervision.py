"""Managed processes: restart policies and health checks, with the real SDK
(docs/wire/tensorlake.md#71-start_process)."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tensorlake.sandbox import ProcessInfo, Sandbox
from tensorlake.sandbox.exceptions import RemoteAPIError

from infra.local.tensorlake.host import Host
from tests.infra.local.tensorlake.conftest import TensorlakeStage
from tests.support.ports import free_port
from tests.support.waiting import until

QUICK = {"initial_backoff_ms": 20, "max_backoff_ms": 100}
ON_FAILURE = {"policy": "on_failure", **QUICK}
ALWAYS = {"policy": "always", **QUICK}
SERVER = """
import http.server, os, signal, sys
if len(sys.argv) > 2: signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
class SupervisorAnswer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        sick = os.path.exists("/workspace/sick")
        if sick: os.unlink("/workspace/sick")  # before the answer, which may bring the signal to end
        self.send_response(503 if sick or self.path != "/healthz?x=1" else 200); self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), SupervisorAnswer).serve_forever()
"""


def managed(sandbox: Sandbox, name: str = "web") -> Any:
    """Its supervision; the daemon's own words."""
    info: ProcessInfo = sandbox.get_process(name).value
    assert info.managed is not None
    return info.managed


def status(sandbox: Sandbox, name: str = "web") -> str:
    return str(managed(sandbox, name).status.value)


def health(sandbox: Sandbox, name: str = "web") -> str:
    return str(managed(sandbox, name).health_status.value)


def test_a_failure_is_restarted_under_the_same_name_and_another_pid(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    first = sandbox.start_process("sh", ["-c", "echo up; sleep 60"], name="web", restart=ON_FAILURE).value
    until(lambda: sandbox.get_stdout("web").value.lines == ["up"])
    sandbox.send_signal("web", 9)
    until(lambda: managed(sandbox).restart_count == 1 and status(sandbox) == "running")
    again = sandbox.get_process("web").value
    assert again.pid != first.pid and again.managed is not None
    assert again.managed.last_exit is not None and again.managed.last_exit.signal == 9
    until(lambda: sandbox.get_stdout("web").value.lines == ["up", "up"])


def test_on_failure_leaves_a_good_end_alone_and_always_does_not(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    sandbox.start_process("true", name="once", restart=ON_FAILURE)
    sandbox.start_process("true", name="on and on", restart={**ALWAYS, "max_restarts": 3})
    until(lambda: status(sandbox, "once") == "stopped")
    assert managed(sandbox, "once").restart_count == 0
    until(lambda: status(sandbox, "on and on") == "stopped")
    assert managed(sandbox, "on and on").restart_count == 3


def test_a_name_alone_opts_into_restarts_on_failure(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    sandbox.start_process("false", name="web")
    seen: list[Any] = []

    def backing_off() -> bool:
        seen[:] = [managed(sandbox)]
        return str(seen[0].status.value) == "backing_off"

    until(backing_off)
    (facts,) = seen
    assert (facts.restart.policy.value, facts.restart.initial_backoff_ms) == ("on_failure", 500)
    assert facts.next_restart_at is not None and facts.last_exit.exit_code == 1
    with pytest.raises(RemoteAPIError, match="is running"):
        sandbox.start_process("true", name="web")
    sandbox.kill_process("web")
    assert status(sandbox) == "stopped"


def test_pauses_double_up_to_the_longest(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    restart = {"policy": "on_failure", "max_restarts": 4, "initial_backoff_ms": 40, "max_backoff_ms": 160}
    began = time.monotonic()
    sandbox.start_process("false", name="web", restart=restart)
    until(lambda: status(sandbox) == "stopped")
    assert time.monotonic() - began >= (40 + 80 + 160 + 160) / 1000


def test_a_kill_is_for_good_and_a_restart_brings_it_back(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    first = sandbox.start_process("sleep", ["60"], name="web", restart=ALWAYS).value
    sandbox.kill_process("web")
    assert status(sandbox) == "stopped"
    time.sleep(0.2)
    assert managed(sandbox).restart_count == 0
    back = sandbox.restart_process("web").value
    assert back.pid != first.pid and status(sandbox) == "running"
    sandbox.send_signal("web", 9)
    until(lambda: managed(sandbox).restart_count == 2 and status(sandbox) == "running")


def test_only_a_managed_process_can_be_restarted(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    plain = sandbox.start_process("sleep", ["60"]).value
    with pytest.raises(RemoteAPIError) as refusal:
        sandbox.restart_process(plain.pid)
    assert refusal.value.status_code == 400


def test_a_restart_policy_without_a_name_is_managed_by_pid(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    first = sandbox.start_process("sleep", ["60"], restart=ON_FAILURE).value
    assert first.managed is not None and first.managed.name is None and first.managed.id
    sandbox.send_signal(first.pid, 9)
    until(lambda: [each.pid for each in sandbox.list_processes()] != [first.pid])
    (second,) = sandbox.list_processes()
    assert second.managed is not None and second.managed.id == first.managed.id


def serve(sandbox: Sandbox, *more: str, restart: dict[str, Any] = ON_FAILURE, **check: Any) -> None:
    sandbox.write_file("/workspace/server.py", SERVER.encode())
    port = free_port()
    check = {"type": "http", "port": port, "path": "/healthz?x=1", "initial_delay_ms": 0, "interval_ms": 30} | check
    command = ["/workspace/server.py", str(port), *more]
    sandbox.start_process("/opt/hands/venv/bin/python", command, name="web", restart=restart, health_check=check)


def test_an_unhealthy_server_is_restarted_though_it_ends_well_when_asked(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    serve(sandbox, "exit 0 on SIGTERM", timeout_ms=5000, failure_threshold=1, initial_delay_ms=2000, interval_ms=200)
    assert health(sandbox) == "starting"
    until(lambda: health(sandbox) == "healthy")
    sandbox.write_file("/workspace/sick", b"")
    until(lambda: managed(sandbox).restart_count == 1 and health(sandbox) == "healthy")
    assert "503" in str(managed(sandbox).last_error)


def test_with_the_policy_never_an_unhealthy_process_is_only_reported(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    check = {"type": "tcp", "port": free_port(), "initial_delay_ms": 0, "interval_ms": 10, "failure_threshold": 2}
    started = sandbox.start_process("sleep", ["60"], name="web", restart={"policy": "never"}, health_check=check).value
    until(lambda: health(sandbox) == "unhealthy")
    facts = managed(sandbox)
    assert facts.consecutive_health_failures >= 2 and facts.last_error
    assert sandbox.get_process("web").value.pid == started.pid and status(sandbox) == "running"


def test_sleep_neither_fails_a_health_check_nor_restarts_anything(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    serve(sandbox, timeout_ms=3000, failure_threshold=2, initial_delay_ms=1500)
    sandbox.start_process("false", name="failing", restart={"policy": "on_failure", "initial_backoff_ms": 400})
    until(lambda: health(sandbox) == "healthy")
    sandbox.suspend()
    time.sleep(0.3)  # both would act meanwhile, were they not asleep

    def row(name: str) -> dict[str, Any]:
        (box,) = (each for each in stage.admin.get("state")["sandboxes"] if each["id"] == sandbox.sandbox_id)
        (found,) = (each["managed"] for each in box["processes"] if (each["managed"] or {}).get("name") == name)
        return dict(found)

    before = row("failing")["restart_count"]
    time.sleep(0.5)
    assert row("failing")["restart_count"] == before
    assert (row("web")["restart_count"], row("web")["health_status"]) == (0, "healthy")
    sandbox.resume()
    until(lambda: managed(sandbox, "failing").restart_count > before)
    assert managed(sandbox).restart_count == 0


def test_the_end_of_a_sandbox_is_the_end_of_what_it_restarts(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    restart = {"policy": "always", "initial_backoff_ms": 0, "max_backoff_ms": 0}
    sandbox.start_process("sh", ["-c", "sleep 0.01"], name="web", restart=restart)
    until(lambda: managed(sandbox).restart_count > 2)
    began = time.monotonic()
    sandbox.terminate()
    assert time.monotonic() - began < 60
    boxes = stage.admin.get("state")["sandboxes"]
    assert [each["status"] for each in boxes if each["id"] == sandbox.sandbox_id] == ["terminated"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"restart": {"policy": "sometimes"}},
        {"restart": {"max_restarts": -1}},
        {"health_check": {"type": "http", "port": 0}},
        {"health_check": {"type": "http", "port": 80, "path": "no slash"}},
        {"health_check": {"type": "udp", "port": 80}},
        {"name": "17"},
    ],
)
def test_what_supervision_cannot_mean_is_a_400(stage: TensorlakeStage, wrong: dict[str, object]) -> None:
    sandbox = stage.named()
    answer = stage.inside(sandbox, "POST", "/api/v1/processes", json={"command": "true", **wrong})
    assert answer.status_code == 400
    assert list(sandbox.list_processes()) == []


def test_a_sandboxs_start_waits_for_no_import_that_its_supervisor_can_do_without(tmp_path: Path) -> None:
    program = Host.probe(tmp_path).supervise(str(tmp_path / "program"))
    told = program[-1].replace("main(None)", "print(*sys.modules)")
    done = subprocess.run([*program[:-1], told], capture_output=True, text=True, check=True)
    assert "inside.supervisor" in done.stdout.split()
    assert not {"socket", "typing", "subprocess", "pathlib"} & set(done.stdout.split())
