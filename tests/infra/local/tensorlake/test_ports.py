"""User ports through the platform."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from tensorlake.sandbox import Sandbox, SandboxStatus

from tests.infra.local.tensorlake.conftest import TensorlakeStage
from tests.support.ports import free_port
from tests.support.waiting import until

SERVER = """
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = f"{self.command} {self.path} {self.headers['x-mine']} ".encode() + body
        self.send_response(201); self.send_header("content-length", str(len(answer))); self.end_headers()
        self.wfile.write(answer)
    def do_GET(self):
        self.send_response(200); self.send_header("transfer-encoding", "chunked"); self.end_headers()
        for part in (b"one", b"two"):
            self.wfile.write(b"3\\r\\n" + part + b"\\r\\n"); self.wfile.flush()
        self.wfile.write(b"0\\r\\n\\r\\n")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""
PYTHON = "/opt/hands/venv/bin/python"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def served(stage: TensorlakeStage, port: int) -> Iterator[Sandbox]:
    sandbox = stage.named(exposed_ports=[port])
    sandbox.write_file("/workspace/server.py", SERVER.encode())
    sandbox.start_process(PYTHON, ["/workspace/server.py", str(port)])
    path = f"/_ports/{sandbox.sandbox_id}/{port}/"
    until(lambda: stage.raw.get(path).status_code == 200, "the server in the sandbox does not listen")
    yield sandbox


def test_a_port_is_reached_by_path_and_by_host_with_any_method(
    stage: TensorlakeStage, served: Sandbox, port: int
) -> None:
    answer = stage.raw.post(f"/_ports/{served.name}/{port}/a/b?c=d", content=b"body", headers={"x-mine": "m"})
    assert (answer.status_code, answer.text) == (201, "POST /a/b?c=d m body")
    url = served.info().url_for_port(port)
    assert url.startswith(f"http://{port}-{served.sandbox_id}.localhost:")
    by_host = stage.raw.get("/", headers={"host": url.removeprefix("http://")})
    assert (by_host.status_code, by_host.text) == (200, "onetwo")
    rows = stage.raw.get("/emulator/ports").json()["ports"]
    assert rows[0]["url"].endswith(f"/_ports/{served.name}/{port}") and rows[0]["needs_api_key"] is True


def test_a_port_wakes_a_sleeper_if_it_may(stage: TensorlakeStage, served: Sandbox, port: int) -> None:
    path = f"/_ports/{served.sandbox_id}/{port}/"
    assert stage.raw.get(path).status_code == 200
    served.suspend()
    assert stage.raw.get(path).text == "onetwo"
    assert served.status is SandboxStatus.RUNNING
    served.update(auto_resume=False)
    served.suspend()
    assert stage.raw.get(path).status_code == 409


def test_a_port_needs_the_key_unless_it_is_public(stage: TensorlakeStage, served: Sandbox, port: int) -> None:
    path = f"/_ports/{served.sandbox_id}/{port}/"
    assert stage.raw.get(path, headers={"authorization": ""}).status_code == 401
    served.update(allow_unauthenticated_access=True)
    assert stage.raw.get(path, headers={"authorization": ""}).status_code == 200


def test_a_port_that_is_not_exposed_or_not_listened_on_is_refused(
    stage: TensorlakeStage, served: Sandbox, port: int
) -> None:
    assert stage.raw.get(f"/_ports/{served.sandbox_id}/{port + 1}/").status_code == 403
    served.update(exposed_ports=[1])
    answer = stage.raw.get(f"/_ports/{served.sandbox_id}/1/")
    assert (answer.status_code, answer.json()["code"]) == (502, "PORT_UNREACHABLE")


def test_a_body_over_the_cap_is_a_413(stage: TensorlakeStage, served: Sandbox, port: int) -> None:
    stage.settings(max_port_body_bytes=10)
    assert stage.raw.post(f"/_ports/{served.sandbox_id}/{port}/", content=b"x" * 11).status_code == 413


def test_somebody_elses_server_never_answers_for_a_sandbox(stage: TensorlakeStage, served: Sandbox, port: int) -> None:
    other = stage.named(exposed_ports=[port])
    assert stage.raw.get(f"/_ports/{served.name}/{port}/").status_code == 200
    answer = stage.raw.get(f"/_ports/{other.name}/{port}/")
    assert answer.status_code == 502 and "another program" in answer.json()["error"]
    with socket.create_server(("127.0.0.1", 0)) as mine:
        taken = mine.getsockname()[1]
        other.update(exposed_ports=[taken])
        assert stage.raw.get(f"/_ports/{other.name}/{taken}/").status_code == 502
