"""fork_best_of_n over HTTP: every answer that it may give."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message

from functions.fork_best_of_n import fork_best_of_n
from functions.state import STATE, FunctionsState
from functions.streaming import MOST_WAITING, Lines, LineStream
from shared import names
from shared.ports import CommandOutput, SandboxSpec
from shared.races import events
from shared.service import Service
from shared.settings import Settings
from tests.support.fake_host import FakeCall, FakeFault, FakeHost, Method
from tests.support.serving import TOKEN, UVICORN, serving
from tests.support.waiting import PATIENCE, until
from tests.support.world import IMAGE, Place

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
EQUALS: Final = ("b0", "b1")
"""Branches of `GOOD`: nothing but their speed on this machine decides between them."""


def application(host: FakeHost, environ: Mapping[str, str], *, background: bool = False) -> Starlette:
    """The function alone on every method, on this host. `background`: it lives on after an answer."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
        service = Service(Settings.from_environ(environ))
        service.host = host
        yield {STATE: FunctionsState(service, background=background)}

    every = ["GET", "POST", "PUT", "DELETE", "PATCH"]
    paths = ("/fork_best_of_n", "/fork_best_of_n/{race_id}")
    return Starlette(routes=[Route(path, fork_best_of_n, methods=every) for path in paths], lifespan=lifespan)


@contextlib.contextmanager
def client(host: FakeHost | None = None, **extra: str) -> Iterator[TestClient]:
    made = host or FakeHost(latency=0.001)
    if host is None:
        made.add(names.sandbox_name("hands", "env_1", SESSION))
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
    assert report["winner"] in EQUALS
    assert [branch["status"] for branch in report["branches"]] == ["ok", "ok"]
    assert report["leftovers"] == []


def test_a_race_that_nobody_won_is_a_report_too() -> None:
    async def program(call: FakeCall) -> CommandOutput:
        return CommandOutput(1, "", "", timed_out=False)

    host = FakeHost(latency=0.001, program=program)
    host.add(names.sandbox_name("hands", "env_1", SESSION))
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


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"n": 1e', b"nul", b"[]", b'"{}"'])
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
    host.add(names.sandbox_name("hands", "env_2", SESSION))
    with client(host, ENVIRONMENTS_FILE=str(file)) as http:
        assert post(http).json()["error"]["field"] == "environment_id"
        assert post(http, {**GOOD, "environment_id": "env_1"}).status_code == 404
        assert post(http, {**GOOD, "environment_id": "env_2"}).status_code == 200


def events_of(answer: httpx2.Response | httpx2.Response) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in answer.text.split("\n") if line]
    assert [events.from_line(json.dumps(line)).model_dump(mode="json") for line in lines] == lines
    return lines


def test_what_happens_is_streamed_and_the_report_comes_last() -> None:
    with client() as http:
        answer = post(http, accept="application/x-ndjson")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    first, *between, last = events_of(answer)
    assert (first["event"], first["branches"]) == ("race", ["b0", "b1"])
    assert (last["event"], last["report"]["race_id"]) == ("report", first["race_id"])
    assert last["report"]["winner"] in EQUALS
    told = [(each["branch"], each["phase"]) for each in between if each["event"] == "phase"]
    assert told[:2] == [(None, "source"), (None, "checkpoint")]
    assert [phase for branch, phase in told if branch == "b1"] == ["boot", "files", "run", "judge"]
    decided = [each["report"] for each in between if each["event"] == "branch"]
    assert sorted(decided, key=lambda report: report["index"]) == last["report"]["branches"]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("application/json, application/x-ndjson;q=0.5", "application/json"),
        ("application/x-ndjson, application/json;q=0.5", "application/x-ndjson"),
        ("Application/X-NDJSON", "application/x-ndjson"),
        ("text/html, */*;q=0.1", "application/json"),
    ],
)
def test_the_caller_says_which_kind_of_answer(accept: str, kind: str) -> None:
    with client() as http:
        assert post(http, accept=accept).headers["content-type"] == kind


@pytest.mark.parametrize("accept", ["text/html", "application/x-ndjson;q=0", "application/json;q=none"])
def test_another_kind_of_answer_there_is_not(accept: str) -> None:
    with client() as http:
        assert post(http, accept=accept).status_code == 406


def test_what_is_known_before_the_first_event_keeps_its_status() -> None:
    stream = {"accept": "application/x-ndjson"}
    with client(FakeHost(latency=0.001)) as http:
        assert post(http, **stream).status_code == 404
        assert post(http, {**GOOD, "deadline": 1e5}, **stream).json()["error"]["field"] == "deadline"
        unknown = {**GOOD, "judge": {"type": "plugin", "name": "none"}}
        assert post(http, unknown, **stream).json()["error"]["field"] == "judge.name"
    with client(RACE_JUDGES="broken=no_such_module:judge") as http:
        answer = post(http, {**GOOD, "judge": {"type": "plugin", "name": "broken"}}, **stream)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "not_configured")


def test_what_goes_wrong_after_the_first_event_is_the_last_one() -> None:
    async def program(call: FakeCall) -> CommandOutput:
        return CommandOutput(2, "", "no rule to make target", timed_out=False)

    host = FakeHost(latency=0.001, program=program)
    with client(host) as http:
        answer = post(http, {**GOOD, "source": {"image": "i"}, "setup": "make"}, accept="application/x-ndjson")
    assert answer.status_code == 200
    last = events_of(answer)[-1]
    assert (last["event"], last["error"]["type"]) == ("error", "setup_failed")
    assert last["error"]["message"].endswith("no rule to make target")
    assert host.alive() == []


def test_a_silent_stream_is_kept_alive_and_one_too_slow_to_read_misses_output_only() -> None:
    kept_alive = asyncio.Event()

    async def work(lines: Lines) -> None:
        for number in range(MOST_WAITING + 5):
            lines.say(b"%d\n" % number, spare=number > 0)
        async with asyncio.timeout(PATIENCE):
            await kept_alive.wait()
        lines.say(b"last\n")

    sent: list[bytes] = []

    async def receive() -> Message:
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        if sent[-1] == b"\n":
            kept_alive.set()

    asyncio.run(LineStream(work, keep_alive=0.01)({"type": "http"}, receive, send))
    assert sent[1 : MOST_WAITING + 1] == [b"%d\n" % number for number in range(MOST_WAITING)]
    assert sent[-2:] == [b"last\n", b""]
    assert b"\n" in sent[MOST_WAITING + 1 : -2]


def test_a_source_that_is_not_there_is_a_404() -> None:
    with client(FakeHost(latency=0.001)) as http:
        assert post(http).status_code == 404
        assert post(http, {**GOOD, "source": {"snapshot_id": "none"}}).status_code == 404


@pytest.mark.parametrize(
    ("fault", "status"), [(FakeFault.REFUSED, 409), (FakeFault.LOST_BEFORE, 502), (FakeFault.LOST_AFTER, 502)]
)
def test_a_source_that_cannot_be_checkpointed_is_no_report(fault: FakeFault, status: int) -> None:
    def meet(method: Method, what: str) -> FakeFault | None:
        return fault if method == "snapshot" else None

    host = FakeHost(latency=0.001, meet=meet)
    host.add(names.sandbox_name("hands", "env_1", SESSION))
    with client(host) as http:
        answer = post(http)
    assert answer.status_code == status
    assert "checkpointed" in answer.json()["error"]["message"]


def test_a_setup_that_fails_is_a_422_with_its_output() -> None:
    async def program(call: FakeCall) -> CommandOutput:
        return CommandOutput(2, "", "no rule to make target", timed_out=False)

    host = FakeHost(latency=0.001, program=program)
    with client(host) as http:
        answer = post(http, {**GOOD, "source": {"image": "i"}, "setup": "make"})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].endswith("no rule to make target")
    assert host.alive() == []


@contextlib.contextmanager
def served(host: FakeHost, *, background: bool = False) -> Iterator[str]:
    """The address of the function on a real socket, in a thread."""
    server = uvicorn.Server(
        uvicorn.Config(
            application(host, ENVIRON, background=background),
            host="127.0.0.1",
            port=0,
            log_level="error",
            lifespan="on",
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started, "the server did not start")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/fork_best_of_n"
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


async def for_a_minute(call: FakeCall) -> CommandOutput:
    await asyncio.sleep(60)
    return CommandOutput(0, "", "", timed_out=False)


def test_a_caller_that_hangs_up_ends_the_race() -> None:
    source = names.sandbox_name("hands", "env_1", SESSION)
    host = FakeHost(latency=0.001, program=for_a_minute)
    host.add(source)
    with served(host) as url:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(url, json=GOOD, headers=AUTHORIZED, timeout=1.0, trust_env=False)
        assert len(host.calls) == 2
        until(lambda: host.alive() == [source] and not host.snapshots, "the race went on")


def test_a_caller_that_hangs_up_in_the_middle_of_a_stream_ends_the_race() -> None:
    source = names.sandbox_name("hands", "env_1", SESSION)
    host = FakeHost(latency=0.001, program=for_a_minute)
    host.add(source)
    headers = {**AUTHORIZED, "accept": "application/x-ndjson"}
    with served(host) as url:
        with (
            httpx2.Client(trust_env=False, timeout=20.0) as http,
            http.stream("POST", url, json=GOOD, headers=headers) as answer,
        ):
            for line in answer.iter_lines():
                if json.loads(line).get("phase") == "run":
                    break
        until(lambda: host.alive() == [source] and not host.snapshots, "the race went on")


def _until_output(answer: httpx2.Response) -> Iterator[str]:
    """The lines up to the first that a branch has written."""
    for line in answer.iter_lines():
        yield line
        if '"event":"output"' in line:
            return


def test_a_race_through_the_served_bundle(place: Place) -> None:
    session = "sesn_0123456789AbCdEf"

    async def make() -> None:
        service = Service(place.settings)
        try:
            name = place.sandbox(session)
            await service.host.create(SandboxSpec(name=name, image=IMAGE))
        finally:
            await service.aclose()

    asyncio.run(make())
    body = {"source": {"session_id": session}, "n": 2, "script": "exit {i}", "env": {"SOME": "thing"}}
    with serving(place, UVICORN) as url, httpx2.Client(base_url=url, timeout=60.0, trust_env=False) as http:
        began = time.monotonic()
        answer = http.post("/fork_best_of_n", json=body, headers=AUTHORIZED)
        assert time.monotonic() - began < 50
        headers = {**AUTHORIZED, "accept": "application/x-ndjson"}
        endless = {**body, "script": "echo begun; sleep 60"}
        with http.stream("POST", "/fork_best_of_n", json=endless, headers=headers) as streamed:
            said = [json.loads(line) for line in _until_output(streamed) if line]
        until(lambda: len(place.sandboxes()) == 1, "the race went on when its reader was gone")
    assert said[-1]["line"] == "begun"
    assert answer.status_code == 200
    assert [branch["status"] for branch in answer.json()["branches"]] == ["ok", "failed"]
    assert [box["name"] for box in place.sandboxes()] == [place.sandbox(session)]
