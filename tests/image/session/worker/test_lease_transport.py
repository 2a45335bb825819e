"""The transport under the SDK's client, by itself: what the real SDK's requests become."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import httpx2
import pytest
from anthropic import AsyncAnthropic, DefaultAsyncHttpxClient
from anthropic.lib._scoped_client import _copy_client_with_bearer_auth

from image.session.worker import lease_transport as transport_module
from image.session.worker.lease import NO_HEARTBEAT, Lease, Verdict
from image.session.worker.lease_transport import STREAM_SILENCE, LeaseTransport

BEAT = "http://service.invalid/v1/environments/env_1/work/work_1/heartbeat"
Handler = Callable[[httpx2.Request], Coroutine[None, None, httpx2.Response]]


def held() -> Lease:
    lease = Lease()
    lease.sending()
    assert lease.judge(200, _beat("t0+1").content) is Verdict.HELD
    return lease


def transport(handler: Handler, lease: Lease, sessions: list[bytes] | None = None) -> LeaseTransport:
    return LeaseTransport(
        httpx2.MockTransport(handler),
        lease,
        environment_id="env_1",
        work_id="work_1",
        session_id="sesn_1",
        on_session=(sessions if sessions is not None else []).append,
        on_stopped=lambda: None,
        on_interrupt=lambda: None,
    )


def test_a_look_at_the_session_outlasts_a_trouble_that_the_sdk_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "LOOK_UP_PAUSE", 0.01)
    seen: list[bytes] = []
    answers: list[httpx2.Response | httpx2.TransportError] = [
        *(httpx2.Response(status) for status in (503, 529, 429)),
        httpx2.ConnectError("refused"),
        httpx2.Response(200, json={"id": "sesn_1"}),
    ]

    async def handler(request: httpx2.Request) -> httpx2.Response:
        answer = answers.pop(0)
        if isinstance(answer, httpx2.TransportError):
            raise answer
        return answer

    async def look() -> int:
        async with httpx2.AsyncClient(transport=transport(handler, held(), seen)) as client:
            return (await client.get("http://service.invalid/v1/sessions/sesn_1")).status_code

    assert asyncio.run(look()) == 200
    assert len(seen) == 1 and answers == []


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_look_at_the_session_is_final(status: int) -> None:
    seen: list[str] = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.method)
        return httpx2.Response(status)

    async def look() -> int:
        async with httpx2.AsyncClient(transport=transport(handler, held())) as client:
            return (await client.get("http://service.invalid/v1/sessions/sesn_1")).status_code

    assert asyncio.run(look()) == status
    assert len(seen) == 1


def test_a_beat_that_is_cancelled_is_doubtful_and_the_next_finds_it() -> None:
    """The SDK bounds each beat by cancelling it."""
    expected: list[str] = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        expected.append(request.url.params["expected_last_heartbeat"])
        if len(expected) == 1:
            await asyncio.sleep(60)
        return _lost("t2") if expected[-1] == "t0+1" else _beat("t3")

    async def run() -> LeaseTransport:
        under = transport(handler, held())
        async with httpx2.AsyncClient(transport=under) as client:
            with anyio.move_on_after(0.05) as scope:
                await client.post(BEAT, params={"expected_last_heartbeat": "NO_HEARTBEAT"})
            assert scope.cancelled_caught
            answer = await client.post(BEAT, params={"expected_last_heartbeat": "NO_HEARTBEAT"})
        assert answer.json()["last_heartbeat"] == "t3"
        return under

    assert asyncio.run(run()).verdict is Verdict.HELD
    assert expected == ["t0+1", "t0+1", "t2"]


def test_a_412_without_doubt_is_passed_through_as_it_came() -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        return _lost("t9")

    async def run() -> LeaseTransport:
        under = transport(handler, held())
        async with httpx2.AsyncClient(transport=under) as client:
            answer = await client.post(BEAT)
        assert answer.status_code == 412
        assert answer.json()["error"]["details"]["current_state"]["last_heartbeat"] == "t9"
        return under

    assert asyncio.run(run()).verdict is Verdict.LOST


def test_an_item_that_was_acked_for_this_worker_anew_is_taken_anew_before_the_sdk_hears_of_it() -> None:
    expected: list[str] = []
    answers = [_offered("starting"), _beat("t2")]

    async def handler(request: httpx2.Request) -> httpx2.Response:
        expected.append(request.url.params["expected_last_heartbeat"])
        return answers.pop(0)

    async def run() -> LeaseTransport:
        under = transport(handler, held())
        async with httpx2.AsyncClient(transport=under) as client:
            assert (await client.post(BEAT)).status_code == 200
        return under

    assert asyncio.run(run()).verdict is Verdict.HELD
    assert expected == ["t0+1", NO_HEARTBEAT]


def test_sub_clients_of_the_sdk_keep_the_transport_and_their_retries_pass_it() -> None:
    """The worker makes its own clients from ours; a retry inside the SDK must carry the true value too."""
    seen: list[tuple[str, str]] = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append((request.url.params["expected_last_heartbeat"], request.headers["authorization"]))
        return httpx2.Response(503) if len(seen) == 1 else _lost("t5") if len(seen) == 2 else _beat("t6")

    async def run() -> None:
        client = AsyncAnthropic(
            auth_token="of-the-parent",
            base_url="http://service.invalid",
            http_client=DefaultAsyncHttpxClient(transport=transport(handler, held())),
        )
        scoped = _copy_client_with_bearer_auth(client, auth_token="of-the-item", helper="environments-worker")
        beat = await scoped.beta.environments.work.heartbeat(
            "work_1", environment_id="env_1", expected_last_heartbeat="NO_HEARTBEAT"
        )
        assert beat.last_heartbeat == "t6"

    asyncio.run(run())
    assert [value for value, _ in seen] == ["t0+1", "t0+1", "t5"]
    assert {credential for _, credential in seen} == {"Bearer of-the-item"}


@pytest.mark.parametrize("body", ["<html>", '{"state": "active"}', "[]", '{"type": "work_heartb'])
def test_a_200_that_the_sdk_could_not_read_becomes_an_error_that_it_retries(body: str) -> None:
    async def handler(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "application/json"}, text=body)

    async def run() -> None:
        async with httpx2.AsyncClient(transport=transport(handler, held())) as client:
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.post(BEAT)

    asyncio.run(run())


def test_heartbeats_of_other_items_and_all_other_requests_pass_untouched() -> None:
    seen: list[str] = []

    async def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(str(request.url))
        return _lost("t9")

    async def run() -> None:
        async with httpx2.AsyncClient(transport=transport(handler, held())) as client:
            for url in (BEAT.replace("work_1", "work_2"), BEAT.replace("heartbeat", "ack")):
                answer = await client.post(url, params={"expected_last_heartbeat": "NO_HEARTBEAT"})
                assert answer.status_code == 412

    asyncio.run(run())
    assert all(url.endswith("expected_last_heartbeat=NO_HEARTBEAT") for url in seen)


def test_a_compressed_answer_reaches_the_sdk_readable() -> None:
    import gzip

    async def handler(request: httpx2.Request) -> httpx2.Response:
        data = gzip.compress(_beat("t2").content)
        return httpx2.Response(
            200, headers={"content-encoding": "gzip", "content-length": str(len(data))}, content=data
        )

    async def run() -> None:
        async with httpx2.AsyncClient(transport=transport(handler, held())) as client:
            assert (await client.post(BEAT)).json()["last_heartbeat"] == "t2"

    asyncio.run(run())


def test_what_the_sdks_return_does_not_tell_is_noted() -> None:
    timeouts: dict[str, Any] = {}

    async def handler(request: httpx2.Request) -> httpx2.Response:
        timeouts[request.url.path] = request.extensions.get("timeout", {}).get("read")
        if request.url.path.endswith("/heartbeat"):
            return httpx2.Response(404, json={})
        if request.url.path.endswith("/events/stream"):
            return httpx2.Response(401, json={})
        return httpx2.Response(200, json={"id": "sesn_1"})

    async def run() -> LeaseTransport:
        sessions: list[bytes] = []
        under = transport(handler, held(), sessions)
        async with httpx2.AsyncClient(transport=under, base_url="http://service.invalid", timeout=30) as client:
            await client.get("/v1/sessions/sesn_1")
            await client.get("/v1/sessions/sesn_1/events/stream")
            await client.post(BEAT)
            await client.post(BEAT.replace("heartbeat", "stop"))
        assert [json.loads(body) for body in sessions] == [{"id": "sesn_1"}]
        return under

    under = asyncio.run(run())
    assert (under.refused, under.rejected, under.stop_sent, under.verdict) == (401, 404, True, Verdict.DOUBTFUL)
    assert timeouts["/v1/sessions/sesn_1/events/stream"] == STREAM_SILENCE
    assert timeouts["/v1/environments/env_1/work/work_1/heartbeat"] == 10


@pytest.mark.parametrize(
    ("beats", "told", "stopped", "verdict"),
    [
        (lambda: [_beat("t2")], 200, True, None),
        (lambda: [_ended("stopping")], 200, True, None),
        (lambda: [httpx2.Response(404, json={})], 200, True, None),
        (lambda: [_lost("somebody else's")], 409, False, Verdict.LOST),
        (lambda: [_offered("queued")], 409, False, Verdict.LOST),
        (lambda: [_offered("starting")], 409, False, Verdict.LOST),
        (lambda: [httpx2.Response(503, json={})], 503, False, None),
    ],
    ids=["held", "asked to stop", "unknown item", "another worker's", "offered again", "acked anew", "no answer"],
)
def test_i1_an_item_is_stopped_at_the_end_only_where_it_is_still_ours(
    beats: Callable[[], list[httpx2.Response]], told: int, stopped: bool, verdict: Verdict | None
) -> None:
    answers, seen = beats(), list[str]()

    async def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url.path.rsplit("/", 1)[1])
        if seen[-1] == "heartbeat":
            assert request.url.params["expected_last_heartbeat"] == "t0+1"
            assert request.headers["authorization"] == "Bearer own" and not request.content
            return answers.pop(0)
        assert json.loads(request.content) == {"force": True}
        return httpx2.Response(200, json={})

    async def run() -> LeaseTransport:
        under = transport(handler, held())
        async with httpx2.AsyncClient(transport=under, headers={"authorization": "Bearer own"}) as client:
            answer = await client.post(BEAT.replace("heartbeat", "stop"), json={"force": True})
        assert answer.status_code == told
        assert told != 409 or answer.headers["x-should-retry"] == "false"
        return under

    under = asyncio.run(run())
    assert seen == ["heartbeat", *["stop"] * stopped]
    assert (under.stop_sent, under.verdict) == (stopped, verdict)


def _ended(state: str) -> httpx2.Response:
    beat = {"type": "work_heartbeat", "state": state, "lease_extended": False}
    return httpx2.Response(200, json={**beat, "last_heartbeat": "t2", "ttl_seconds": 300})


def _offered(state: str) -> httpx2.Response:
    current = {"state": state, "last_heartbeat": None, "lease_extended": False, "ttl_seconds": 120}
    details = {"error_code": "heartbeat_precondition_failed", "current_state": current}
    return httpx2.Response(412, json={"type": "error", "error": {"type": "invalid_request_error", "details": details}})


def _beat(value: str) -> httpx2.Response:
    beat = {"type": "work_heartbeat", "state": "active", "lease_extended": True}
    return httpx2.Response(200, json={**beat, "last_heartbeat": value, "ttl_seconds": 300})


def _lost(value: str) -> httpx2.Response:
    current = {"state": "active", "last_heartbeat": value, "lease_extended": False, "ttl_seconds": 300}
    details = {"error_code": "heartbeat_precondition_failed", "current_state": current}
    return httpx2.Response(412, json={"type": "error", "error": {"type": "invalid_request_error", "details": details}})
