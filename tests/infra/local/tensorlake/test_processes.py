"""Processes: run, start, input, output, signals, names, users."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from tensorlake.sandbox import AsyncSandbox, ProcessStatus, StdinMode
from tensorlake.sandbox.exceptions import RemoteAPIError

from tests.infra.local.tensorlake.conftest import TensorlakeStage, out
from tests.support.waiting import until

NEVER = {"policy": "never"}


def test_a_run_gives_both_streams_the_exit_code_and_no_exception(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    result = sandbox.run("sh", ["-c", "echo out; echo err >&2; printf rest; exit 3"])
    assert (result.stdout, result.stderr, result.exit_code) == ("out\nrest", "err", 3)
    assert str(result.reason.value) == "exited"


def test_a_run_has_its_own_environment_and_directory(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    sandbox.write_file("/workspace/sub/file.txt", b"x")
    assert out(sandbox, "echo $MINE; ls", env={"MINE": "yes"}, working_dir="/workspace/sub") == "yes\nfile.txt"
    assert out(sandbox, "echo ${MINE:-gone}") == "gone"


def test_a_sandbox_counts_its_own_processors(stage: TensorlakeStage) -> None:
    count = "nproc; python3 -c 'import os; print(os.environ[\"PYTHON_CPU_COUNT\"])'"
    assert out(stage.create(cpus=1.0), count).split() == ["1", "1"]
    most = os.cpu_count() or 1
    assert out(stage.create(cpus=most + 3.0), count).split() == [str(most)] * 2


def test_a_run_over_its_time_is_killed_with_its_whole_tree(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    script = "echo begun; (setsid sleep 333 &); sleep 334 & sleep 335"
    begin = time.monotonic()
    result = sandbox.run("sh", ["-c", script], timeout=0.5)
    assert time.monotonic() - begin < 100
    assert (result.timed_out, result.exit_code, result.stdout) == (True, -9, "begun")
    # Whoever left the session on purpose is out of reach of a process group, and dies with the sandbox.
    until(lambda: sandbox.run("pgrep", ["-f", "sleep 33[45]"]).exit_code == 1)


def test_a_run_ends_promptly_though_a_child_holds_its_pipes(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    begin = time.monotonic()
    assert out(sandbox, "sleep 200 & echo done") == "done"
    assert time.monotonic() - begin < 100


def test_a_quiet_run_outlives_the_time_between_bytes(stage: TensorlakeStage) -> None:
    sandbox = stage.named(request_timeout=2.0)
    assert sandbox.run("sh", ["-c", "sleep 3; echo late"]).stdout == "late"


def test_a_signal_ends_a_run_as_signaled(stage: TensorlakeStage) -> None:
    result = stage.named().run("sh", ["-c", "kill -TERM $$"])
    assert (result.exit_code, str(result.reason.value)) == (-15, "signaled")


@pytest.mark.parametrize("command", ["no-such-program", "/opt/no/such", "./nothing"])
def test_a_missing_executable_is_a_400_with_its_name(each_level: TensorlakeStage, command: str) -> None:
    sandbox = each_level.named()
    for start in (sandbox.run, sandbox.start_process):
        with pytest.raises(RemoteAPIError) as refusal:
            start(command)
        assert refusal.value.status_code == 400 and command in refusal.value.message


def test_a_missing_directory_and_a_null_character_are_400(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    with pytest.raises(RemoteAPIError, match="does not exist"):
        sandbox.run("true", working_dir="/nowhere")
    body = {"command": "echo", "args": ["a\0b"]}
    assert stage.inside(sandbox, "POST", "/api/v1/processes", json=body).status_code == 400


def test_input_is_piped_until_it_is_closed(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    process = sandbox.start_process("cat", stdin_mode=StdinMode.PIPE).value
    assert process.stdin_writable
    sandbox.write_stdin(process.pid, b"one\ntw")
    sandbox.write_stdin(process.pid, b"o\n")
    until(lambda: sandbox.get_stdout(process.pid).value.lines == ["one", "two"])
    sandbox.close_stdin(process.pid)
    until(lambda: sandbox.get_process(process.pid).value.status is ProcessStatus.EXITED)
    with pytest.raises(RemoteAPIError, match="STDIN_NOT_WRITABLE"):
        sandbox.write_stdin(process.pid, b"more")


def test_a_process_without_a_pipe_takes_no_input(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    process = sandbox.start_process("sleep", ["60"]).value
    with pytest.raises(RemoteAPIError, match="STDIN_NOT_WRITABLE"):
        sandbox.write_stdin(process.pid, b"x")


def test_output_is_kept_by_stream_and_followed_to_its_end(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    script = "echo a; echo b >&2; sleep 0.2; echo c"
    process = sandbox.start_process("sh", ["-c", script]).value
    followed = [(event.stream, event.line) for event in sandbox.follow_output(process.pid)]
    assert sorted(followed) == [("stderr", "b"), ("stdout", "a"), ("stdout", "c")]
    assert [event.line for event in sandbox.follow_stdout(process.pid)] == ["a", "c"]
    assert sandbox.get_stdout(process.pid).value.lines == ["a", "c"]
    assert sandbox.get_stderr(process.pid).value.lines == ["b"]
    assert sandbox.get_output(process.pid).value.line_count == 3


def test_discarded_output_is_not_kept(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    body = {"command": "echo", "args": ["x"], "stdout_mode": "discard"}
    pid = stage.inside(sandbox, "POST", "/api/v1/processes", json=body).json()["pid"]
    until(lambda: sandbox.get_process(pid).value.status is ProcessStatus.EXITED)
    assert sandbox.get_output(pid).value.lines == []


def test_a_named_process_is_found_by_name_and_runs_once(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    first = sandbox.start_process("sleep", ["60"], name="web 1", restart=NEVER).value
    with pytest.raises(RemoteAPIError) as refusal:
        sandbox.start_process("sleep", ["61"], name="web 1", restart=NEVER)
    assert refusal.value.status_code == 409
    assert sandbox.get_process("web 1").value.pid == first.pid
    sandbox.kill_process("web 1")
    killed = sandbox.get_process("web 1").value
    assert (killed.status, killed.signal) == (ProcessStatus.SIGNALED, 15)
    assert killed.managed is not None and str(killed.managed.status.value) == "stopped"
    second = sandbox.start_process("sleep", ["62"], name="web 1", restart=NEVER).value
    assert sandbox.get_process("web 1").value.pid == second.pid
    assert [process.args for process in sandbox.list_processes()] == [["62"]]


def test_signals_go_to_the_group_and_kill_is_final(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    script = "trap 'echo caught; exit 7' TERM; sleep 60 & wait"
    process = sandbox.start_process("sh", ["-c", script]).value
    time.sleep(0.1)
    sandbox.send_signal(process.pid, 15)
    until(lambda: sandbox.get_process(process.pid).value.exit_code == 7)
    assert sandbox.get_output(process.pid).value.lines == ["caught"]
    stubborn = sandbox.start_process("sh", ["-c", "trap '' TERM; sleep 60"]).value
    sandbox.kill_process(stubborn.pid)
    assert sandbox.get_process(stubborn.pid).value.signal == 9
    with pytest.raises(RemoteAPIError) as gone:
        sandbox.send_signal(stubborn.pid, 15)
    assert gone.value.status_code == 400


def test_a_process_that_is_not_there_is_a_404(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    for call in (sandbox.get_process, sandbox.kill_process, sandbox.get_output, sandbox.close_stdin):
        with pytest.raises(RemoteAPIError) as missing:
            call(4242)
        assert missing.value.status_code == 404


def test_an_isolated_process_is_one_user_without_capabilities(each_level: TensorlakeStage) -> None:
    if not each_level.service.ready["isolation"]["isolated"]:
        pytest.skip("this level says that it is not isolated")
    sandbox = each_level.named()
    facts = out(sandbox, "id -u; hostname; grep CapEff /proc/self/status; ls /proc | grep -c '^[0-9]*$'")
    uid, host, capabilities, processes = facts.splitlines()
    assert (uid, host, capabilities.split()[1]) == ("1000", sandbox.name, "0" * 16)
    assert int(processes) < 8


def test_root_is_run_as_the_one_user_and_marked(stage: TensorlakeStage) -> None:
    sandbox = stage.named(image=None)
    started = stage.inside(sandbox, "POST", "/api/v1/processes", json={"command": "true", "user": "root"}).json()
    assert "note" not in started  # The built-in image's user is called root.
    answer = stage.inside(sandbox, "POST", "/api/v1/processes", json={"command": "true", "user": "postgres"})
    assert answer.status_code == 400 and "postgres" in answer.json()["error"]


def test_the_supervisor_cannot_be_read_or_reached_from_inside(stage: TensorlakeStage) -> None:
    if not stage.service.ready["isolation"]["isolated"]:
        pytest.skip("this level says that it is not isolated")
    sandbox = stage.named()
    for command in ("cat /proc/1/environ", "cat /proc/1/mem", "readlink /proc/1/fd/3", "readlink /proc/1/exe"):
        assert sandbox.run("sh", ["-c", command]).exit_code != 0, command
    # Nothing of the sandbox reaches the descriptors of the supervisor in a child of its own.
    assert out(sandbox, "ls /proc/self/fd | wc -l").strip() in ("3", "4")
    assert sandbox.run("sh", ["-c", "kill -9 1; kill -STOP 1; sleep 0.1"]).exit_code is not None
    assert out(sandbox, "echo alive") == "alive"


def test_health_and_info_count_processes(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    sandbox.start_process("sleep", ["60"])
    sandbox.run("true")
    assert sandbox.health().value.healthy
    info = sandbox.daemon_info().value
    assert (info.running_processes, info.total_processes) == (1, 2)


def test_long_output_and_odd_bytes_arrive_whole(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    result = sandbox.run("sh", ["-c", "seq 1 20000; printf 'a\\377b\\n\\n'; head -c 300000 /dev/zero | tr '\\0' x"])
    lines = result.stdout.split("\n")
    assert len(lines) == 20_003 and lines[19_999] == "20000"
    assert (lines[20_000], lines[20_001], len(lines[20_002])) == ("a\ufffdb", "", 300_000)


def test_the_async_client_does_the_same(stage: TensorlakeStage) -> None:
    async def play() -> None:
        sandbox = await AsyncSandbox.create(name=stage.name(), **stage.sdk)
        result = await sandbox.run("sh", ["-c", "echo $A"], env={"A": "1"})
        assert result.stdout == "1"
        process = await sandbox.start_process("sleep", ["60"], name="s", restart=NEVER)
        await sandbox.kill_process("s")
        info = await sandbox.get_process(process.pid)
        assert info.signal == 15
        await sandbox.terminate()

    asyncio.run(play())


def test_a_client_that_hangs_up_leaves_its_run_running(stage: TensorlakeStage) -> None:
    sandbox = stage.named()

    async def play() -> None:
        handle = await AsyncSandbox.connect(sandbox.sandbox_id, **stage.sdk)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle.run("sh", ["-c", "sleep 0.6; touch /workspace/done"]), 0.2)

    asyncio.run(play())
    until(lambda: sandbox.run("test", ["-e", "/workspace/done"]).exit_code == 0)


def test_tunnels_say_that_they_are_not_supported(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    for path in ("/api/v1/tunnels/tcp?port=80",):
        answer = stage.inside(sandbox, "POST", path, json={})
        assert (answer.status_code, answer.json()["code"]) == (501, "NOT_SUPPORTED_OFFLINE")
