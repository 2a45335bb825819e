"""Lambda's events, each kind at each entry point: who gets in, what is done, and that it ends in time."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from logging.handlers import MemoryHandler
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from functions import aws_lambda
from functions.aws_lambda import LambdaProcess
from functions.fork_best_of_n import fork_best_of_n
from functions.invocations import BadInvocation, Invocation, NotEnqueued
from functions.lambda_events import UnknownEvent
from functions.on_run_started import on_run_started
from shared.errors import SettingsError
from shared.reports import DrainEnd
from shared.service import Service
from shared.settings import Settings
from tests.support.fake_host import FakeHost
from tests.support.lambda_bench import AUTHORIZED, ENVIRON, LambdaBench
from tests.support.lambda_events import LambdaContext, http, sqs
from tests.support.signing import delivery, signed


@pytest.fixture
def bench() -> Iterator[LambdaBench]:
    bench = LambdaBench()
    yield bench
    bench.process.close()


def test_over_http_a_tick_needs_the_token(bench: LambdaBench) -> None:
    assert bench(http())["statusCode"] == 401
    assert bench(http(headers={"authorization": "Bearer wrong"}))["statusCode"] == 401
    assert bench.done == []
    assert bench(http(headers=AUTHORIZED))["statusCode"] == 200
    assert bench.done == ["tick"]


def test_a_signed_webhook_is_drained_and_a_forged_one_refused(bench: LambdaBench) -> None:
    body = delivery()
    answer = bench(http(body, signed(body)), on_run_started)
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])["drains"][0]["end"] == "empty"
    assert bench(http(body + b" ", signed(body)), on_run_started)["statusCode"] == 401
    assert bench(http(body, signed(body), base64_body=True), on_run_started)["statusCode"] == 200
    assert bench.done == ["drain", "drain"]


def test_a_batch_of_messages_becomes_one_piece_of_work_a_kind_and_bad_ones_are_given_back(bench: LambdaBench) -> None:
    batch = sqs({"do": "drain", "at": 1.0}, {"do": "drain", "at": 2.0}, "no json", {"do": "rm"}, {"do": "tick"}, {})
    assert bench(batch) == {"batchItemFailures": [{"itemIdentifier": "m2"}, {"itemIdentifier": "m3"}]}
    assert sorted(bench.done) == ["drain", "tick"]


def test_only_the_messages_whose_work_failed_are_offered_again(bench: LambdaBench) -> None:
    batch = sqs({"do": "session_over", "session_id": "sesn_bug"}, {"do": "session_over", "session_id": "sesn_1"})
    assert bench(batch) == {"batchItemFailures": [{"itemIdentifier": "m0"}]}
    assert bench.done == ["sesn_1"]


def test_a_drain_that_was_asked_for_before_the_queue_was_seen_empty_is_not_run_again(bench: LambdaBench) -> None:
    long_ago, later = time.time() - 60, time.time() + 60
    bench({"do": "drain", "at": long_ago})
    assert bench.done == ["drain"]
    assert "skipped" in bench({"do": "drain", "at": long_ago})
    assert bench.done == ["drain"]
    bench({"do": "drain", "at": later})
    bench({"do": "drain"})
    assert bench.done == ["drain"] * 3


def test_a_drain_that_ended_early_stands_for_no_other(bench: LambdaBench) -> None:
    bench({})  # makes the service
    bench.services[0].end = DrainEnd.UNAVAILABLE
    for _ in range(2):
        bench({"do": "drain", "at": time.time() - 60})
    assert bench.done == ["tick", "drain", "drain"]


def test_warm_invocations_share_clients_and_stale_ones_are_replaced(
    bench: LambdaBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench({})
    bench({})
    assert len(bench.services) == 1
    hours_later = time.time() + 7200
    monkeypatch.setattr("functions.aws_lambda.time.time", lambda: hours_later)
    bench({})
    assert [service.closed for service in bench.services] == [True, False]


def test_drains_ticks_and_races_are_told_when_the_invocation_ends(bench: LambdaBench) -> None:
    bench({}, seconds=300.0)
    (service,) = bench.services
    assert service.until is not None
    assert 250 < service.until.left() <= 297
    bench({}, seconds=3000.0)
    assert 2950 < service.until.left() <= 2997


def test_an_invocation_that_runs_out_of_time_answers_before_lambda_kills_it(bench: LambdaBench) -> None:
    bench({})
    bench.services[0].work_seconds = 600.0
    body = delivery()
    began = time.monotonic()
    assert bench(http(body, signed(body)), on_run_started, seconds=6.5)["statusCode"] == 504
    with pytest.raises(TimeoutError):
        bench({})  # the new service, so quick
        bench.services[1].work_seconds = 600.0
        bench({"do": "drain"}, seconds=3.5)
    assert time.monotonic() - began < 300  # and not 600
    assert [service.closed for service in bench.services] == [True, True]
    assert asyncio.all_tasks(bench.process._loop) == set()


@pytest.mark.parametrize(
    "seconds, told",
    [
        (3.0, True),
        (12.0, True),
        (aws_lambda.SHORTEST_TIMEOUT - 5.0, True),
        (aws_lambda.SHORTEST_TIMEOUT, False),
        (60.0, False),
    ],
)
def test_a_time_out_in_which_nothing_can_be_claimed_is_named_at_the_first_invocation(
    bench: LambdaBench, caplog: pytest.LogCaptureFixture, seconds: float, told: bool
) -> None:
    with caplog.at_level(logging.ERROR, logger="functions"):
        for _ in range(2):
            with contextlib.suppress(TimeoutError):
                bench({}, seconds=seconds)
    said = [record.getMessage() for record in caplog.records if "timeout_too_short" in record.getMessage()]
    assert len(said) == told
    assert all("time-out" in text and f"seconds={seconds:.0f}" in text for text in said)


def test_a_function_that_only_hands_wake_ups_on_may_be_short(caplog: pytest.LogCaptureFixture) -> None:
    bench = LambdaBench(DRAIN_MODE="enqueue", ENQUEUE_TO="aws-lambda:tick")
    with caplog.at_level(logging.ERROR, logger="functions"):
        body = delivery("agent.updated")
        assert bench(http(body, signed(body)), on_run_started, seconds=14.0)["statusCode"] == 200
    assert not caplog.records
    bench.process.close()


def test_a_webhook_that_is_answered_inline_reports_what_is_served_yet_before_the_function_ends() -> None:
    bench = LambdaBench(DRAIN_MODE="inline")
    bench({})
    bench.services[0].work_seconds = 2.0
    body = delivery()
    began = time.monotonic()
    assert bench(http(body, signed(body)), on_run_started, seconds=30.0)["statusCode"] == 200
    until = bench.services[0].until
    assert until is not None and until.at < began + 30.0 - 5.0
    bench.process.close()


def test_a_handler_that_watches_for_a_hang_up_sees_none_until_it_has_answered(bench: LambdaBench) -> None:
    async def watching(request: Request) -> Response:
        await request.body()
        watcher = asyncio.ensure_future(request.receive())
        await asyncio.sleep(0.05)
        hung_up = watcher.done()
        watcher.cancel()
        return JSONResponse({"hung_up": hung_up})

    assert json.loads(bench(http(b"{}"), watching)["body"]) == {"hung_up": False}


def test_a_request_reaches_the_handler_as_it_was_sent(bench: LambdaBench) -> None:
    seen: dict[str, Any] = {}

    async def look(request: Request) -> Response:
        seen.update(
            body=await request.body(),
            method=request.method,
            path=request.url.path,
            query=dict(request.query_params),
            cookies=request.cookies,
            client=request.client and request.client.host,
        )
        return Response(b"\xff\x00", media_type="application/octet-stream")

    event = http("ä\0".encode(), path="/a%20b", rawQueryString="x=1&y=%C3%A4", cookies=["a=1", "b=2"], base64_body=True)
    answer = bench(event, look)
    assert seen == {
        "body": "ä\0".encode(),
        "method": "POST",
        "path": "/a b",
        "query": {"x": "1", "y": "ä"},
        "cookies": {"a": "1", "b": "2"},
        "client": "203.0.113.7",
    }
    assert answer["isBase64Encoded"] is True
    assert base64.b64decode(answer["body"]) == b"\xff\x00"


def test_a_stream_is_collected_and_several_cookies_are_kept_apart(bench: LambdaBench) -> None:
    async def stream(request: Request) -> Response:
        async def lines() -> Any:
            for number in range(3):
                yield f'{{"n": {number}}}\n'

        response = StreamingResponse(lines(), media_type="application/x-ndjson")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    answer = bench(http(), stream)
    assert answer["body"] == '{"n": 0}\n{"n": 1}\n{"n": 2}\n'
    assert [cookie.split(";")[0] for cookie in answer["cookies"]] == ["a=1", "b=2"]


def test_a_bug_in_a_handler_is_an_error_of_the_invocation(bench: LambdaBench) -> None:
    async def broken(request: Request) -> Response:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        bench(http(), broken)


class Written(logging.Handler):
    """What came out at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.mark.parametrize("event", [{"do": "tick"}, {"do": "no such thing"}])
def test_what_was_logged_and_traced_is_sent_before_the_process_is_frozen(
    bench: LambdaBench, event: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With handlers that hold everything back until they are told, whether the invocation fails or not."""
    written, held, flushed = Written(), [], []
    for name in ("functions", "shared"):
        logger = logging.getLogger(name)
        buffer = MemoryHandler(1000, flushLevel=logging.CRITICAL + 1, target=written, flushOnClose=False)
        monkeypatch.setattr(logger, "handlers", [buffer])
        logger.warning("said by %s", name)
        held += buffer.buffer

    def force_flush(timeout_millis: int) -> bool:
        flushed.append(timeout_millis)
        return True

    tracing = SimpleNamespace(get_tracer_provider=lambda: SimpleNamespace(force_flush=force_flush))
    monkeypatch.setitem(sys.modules, "opentelemetry", cast(ModuleType, SimpleNamespace(trace=tracing)))
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", ModuleType("opentelemetry.sdk.trace"))
    assert (len(held), written.lines) == (2, [])
    with contextlib.suppress(BadInvocation):
        bench(event)
    assert written.lines[:2] == ["said by functions", "said by shared"]
    assert flushed == [2000]


def test_settings_may_come_as_one_variable_and_the_plain_ones_win() -> None:
    environ = {"HANDS_SETTINGS": '{"SANDBOX_CPUS": "4", "SANDBOX_PREFIX": "theirs"}', "SANDBOX_PREFIX": "ours"}
    bench = LambdaBench(**environ)
    bench({})
    (service,) = bench.services
    assert service.settings.prefix == "ours"
    assert service.settings.environments["env_1"].cpus == 4.0
    bench.process.close()


@pytest.mark.parametrize("more", ["not json", "[]", '{"SANDBOX_CPUS": 4}'])
def test_settings_that_cannot_be_read_are_named(more: str) -> None:
    bench = LambdaBench(HANDS_SETTINGS=more)
    answer = bench(http(), on_run_started)
    assert answer["statusCode"] == 503
    assert "HANDS_SETTINGS" in answer["body"]
    with pytest.raises(SettingsError, match="HANDS_SETTINGS"):
        bench({})
    bench.process.close()


def test_a_direct_event_of_the_fork_function_is_the_race_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    host = FakeHost(latency=0.001)

    def make(settings: Settings) -> Service:
        service = Service(settings)
        service.host = host
        return service

    process = LambdaProcess(ENVIRON, make)
    monkeypatch.setattr(aws_lambda, "_of_this_process", process)
    race = {"source": {"image": "agent-cli"}, "n": 2, "command": ["true"], "env": {"A": "1"}}
    answer = aws_lambda.fork_best_of_n(race, LambdaContext())
    assert answer["statusCode"] == 200, answer
    assert json.loads(answer["body"])["winner"] in ("b0", "b1")
    refused = aws_lambda.fork_best_of_n({**race, "n": 0}, LambdaContext())
    assert (refused["statusCode"], json.loads(refused["body"])["error"]["field"]) == (400, "n")
    with pytest.raises(UnknownEvent, match="an event with n; a race's source"):
        aws_lambda.fork_best_of_n({"n": 7}, LambdaContext())
    unauthorized = http(json.dumps(race).encode())
    assert process.invoke(unauthorized, LambdaContext(), fork_best_of_n)["statusCode"] == 401
    process.close()


@pytest.mark.parametrize(
    "kind, invocation",
    [("session.status_run_started", "drain"), ("session.deleted", "session_over"), ("agent.updated", "")],
)
def test_in_enqueue_mode_the_webhook_hands_a_wake_up_on_and_does_no_work(
    monkeypatch: pytest.MonkeyPatch, kind: str, invocation: str
) -> None:
    sent: list[tuple[str, Invocation]] = []

    async def enqueue(target: str, invocation: Invocation) -> None:
        sent.append((target, invocation))

    monkeypatch.setattr("functions.invocations.enqueue", enqueue)
    bench = LambdaBench(DRAIN_MODE="enqueue", ENQUEUE_TO="aws-lambda:the-drainer")
    body = delivery(kind)
    assert bench(http(body, signed(body)), on_run_started)["statusCode"] == 200
    assert bench.done == []
    assert [(target, each.do) for target, each in sent] == (
        [("aws-lambda:the-drainer", invocation)] if invocation else []
    )
    for _, each in sent:
        assert Invocation.read(json.loads(each.message())) == each
    bench.process.close()


def test_a_wake_up_that_cannot_be_handed_on_is_still_answered_200(monkeypatch: pytest.MonkeyPatch) -> None:
    async def enqueue(target: str, invocation: Invocation) -> None:
        raise NotEnqueued("EndpointConnectionError")

    monkeypatch.setattr("functions.invocations.enqueue", enqueue)
    bench = LambdaBench(DRAIN_MODE="enqueue", ENQUEUE_TO="aws-lambda:the-drainer")
    body = delivery()
    answer = bench(http(body, signed(body)), on_run_started)
    assert (answer["statusCode"], json.loads(answer["body"])) == (200, {"drains": [], "error": "NotEnqueued"})
    bench.process.close()


@pytest.mark.parametrize("target", ["", "the-drainer", "aws-lambda:", "http://drainer"])
def test_enqueue_needs_a_target_that_it_knows(target: str) -> None:
    with pytest.raises(SettingsError, match="ENQUEUE_TO"):
        Settings.from_environ({**ENVIRON, "DRAIN_MODE": "enqueue", "ENQUEUE_TO": target})
