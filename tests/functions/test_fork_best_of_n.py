"""fork_best_of_n over HTTP: every answer that it may give."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

import httpx
import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from functions.bundle import Bundle
from functions.fork_best_of_n import fork_best_of_n
from shared import naming
from shared.ports import CommandOutput, SandboxSpec
from shared.settings import Settings
from tests.support.fake_host import Call, FakeHost, Fault, Method
from tests.support.serving import TOKEN, UVICORN, serving
from tests.support.world import IMAGE, Place, until

SESSION: Final = "sesn_0a1B2c3D"
ENVIRON: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
    "FUNCTIONS_TOKEN": TOKEN,
    "BIND_SECONDS": "1",
}
AUTHORIZED: Final = {"authorization": f"Bearer {TOKEN}"}
GOOD: Final[Mapping[str, Any]] = {"source": {"session_id": SESSION}, "n": 2, "command": ["try"]}


def application(host: FakeHost, environ: Mapping[str, str]) -> Starlette:
    """The function alone on every method, on this host."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
        bundle = Bundle(Settings.from_environ(environ), background=False)
        bundle.host = host
        yield {"bundle": bundle}

    every = ["GET", "POST", "PUT", "DELETE", "PATCH"]
    return Starlette(routes=[Route("/fork_best_of_n", fork_best_of_n, methods=every)], lifespan=lifespan)


@contextlib.contextmanager
def client(host: FakeHost | None = None, **extra: str) -> Iterator[TestClient]:
    made = host or FakeHost(latency=0.001)
    if host is None:
        made.add(naming.sandbox_name("hands", "env_1", SESSION))
    with TestClient(application(made, {**ENVIRON, **extra})) as http:
        yield http


def post(http: TestClient, body: Any = GOOD, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post("/fork_best_of_n", content=content, headers={**AUTHORIZED, **headers})


def test_a_race_is_answered_with_its_report() -> None:
    with client() as http:
        answer = post(http)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    report = answer.json()
    assert report["winner"] == "b0"
    assert [branch["status"] for branch in report["branches"]] == ["ok", "ok"]
    assert report["leftovers"] == []


def test_a_race_that_nobody_won_is_a_report_too() -> None:
    async def program(call: Call) -> CommandOutput:
        return CommandOutput(1, "", "", timed_out=False)

    host = FakeHost(latency=0.001, program=program)
    host.add(naming.sandbox_name("hands", "env_1", SESSION))
    with client(host) as http:
        answer = post(http)
    assert answer.status_code == 200
    assert answer.json()["winner"] is None


def test_the_token_is_asked_for_before_anything_else_is_read() -> None:
    with client() as http:
        for shown in ([], [(b"authorization", b"Bearer wrong")], [(b"authorization", b"Bearer \xff\xfe")]):
            answer = http.post("/fork_best_of_n", content=b"not json", headers=shown)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


def test_without_a_configured_token_it_is_closed() -> None:
    with client(FUNCTIONS_TOKEN="") as http:
        answer = post(http)
    assert answer.status_code == 503
    assert "FUNCTIONS_TOKEN" in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_it_answers_post_only(method: str) -> None:
    with client() as http:
        answer = http.request(method, "/fork_best_of_n", headers=AUTHORIZED)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_body_over_a_mebibyte_is_refused() -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * 65_536

    with client() as http:
        assert post(http, b" " * (1024 * 1024 + 1)).status_code == 413
        assert http.post("/fork_best_of_n", content=endless(), headers=AUTHORIZED).status_code == 413
        assert post(http, json.dumps(GOOD).encode().ljust(1024 * 1024)).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"n": 1e', b"nul"])
def test_what_is_not_json_is_a_400(body: bytes) -> None:
    with client() as http:
        answer = post(http, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 65}, "n"),
        ({"promote": "everything"}, "promote"),
        ({"artifacts": ["/x"]}, "artifacts.0"),
        ({"env": {"a-b": ""}}, "env.a-b"),
        ({"environment_id": "env_2"}, "environment_id"),
        ({"source": {"session_id": "no-prefix"}}, "source.session_id"),
        ({"deadline": 901}, "deadline"),
        ({"max_parallel": 17}, "max_parallel"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], field: str) -> None:
    with client() as http:
        answer = post(http, {**GOOD, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == field
    assert field in answer.json()["error"]["message"]


def test_with_several_environments_the_request_says_which(tmp_path: Any) -> None:
    file = tmp_path / "environments.toml"
    file.write_text('[environments.env_1]\nkey = "no-key"\n[environments.env_2]\nkey = "no-key"\n')
    host = FakeHost(latency=0.001)
    host.add(naming.sandbox_name("hands", "env_2", SESSION))
    with client(host, ENVIRONMENTS_FILE=str(file)) as http:
        assert post(http).json()["error"]["field"] == "environment_id"
        assert post(http, {**GOOD, "environment_id": "env_1"}).status_code == 404
        assert post(http, {**GOOD, "environment_id": "env_2"}).status_code == 200


def test_streamed_progress_is_refused_for_now() -> None:
    with client() as http:
        assert post(http, accept="application/x-ndjson").status_code == 406
        assert post(http, accept="application/x-ndjson, application/json;q=0.5").status_code == 200


def test_a_source_that_is_not_there_is_a_404() -> None:
    with client(FakeHost(latency=0.001)) as http:
        assert post(http).status_code == 404
        assert post(http, {**GOOD, "source": {"snapshot_id": "none"}}).status_code == 404


@pytest.mark.parametrize(("fault", "status"), [(Fault.REFUSED, 409), (Fault.LOST_BEFORE, 502), (Fault.LOST_AFTER, 502)])
def test_a_source_that_cannot_be_checkpointed_is_no_report(fault: Fault, status: int) -> None:
    def meet(method: Method, what: str) -> Fault | None:
        return fault if method == "snapshot" else None

    host = FakeHost(latency=0.001, meet=meet)
    host.add(naming.sandbox_name("hands", "env_1", SESSION))
    with client(host) as http:
        answer = post(http)
    assert answer.status_code == status
    assert "checkpointed" in answer.json()["error"]["message"]


def test_a_setup_that_fails_is_a_422_with_its_output() -> None:
    async def program(call: Call) -> CommandOutput:
        return CommandOutput(2, "", "no rule to make target", timed_out=False)

    host = FakeHost(latency=0.001, program=program)
    with client(host) as http:
        answer = post(http, {**GOOD, "source": {"image": "i"}, "setup": "make"})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].endswith("no rule to make target")
    assert host.alive() == []


def test_a_caller_that_hangs_up_ends_the_race() -> None:
    async def program(call: Call) -> CommandOutput:
        await asyncio.sleep(60)
        return CommandOutput(0, "", "", timed_out=False)

    source = naming.sandbox_name("hands", "env_1", SESSION)
    host = FakeHost(latency=0.001, program=program)
    host.add(source)
    server = uvicorn.Server(
        uvicorn.Config(application(host, ENVIRON), host="127.0.0.1", port=0, log_level="error", lifespan="on")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, 10, "the server did not start")
        port = server.servers[0].sockets[0].getsockname()[1]
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"http://127.0.0.1:{port}/fork_best_of_n", json=GOOD, headers=AUTHORIZED, timeout=1.0, trust_env=False
            )
        assert len(host.calls) == 2
        until(lambda: host.alive() == [source] and not host.snapshots, 10, "the race went on")
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def test_a_race_through_the_served_bundle(place: Place) -> None:
    session = "sesn_0123456789AbCdEf"

    async def make() -> None:
        bundle = Bundle(place.settings, background=False)
        try:
            name = place.sandbox(session)
            await bundle.host.create(SandboxSpec(name=name, image=IMAGE))
        finally:
            await bundle.aclose()

    asyncio.run(make())
    body = {"source": {"session_id": session}, "n": 2, "script": "exit {i}", "env": {"SOME": "thing"}}
    with serving(place, UVICORN) as url, httpx.Client(base_url=url, timeout=60.0, trust_env=False) as http:
        began = time.monotonic()
        answer = http.post("/fork_best_of_n", json=body, headers=AUTHORIZED)
        assert time.monotonic() - began < 50
    assert answer.status_code == 200
    assert [branch["status"] for branch in answer.json()["branches"]] == ["ok", "failed"]
    assert [box["name"] for box in place.sandboxes()] == [place.sandbox(session)]
