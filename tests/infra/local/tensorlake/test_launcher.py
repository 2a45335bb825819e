"""A worker that the launcher starts finds what one finds that an interpreter of its own starts."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tensorlake.sandbox import Sandbox

from infra.local.tensorlake.layers import VENV
from tests.infra.local.tensorlake.conftest import TensorlakeStage
from tests.support.preloaded import launcher
from tests.support.waiting import until

PYTHON: Final = f"{VENV}/bin/python"
ARCHIVE: Final = "/tmp/facts.pyz"
FACTS: Final = r"""
import ctypes, gc, importlib.metadata, json, os, signal, stat, subprocess, sys
gc.disable()
if sys.argv[0] != __file__.rpartition("/")[0]:
    sys.exit("another program runs")
import anthropic
import anyio.streams.file as late  # of a package that was imported elsewhere, perhaps
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
environ = dict(os.environ)
find = "import importlib.util; print(importlib.util.find_spec('anthropic').origin)"
child = subprocess.run([sys.executable, "-I", "-c", find], capture_output=True)
def links():
    for number in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            yield os.readlink("/proc/self/fd/" + number)
        except OSError:  # the one that the folder was read with
            pass
print(json.dumps({
    "argv": sys.argv,
    "program": [sys.executable, sys.prefix, sys.exec_prefix],
    "path": [each for each in sys.path if each.startswith(("/opt/hands", "/tmp"))],
    "anthropic": [anthropic.__file__, late.__file__, importlib.metadata.version("anthropic"), child.stdout.decode()],
    "environ": {name: environ[name] for name in sorted(environ)},
    "ids": [os.getresuid(), os.getresgid(), status["Groups"]],
    "status": {name: status[name].strip() for name in status if name.startswith("Cap") or name == "NoNewPrivs"},
    "session": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid(), os.getppid()],
    "named": status["Pid"].strip() == str(os.getpid()) == os.readlink("/proc/self"),
    "folder": os.getcwd(),
    "root": sorted(os.listdir("/")),
    "host": os.uname().nodename,
    "umask": os.umask(0),
    "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
    # But for the archive, which an interpreter keeps open as often as its importers read it.
    "descriptors": [link.partition(":")[0] for link in links() if link != sys.argv[0]],
    "streams": [stat.S_IFMT(os.fstat(number).st_mode) for number in range(3)],
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
    # Not SIGHUP, the lowest bit: whoever starts the tests under nohup has it ignored.
    "blocked": [int(status[name], 16) & ~1 for name in ("SigBlk", "SigIgn")],
}))
gc.freeze()  # nothing is taken down at the end
"""


def archive(program: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("__main__.py", program)
    return buffer.getvalue()


@pytest.fixture
def launching(stage: TensorlakeStage) -> Iterator[TensorlakeStage]:
    """Sandboxes get their workers from the launcher."""
    if stage.level == "plain":
        pytest.skip("sandboxes are not isolated here")
    stage.settings(launcher=launcher())
    yield stage


def started(sandbox: Sandbox, program: str, **options: Any) -> int:
    sandbox.write_file(ARCHIVE, archive(program))
    pid: int = sandbox.start_process(PYTHON, ["-I", ARCHIVE], **options).pid
    return pid


def ended(sandbox: Sandbox, pid: int) -> Any:
    return until(lambda: (info := sandbox.get_process(pid)).exit_code is not None and info, "it did not end")


def facts(stage: TensorlakeStage) -> dict[str, Any]:
    sandbox = stage.create(name="facts-of-a-worker")
    pid = started(sandbox, FACTS, env={"GIVEN": "word", "HOME": "/tmp"}, working_dir="/srv")
    assert ended(sandbox, pid).exit_code == 0, sandbox.get_stderr(pid).lines
    (line,) = sandbox.get_stdout(pid).lines
    told: dict[str, Any] = json.loads(line)
    sandbox.terminate()
    return told


def test_a_launched_worker_finds_what_an_interpreter_would(launching: TensorlakeStage) -> None:
    launched = facts(launching)
    launching.settings(launcher=None)
    assert launched == facts(launching)
    assert launched["argv"] == [ARCHIVE]
    assert launched["dumpable"] == 0, "its user could read its memory"


def test_a_launched_worker_is_there_for_signals_input_and_output(launching: TensorlakeStage) -> None:
    sandbox = launching.named()
    program = "import sys; print('asked', flush=True); print(sys.stdin.readline().upper()); sys.exit(7)"
    pid = started(sandbox, program, stdin_mode="pipe")
    until(lambda: sandbox.get_stdout(pid).lines == ["asked"], "it asked for nothing")
    sandbox.write_stdin(pid, b"word\n")
    assert ended(sandbox, pid).exit_code == 7
    assert sandbox.get_stdout(pid).lines[:2] == ["asked", "WORD"]
    pid = started(sandbox, "import time; print('here', flush=True); time.sleep(600)")
    until(lambda: sandbox.get_stdout(pid).lines == ["here"], "it did not begin")
    sandbox.send_signal(pid, 15)
    assert until(lambda: sandbox.get_process(pid).signal, "it did not end") == 15


def test_a_sandbox_without_its_launcher_says_so(stage: TensorlakeStage, tmp_path: Path) -> None:
    if stage.level == "plain":
        pytest.skip("sandboxes are not isolated here")
    stage.settings(launcher=str(tmp_path / "nobody"))
    created = stage.post("/sandboxes", {"name": "without"}).json()
    row = until(
        lambda: next(
            row
            for row in stage.admin.get("state")["sandboxes"]
            if row["id"] == created["sandbox_id"] and row["status"] not in ("pending", "running")
        ),
        "it runs",
    )
    assert "nobody who starts workers listens at" in json.dumps(row)
