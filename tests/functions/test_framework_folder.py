"""Started as its own documentation shows, inside the folder of the function, no module of ours hides the library's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import httpx2
import pytest

from tests.support.ports import free_port
from tests.support.waiting import until
from tests.support.world import ROOT


@pytest.mark.parametrize("target", ["on_run_started", "poll_tick", "fork_best_of_n", "bundle"])
def test_the_framework_serves_from_inside_the_functions_folder(target: str) -> None:
    port = free_port()
    command = ["-m", "functions_framework", "--target", target, "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT / "functions",
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

    def answered() -> int | None:
        assert process.poll() is None, (process.stdout.read() if process.stdout else b"").decode()
        try:
            return httpx2.post(f"http://127.0.0.1:{port}/", content=b"{}", timeout=10).status_code
        except httpx2.TransportError:
            return None

    try:
        assert until(answered, "the framework did not answer") == 503  # nothing is configured, and it says so
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
