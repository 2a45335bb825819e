"""What an unauthenticated caller may hold of a server, over bare sockets: little, and not for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from functions.server import BACKLOG, UVICORN_OPTIONS, http_protocol
from functions.server.descriptors import RESERVED, most_connections
from functions.server.http_protocol import BoundedHttpProtocol

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 30.0
GET = b"GET /now HTTP/1.1\r\nHost: h\r\n\r\n"


@dataclass
class ServedApp:
    """`/slow` is answered once `go` is set; `/refused` at once with 401, its body unread; all else with 200."""

    port: int = 0
    go: threading.Event = field(default_factory=threading.Event)
    running: int = 0

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 200
        if scope["path"] == "/slow":
            self.running += 1
            while not self.go.is_set():
                await asyncio.sleep(0.01)
        elif scope["path"] == "/refused":
            status = 401
        else:
            while (await receive()).get("more_body"):
                pass
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    def connect(self, sent: bytes = b"") -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        made.sendall(sent)
        return made

    def asked(self, request: bytes = GET) -> bytes:
        with self.connect(request) as connection:
            return answer(connection)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedApp]:
    monkeypatch.setattr(http_protocol, "most_connections", lambda _: 10)
    made = ServedApp()
    config = uvicorn.Config(
        made.app,
        interface="asgi3",
        lifespan="off",
        http=BoundedHttpProtocol,
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    serving = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    made.port = listener.getsockname()[1]
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert made.asked().startswith(b"HTTP/1.1 200")
        yield made
    finally:
        made.go.set()
        serving.should_exit = True
        thread.join(PATIENCE)
        listener.close()


def answer(connection: socket.socket) -> bytes:
    """One whole answer of the app's."""
    heard = b""
    while not heard.endswith(b"\r\n\r\nok"):
        part = connection.recv(1)
        assert part, heard
        heard += part
    return heard


def read_to_end(connection: socket.socket) -> bytes:
    """Everything up to the server's close or reset."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65_536):
            heard += part
    return heard


def test_a_header_that_is_never_finished_is_answered_408_and_its_connection_closed(
    server: ServedApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_SECONDS", 0.2)
    for begun in (b"", b"POST / HTTP/1.1\r\nX-Half: "):
        with server.connect(begun) as connection:
            assert read_to_end(connection).startswith(b"HTTP/1.1 408")


def test_bytes_that_trickle_in_do_not_renew_the_time_for_a_header(
    server: ServedApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_SECONDS", 0.5)
    with server.connect(b"GET / HTTP/1.1\r\nX: ") as connection:
        connection.settimeout(0.05)
        end = time.monotonic() + PATIENCE
        heard = b""
        while not heard:
            assert time.monotonic() < end
            connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                heard = connection.recv(100)
        assert heard.startswith(b"HTTP/1.1 408")


def test_the_time_for_a_header_counts_on_a_connection_that_was_used_before(
    server: ServedApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_SECONDS", 0.2)
    with server.connect(GET) as connection:
        assert answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET / HT")
        assert read_to_end(connection).startswith(b"HTTP/1.1 408")


def test_many_connections_without_a_request_leave_room_for_one_with_a_request(server: ServedApp) -> None:
    held = [server.connect(b"POST / HTTP/1.1\r\nX-Half: ") for _ in range(60)]
    try:
        assert server.asked().startswith(b"HTTP/1.1 200")
        assert read_to_end(held[0]) == b""  # the one that had waited longest made room
    finally:
        for each in held:
            each.close()


def test_a_request_that_is_being_served_is_not_given_up_for_newer_connections(server: ServedApp) -> None:
    with server.connect(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n") as first:
        while not server.running:
            time.sleep(0.01)
        held = [server.connect(b"GET / HT") for _ in range(40)]
        server.go.set()
        assert answer(first).startswith(b"HTTP/1.1 200")
        for each in held:
            each.close()


def test_a_server_whose_connections_are_all_served_says_that_it_is_full(server: ServedApp) -> None:
    slow = [server.connect(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n") for _ in range(10)]
    while server.running < 10:
        time.sleep(0.01)
    with server.connect() as late:
        assert read_to_end(late).startswith(b"HTTP/1.1 503")
    server.go.set()
    assert all(answer(each).startswith(b"HTTP/1.1 200") for each in slow)
    for each in slow:
        each.close()


@pytest.mark.parametrize(
    "header, status",
    [
        (b"X: y\r\n" * 2_000, b"400"),
        (b"X: " + b"y" * 300_000, b"431"),
        (b"X: " + b"y" * 300_000 + b"\r\n\r\n", b"400"),
        (b"".join(b"X%d: %s\r\n" % (n, b"y" * 1_000) for n in range(100)) + b"\r\n", b"400"),
    ],
    ids=["many lines", "one line that never ends", "one long line", "many long lines"],
)
def test_a_header_is_bounded_in_bytes_and_lines(server: ServedApp, header: bytes, status: bytes) -> None:
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /now HTTP/1.1\r\nHost: h\r\n" + header)
        assert read_to_end(connection)[:12] in (b"HTTP/1.1 " + status, b"HTTP/1.1 431", b"")


def test_an_ordinary_large_header_passes(server: ServedApp) -> None:
    cookies = b"".join(b"X-Front-%d: %s\r\n" % (n, b"y" * 400) for n in range(50))
    assert server.asked(b"GET /now HTTP/1.1\r\nHost: h\r\n" + cookies + b"\r\n").startswith(b"HTTP/1.1 200")


def test_some_requests_may_wait_behind_another_and_thousands_may_not(server: ServedApp) -> None:
    with server.connect(GET * 3) as connection:
        heard = b""
        while heard.count(b"HTTP/1.1 200") < 3:
            heard += connection.recv(65_536)
    with server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n" * 5_000)
        assert b"HTTP/1.1 400" in read_to_end(connection)
    assert server.running <= 1


def test_whoever_is_refused_before_the_body_reads_the_answer_although_the_body_is_on_its_way(server: ServedApp) -> None:
    with server.connect(b"POST /refused HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n") as connection:
        connection.sendall(b" " * 1_000_000)
        assert answer(connection).startswith(b"HTTP/1.1 401")
        connection.sendall(GET)  # and the connection is good for another request
        assert answer(connection).startswith(b"HTTP/1.1 200")


def test_a_refused_body_that_never_ends_is_not_listened_to_for_long(
    server: ServedApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "LINGER_SECONDS", 0.3)
    endless = b"POST /refused HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n"
    with server.connect(endless) as slow:
        assert answer(slow).startswith(b"HTTP/1.1 401")
        with pytest.raises(ConnectionError):
            while True:
                slow.sendall(b" ")
                time.sleep(0.02)
    with server.connect(endless) as fast, pytest.raises(ConnectionError):
        for _ in range(100):
            fast.sendall(b" " * 1_000_000)


def test_the_descriptor_limit_is_raised_as_far_as_the_system_allows() -> None:
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))\n"
        "from functions.server.descriptors import raise_descriptor_limit\n"
        "assert raise_descriptor_limit(4096) == 512\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, 512)\n"
        "assert raise_descriptor_limit(100) == 512\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=True)


@pytest.mark.parametrize("descriptors, most", [(1024, 512), (100, 50), (65_536, 4_096), (1, 1)])
def test_connections_leave_descriptors_for_everything_else(descriptors: int, most: int) -> None:
    assert most_connections(descriptors) == most


def test_every_place_that_starts_uvicorn_for_others_to_reach_bounds_what_they_hold() -> None:
    wanted = " ".join(UVICORN_OPTIONS)
    for place in ("Dockerfile", "infra/host/serverless-hands.service"):
        text = (ROOT / place).read_text(encoding="utf-8")
        assert text.count("-m uvicorn") == text.count(wanted) > 0, place
    assert "*UVICORN_OPTIONS" in (ROOT / "infra/sandbox/server.py").read_text(encoding="utf-8")
    assert "http=HTTP_PROTOCOL" in (ROOT / "infra/cli/serve.py").read_text(encoding="utf-8")
    assert 4 * BACKLOG <= RESERVED
