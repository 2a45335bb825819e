"""Races with a record where the runtime freezes after an answer, and which of them an agent may read."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from starlette.testclient import TestClient

from functions.aws_lambda import LambdaProcess
from functions.fork_best_of_n import fork_best_of_n
from functions.race_wishes import LONGEST_WAIT, HeaderWishes, digest_of, wishes_of
from functions.state import STATE, FunctionsState
from shared import names
from shared.capability import issue, signing_key
from shared.ports import ItemState
from shared.races.records import MOST_BYTES, packed
from shared.races.report import Artifact, BranchReport, RaceReport
from shared.service import Service
from shared.settings import Settings
from tests.functions.test_agent_auth import CAPABILITY, ENVIRON, RACE, SESSION, Listed, item, listing
from tests.support.fake_host import FakeHost
from tests.support.lambda_events import LambdaContext, http
from tests.support.serving import TOKEN

OTHER: Final = "sesn_0a1B2c3E"
OPERATOR: Final = {"authorization": f"Bearer {TOKEN}"}


def agent(session_id: str = SESSION) -> dict[str, str]:
    capability = CAPABILITY._replace(session_id=session_id, work_id=f"work of {session_id}")
    return {"authorization": f"Bearer {issue(capability, signing_key(TOKEN))}"}


@contextlib.contextmanager
def served(*, lives_on: bool = True, **extra: str) -> Iterator[TestClient]:
    host = FakeHost(latency=0.001)
    for session_id in (SESSION, OTHER):
        host.add(names.sandbox_name("hands", "env_1", session_id))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
        service = Service(Settings.from_environ({**ENVIRON, **extra}))
        service.host = host
        rows = [item(ItemState.ACTIVE, f"work of {session}", session) for session in (SESSION, OTHER)]
        service.queue = lambda environment: Listed(listing(*rows))  # type: ignore[method-assign]  # the one seam for a queue
        yield {STATE: FunctionsState(service, background=lives_on)}

    paths = ("/fork_best_of_n", "/fork_best_of_n/{race_id}")
    routes = [Route(path, fork_best_of_n, methods=["GET", "POST", "DELETE"]) for path in paths]
    with TestClient(Starlette(routes=routes, lifespan=lifespan)) as http:
        yield http


def post(http: TestClient, headers: Mapping[str, str], body: Mapping[str, Any] = RACE, **more: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in more.items()}
    return http.post("/fork_best_of_n", json=dict(body), headers={**headers, **named})


def test_an_agent_reads_and_ends_the_races_of_its_own_session_and_the_operator_all() -> None:
    with served() as http:
        mine = post(http, agent(), prefer="respond-async")
        assert mine.status_code == 202
        where = f"/fork_best_of_n/{mine.json()['race_id']}"
        operators = post(http, OPERATOR, {**RACE, "source": {"session_id": SESSION}}, prefer="respond-async")
        answers = [http.get(where, headers=headers) for headers in (agent(), OPERATOR, agent(OTHER))]
        assert [each.status_code for each in answers] == [200, 200, 404]
        others = f"/fork_best_of_n/{operators.json()['race_id']}"
        assert http.get(others, headers=agent()).status_code == 404
        ended = [http.delete(where, headers=agent(OTHER)), http.delete(others, headers=agent())]
        assert [each.status_code for each in ended] == [404, 404]
        assert http.delete(where, headers=agent()).status_code in (200, 202)


def test_two_callers_may_use_one_key() -> None:
    with served() as http:
        answers = [
            post(http, agent(), idempotency_key="mine"),
            post(http, agent(OTHER), idempotency_key="mine"),
            post(http, OPERATOR, {**RACE, "source": {"session_id": SESSION}}, idempotency_key="mine"),
        ]
    assert [each.status_code for each in answers] == [200] * 3
    assert len({each.json()["race_id"] for each in answers}) == 3


def test_where_the_runtime_freezes_nothing_is_begun_behind_an_answer_and_a_key_is_kept() -> None:
    body = {**RACE, "source": {"session_id": SESSION}}
    with served(lives_on=False) as http:
        refused = post(http, OPERATOR, body, prefer="respond-async")
        assert (refused.status_code, refused.json()["error"]["type"]) == (501, "not_available_here")
        first, repeat = (post(http, OPERATOR, body, idempotency_key="k").json() for _ in range(2))
        assert first == repeat and first["winner"]
        told = http.get(f"/fork_best_of_n/{first['race_id']}", headers=OPERATOR).json()
    assert (told["state"], told["report"]) == ("finished", first)


def test_on_lambda_a_key_finds_the_race_again_and_its_location_is_read() -> None:
    host = FakeHost(latency=0.001)
    host.add(names.sandbox_name("hands", "env_1", SESSION))

    def make(settings: Settings) -> Service:
        service = Service(settings)
        service.host = host
        return service

    process = LambdaProcess(ENVIRON, make)
    body = json.dumps({**RACE, "source": {"session_id": SESSION}}).encode()

    def call(event: dict[str, Any]) -> tuple[int, Any]:
        answer = process.invoke(event, LambdaContext(120.0), fork_best_of_n)
        return answer["statusCode"], json.loads(answer["body"])

    try:
        first, repeat = (call(http(body, {**OPERATOR, "idempotency-key": "k"})) for _ in range(2))
        told = call(http(b"", OPERATOR, method="GET", path=f"/{first[1]['race_id']}"))
        assert call(http(body, {**OPERATOR, "prefer": "respond-async"}))[0] == 501
    finally:
        process.close()
    assert first == repeat and first[0] == 200
    assert told[0] == 200 and told[1]["report"] == first[1]


def test_the_report_of_every_race_is_kept_where_the_operator_says_so_and_is_its_askers() -> None:
    for kept, answers in (("all", [200, 404]), ("", [404, 404])):
        with served(lives_on=False, RACE_REPORTS=kept, DRAIN_MODE="inline") as http:
            plain = post(http, agent())
            assert plain.status_code == 200
            where = f"/fork_best_of_n/{plain.json()['race_id']}"
            assert [http.get(where, headers=agent(each)).status_code for each in (SESSION, OTHER)] == answers
            if kept:
                told = http.get(where, headers=OPERATOR).json()
                assert (told["state"], told["report"]) == ("finished", plain.json())
                dry = post(http, agent(), {**RACE, "dry_run": True}).json()["race_id"]
                assert http.get(f"/fork_best_of_n/{dry}", headers=OPERATOR).status_code == 404


def test_a_dry_run_leaves_no_record() -> None:
    with served() as http:
        answer = post(http, agent(), {**RACE, "dry_run": True}, prefer="respond-async", idempotency_key="dry")
        assert (answer.status_code, answer.json()["dry_run"]) == (200, True)
        assert http.get(f"/fork_best_of_n/{answer.json()['race_id']}", headers=agent()).status_code == 404


def wishes(*headers: tuple[str, str]) -> HeaderWishes:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return wishes_of(Request({"type": "http", "headers": raw}))


def test_preferences_are_read_as_their_standard_says() -> None:
    assert wishes() == HeaderWishes()
    assert wishes(("prefer", "return=minimal, Respond-Async; foo=1, wait=7")) == HeaderWishes(None, True, 7.0)
    assert wishes(("prefer", "wait=999999999"), ("prefer", "respond-async")) == HeaderWishes(None, True, LONGEST_WAIT)
    assert wishes(("prefer", "respond-asynchronously, wait=soon")) == HeaderWishes()
    assert (
        wishes(("idempotency-key", '"8e03978e"')) == wishes(("idempotency-key", "8e03978e")) == HeaderWishes("8e03978e")
    )


def test_a_body_is_the_same_in_any_order_and_spacing() -> None:
    assert digest_of(b'{"n": 1, "env": {"a": "b"}}') == digest_of(b'{"env":{"a":"b"},"n":1}')
    assert digest_of(b'{"n": 1}') != digest_of(b'{"n": 2}')


def test_a_report_that_is_too_large_is_kept_without_its_files() -> None:
    patch = base64.b64encode(random.Random(1).randbytes(2 * MOST_BYTES)).decode()  # no secret
    branch = BranchReport(
        name="a", index=0, status="ok", score=1.0, diff=patch, artifacts=(Artifact(path="x", size=3, base64="QUJD"),)
    )
    report = RaceReport(
        race_id="r", winner="a", branches=(branch,), checkpoint=None, reaped=(), leftovers=(), timeline=(), seconds=1.0
    )
    kept = json.loads(zlib.decompress(packed(report)))["branches"][0]
    assert (kept["diff"], kept["score"], kept["artifacts"][0]["base64"]) == ("", 1.0, None)
    assert "too large" in kept["diff_reason"] and "too large" in kept["artifacts"][0]["truncated"]
