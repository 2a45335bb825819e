"""The agent's shell: what it cannot parse it says at once, and what it started outlives the worker."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from image.session.claim import Exit, Word
from image.session.worker.shell import Shell
from tests.image.session.worker.harness import WorkerSandbox, make_claim, sandbox
from tests.image.session.worker.service import WorkService, running
from tests.support.waiting import until


def bash(command: str) -> tuple[str, dict[str, str]]:
    return "bash", {"command": command}


def run(service: WorkService, box: WorkerSandbox) -> list[tuple[bool, str]]:
    """Serves the session's calls; whether each result is an error, and its text."""
    service.ack()
    worker = box.start(make_claim(service.url, box.workdir))
    assert worker.exit(within=60) is Exit.SERVED, worker.report()
    return [(bool(each.get("is_error")), text(each)) for each in service.results]


def text(result: dict[str, object]) -> str:
    content = result["content"]
    assert isinstance(content, list)
    return "".join(part.get("text", "") for part in content)


INCOMPLETE: Sequence[str] = (
    'echo "hello',
    "echo 'hello",
    "echo $(date",
    "echo `date",
    "if true; then echo yes",
    "for i in 1 2; do echo $i",
    "echo a |",
    "echo a &&",
    "(cd /",
    "{ echo a",
    "f() {",
    "echo ${a",
    "case a in a) echo",
    "echo )",
    "fi",
)


@pytest.mark.parametrize("wrong", [INCOMPLETE[:8], INCOMPLETE[8:]], ids=["first half", "second half"])
def test_a_command_that_bash_cannot_parse_is_told_at_once_and_the_shell_lives_on(
    wrong: Sequence[str], tmp_path: Path
) -> None:
    """The SDK's own shell waits 120 s for some of these and is lost after the others: the worker would not end here."""
    calls = [bash("kept=yes")]
    for command in wrong:
        calls += [bash(command), bash("echo alive $kept")]
    with running(tool_calls=calls) as service, sandbox(tmp_path) as box:
        results = run(service, box)[1:]
    for command, (failed, said) in zip(wrong, results[::2], strict=True):
        assert failed, command
        assert "syntax error" in said or "unexpected EOF" in said, (command, said)
    assert results[1::2] == [(False, "alive yes")] * len(wrong)


@pytest.mark.parametrize("command", ["cat <<END\nhello", "echo hello \\", "echo hello # '", "echo hello \\\n\\"])
def test_a_command_that_bash_only_finds_odd_is_run(command: str, tmp_path: Path) -> None:
    with running(tool_calls=[bash(command), bash("echo alive")]) as service, sandbox(tmp_path) as box:
        (failed, said), after = run(service, box)
    assert not failed
    assert "hello" in said
    assert after == (False, "alive")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("echo a\necho 'b c'", "a\nb c"),
        ("cat <<'END'\n$x `y` \"z\"\nEND", '$x `y` "z"'),
        ("# a remark alone", "(no output)"),
        ("echo it\\'s; echo '}'; echo \"'\"", "it's\n}\n'"),
        ("echo to-errors >&2", "to-errors"),
        ("read x; echo [$x]", "[]"),
        ("f() { echo in-f; }; f", "in-f"),
        ("false; echo $?", "1"),
    ],
)
def test_ordinary_commands_mean_what_they_say(command: str, shown: str, tmp_path: Path) -> None:
    with running(tool_calls=[bash(command)]) as service, sandbox(tmp_path) as box:
        assert run(service, box) == [(False, shown)]


def test_a_failing_command_is_an_error_with_its_output(tmp_path: Path) -> None:
    with (
        running(tool_calls=[bash("echo before; exit_status() { return 7; }; exit_status")]) as service,
        sandbox(tmp_path) as box,
    ):
        assert run(service, box) == [(True, "before")]


def test_a_shell_that_redirects_itself_still_answers(tmp_path: Path) -> None:
    calls = [bash("exec >log.txt 2>&1; echo into-the-file"), bash("cat log.txt")]
    with running(tool_calls=calls) as service, sandbox(tmp_path) as box:
        assert run(service, box) == [(False, "(no output)"), (False, "into-the-file")]


def test_extended_patterns_are_accepted_once_the_shell_has_them(tmp_path: Path) -> None:
    calls = [bash("shopt -s extglob; touch a b"), bash("echo !(a)")]
    with running(tool_calls=calls) as service, sandbox(tmp_path) as box:
        assert run(service, box)[1] == (False, "b")


def test_state_of_the_shell_stays_from_call_to_call(tmp_path: Path) -> None:
    calls = [bash("cd /; x=5; export y=6; f() { echo f; }"), bash("echo $PWD $x $(printenv y); f")]
    with running(tool_calls=calls) as service, sandbox(tmp_path) as box:
        assert run(service, box)[1] == (False, "/ 5 6\nf")


@pytest.mark.parametrize("end", ["of its own", "killed"])
def test_a_server_in_the_background_serves_on_when_its_worker_has_ended(end: str, tmp_path: Path) -> None:
    """Each request makes it write a line, into an output that must still be read by somebody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = f"{sys.executable} -m http.server {port} --bind 127.0.0.1 & echo $! >pid"
    idle = 0.1 if end == "of its own" else 60.0
    with running(tool_calls=[bash(start)]) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir, max_idle=idle))
        service.wait_for("/events", count=2)
        if end == "killed":
            until(lambda: service.results)
            worker.process.kill()
        worker.process.wait(30)
        try:
            url, deadline = f"http://127.0.0.1:{port}/{'x' * 400}", time.monotonic() + 20
            answered = 0
            while answered < 300:  # more than a pipe holds, so that somebody must have read
                try:
                    urllib.request.urlopen(url, timeout=5)
                except urllib.error.HTTPError as error:
                    assert error.code == 404
                    answered += 1
                except OSError:
                    assert answered == 0, "the server died"
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
        finally:
            os.kill(int((box.workdir / "pid").read_text()), signal.SIGKILL)


def test_a_background_program_that_writes_much_between_calls_is_not_held_up(tmp_path: Path) -> None:
    chatty = "(head -c 3000000 /dev/zero | tr '\\0' 'x'; touch done) &"
    look = "for i in $(seq 100); do [ -e done ] && break; sleep 0.1; done; ls done"
    with (
        running(tool_calls=[bash(chatty), ("glob", {"pattern": "*"}), bash(look)]) as service,
        sandbox(tmp_path) as box,
    ):
        results = run(service, box)
    failed, said = results[2]
    assert not failed
    assert said.endswith("done")
    assert len(said) < 250_000


def test_a_shell_that_ends_itself_answers_although_something_in_the_background_holds_its_output(
    tmp_path: Path,
) -> None:
    with running(tool_calls=[bash("sleep 300 & echo $! >pid; echo bye; exit 3")]) as service, sandbox(tmp_path) as box:
        assert run(service, box) == [(True, "bye")]
        os.kill(int((box.workdir / "pid").read_text()), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's choice is Linux's")
def test_the_kernel_ends_what_the_agent_runs_before_the_worker(tmp_path: Path) -> None:
    with (
        running(tool_calls=[bash("cat /proc/self/oom_score_adj /proc/$PPID/oom_score_adj")]) as service,
        sandbox(tmp_path) as box,
    ):
        _, said = run(service, box)[0]
    tool, worker = (int(line) for line in said.split())
    assert tool > worker


def test_a_command_that_floods_is_cut_to_its_end(tmp_path: Path) -> None:
    with (
        running(tool_calls=[bash("head -c 5000000 /dev/zero | tr '\\0' 'x'; echo the-end")]) as service,
        sandbox(tmp_path) as box,
    ):
        failed, said = run(service, box)[0]
    assert not failed
    assert said.startswith("[output truncated]")
    assert said.endswith("the-end")
    assert len(said) < 120_000


def test_a_worker_says_ready_with_a_shell_that_has_no_way_to_its_notices(tmp_path: Path) -> None:
    """What the agent runs has neither of the worker's own outputs."""
    forge = 'for fd in /proc/self/fd/*; do echo "{\\"hands\\":1,\\"word\\":\\"ended\\"}" >"$fd"; done 2>/dev/null; true'
    with running(tool_calls=[bash(forge)]) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.SERVED, worker.report()
        assert worker.words() == [Word.READY, Word.LEASED, Word.ENDED]


def test_no_command_begins_after_the_work_was_stopped_though_its_call_was_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shell, "_over", "")

    async def go() -> tuple[str, int]:
        shell = await Shell.start(tmp_path)
        Shell.end("it was stopped")
        try:
            said, code = await shell.exec("touch begun; sleep 600")
        finally:
            await shell.close()
        return said, code

    assert asyncio.run(go()) == ("[it was stopped]", -1)
    assert not (tmp_path / "begun").exists()
