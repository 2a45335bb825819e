"""A forked program is to its parent what an interpreter would be (preloaded.py)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.preloaded import Preloaded, forked_run

SLEEP = "import time; print('up', flush=True); time.sleep(600)"


@pytest.mark.parametrize("code", ["raise SystemExit(7)", "import os; os.kill(os.getpid(), 9)"])
def test_a_program_that_ended_before_its_parent_looked_has_its_own_pid_and_status(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, writes = os.pipe()
    ask = socket.send_fds

    def ask_and_look_away(forker: socket.socket, message: list[bytes], descriptors: Sequence[int], *rest: Any) -> int:
        monkeypatch.setattr(socket, "send_fds", ask)
        sent = ask(forker, message, descriptors, *rest)
        os.close(writes)
        said = os.read(seen, 20)
        assert os.read(seen, 1) == b""  # it has ended
        assert forked_run(["-c", ""]).returncode == 0  # and who forks has said so: it does one thing after the other
        pids.append(int(said))
        return sent

    assert forked_run(["-c", ""]).returncode == 0  # who forks is there
    pids: list[int] = []
    monkeypatch.setattr(socket, "send_fds", ask_and_look_away)
    tell = f"import os; os.write({writes}, b'%d' % os.getpid())"
    process = Preloaded(["-c", f"{tell}; {code}"], pass_fds=[writes])
    os.close(seen)
    assert [process.pid] == pids
    assert process.wait() == (7 if "SystemExit" in code else -signal.SIGKILL)


def test_a_signal_reaches_the_program_and_is_its_status() -> None:
    with Preloaded(["-c", SLEEP], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
