"""The host's own schedule, against a small server, and what it says of a report."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from infra.operator.schedule import remarks, ticking
from shared.models import TickReport
from shared.reconcile.report import Act, ActionReport, ReconcileReport

QUIET = {"drains": [], "reconciled": [], "seconds": 0.0}


class Ticked(ThreadingHTTPServer):
    """Counts the ticks that show the token; answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ticks: list[str | None] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Ticked

    def do_POST(self) -> None:
        self.server.ticks.append(self.headers["authorization"] if self.path == "/poll_tick" else self.path)
        body = json.dumps(QUIET).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def ticked() -> Iterator[Ticked]:
    with Ticked() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def wait_for_ticks(server: Ticked, count: int) -> None:
    end = time.monotonic() + 10
    while len(server.ticks) < count and time.monotonic() < end:
        time.sleep(0.01)


def test_it_ticks_at_once_and_then_again_with_the_token_until_the_block_ends(ticked: Ticked) -> None:
    said: list[str] = []
    with ticking(ticked.url, "the-token", said.append, every=0.02):
        wait_for_ticks(ticked, 3)
    time.sleep(0.2)
    after = len(ticked.ticks)
    time.sleep(0.2)
    assert after >= 3 and len(ticked.ticks) == after
    assert set(ticked.ticks) == {"Bearer the-token"}
    assert said == []


def test_trouble_is_said_once_and_the_schedule_goes_on(ticked: Ticked) -> None:
    said: list[str] = []
    with ticking(ticked.url, "t", said.append, every=0.02):
        wait_for_ticks(ticked, 1)
        ticked.status = 500
        wait_for_ticks(ticked, len(ticked.ticks) + 4)
    assert len(said) == 1 and "status 500" in said[0]


def test_repairs_alarms_and_stuck_sessions_are_said() -> None:
    actions = [
        ActionReport(Act.RELEASE, "work_1", "stranded for 200 s", True),
        ActionReport(Act.SUSPEND, "hands-x", "idle", False, "the service answered 500"),
    ]
    report = TickReport([], [ReconcileReport("env_1", 3, 1, 0, actions, ["sesn_1"], ["look-ups fail"], 0, 0.1)], 0.2)
    lines = list(remarks(json.loads(json.dumps(asdict(report)))))
    assert lines[0] == "repair: release work_1 (stranded for 200 s)"
    assert lines[1].endswith("NOT DONE: the service answered 500")
    assert lines[2] == "ALARM: env_1: look-ups fail"
    assert lines[3].startswith("ALARM: sesn_1 is stuck")
    assert list(remarks(QUIET)) == []
