"""Two kinds of serving at once against one environment: a poller and a server that gets every webhook."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.faults.test_claims_under_faults import PROMPT, runs
from tests.support.checkout import copy_checkout
from tests.support.preloaded import Preloaded
from tests.support.serving import webhooks_to
from tests.support.signing import KEY
from tests.support.world import Place


@contextlib.contextmanager
def operator(checkout: Path, place: Place, *args: str, until: str) -> Iterator[str]:
    """One of the operator's commands, from a checkout without keys of its own; yields the line that holds `until`.

    At the end it gets SIGTERM and must end with 0.
    """
    environ = {"PATH": os.environ["PATH"], "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY, **place.environ}
    command = ["-m", "infra.cli", *args]
    with Preloaded(command, cwd=checkout, env=environ, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next((line for line in process.stderr if until in line), None)
            assert line is not None, f"{args[0]} ended before it served"
            yield line
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()


def test_i3_i8_a_poller_and_a_server_serve_each_session_once(place: Place, tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path)
    with (
        operator(checkout, place, "poll", until="Polling"),
        operator(checkout, place, "serve", "--host", "127.0.0.1", "--port", "0", until="webhook  ") as line,
    ):
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert address is not None
        with webhooks_to(place, address[0]):
            sessions = [place.session(PROMPT) for _ in range(4)]
            for session in sessions:
                place.wait_done(session)
    for session in sessions:
        assert runs(place, session) == ["ran"]
        assert len(place.items(session)) == 1
    assert {box["name"] for box in place.sandboxes()} == {place.sandbox(session) for session in sessions}
    assert len(place.sandboxes()) == len(sessions)
