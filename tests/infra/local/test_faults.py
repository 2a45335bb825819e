"""Fault rules and the process frame, over real sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from infra.local.faults import FaultRegistry, FaultRule, LatencyRule, RequestFacts
from infra.local.process import RunningService, ServiceStartError, listen
from tests.support.checkout import ROOT
from tests.support.preloaded import forked_run, forked_service
from tests.support.waiting import until

SERVICE = "tests.infra.local.echo_service"


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with forked_service(SERVICE) as running:
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.url, timeout=5.0) as http:
        http.delete("/_admin/faults")
        http.put("/_admin/latency", json={"seconds": 0})
        yield http


def arm(client: httpx2.Client, **rule: Any) -> str:
    answer = client.post("/_admin/faults", json=rule)
    assert answer.status_code == 201, answer.text
    identifier: str = answer.json()["data"][0]["id"]
    return identifier


def effects(client: httpx2.Client) -> int:
    count: int = client.get("/_admin/count").json()["effects"]
    return count


def test_a_status_rule_answers_before_any_effect_with_its_headers_and_only_as_often_as_told(
    client: httpx2.Client,
) -> None:
    before = effects(client)
    arm(client, path="^/effect$", action="status", status=429, headers={"retry-after": "7"}, times=2)
    answers = [client.post("/effect") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["retry-after"] == "7"
    assert answers[0].json()["code"] == "INJECTED_FAULT"
    assert effects(client) == before + 1


def test_a_rule_can_bring_its_own_body_and_skip_the_first_requests(client: httpx2.Client) -> None:
    body = {"error": "warming up", "code": "SANDBOX_NOT_READY"}
    arm(client, path="effect", action="status", status=503, body=body, skip=1)
    assert client.post("/effect").status_code == 200
    assert client.post("/effect").json() == body


def test_drop_before_closes_without_a_byte_and_without_an_effect(client: httpx2.Client) -> None:
    before = effects(client)
    arm(client, path="effect", action="drop_before", times=1)
    with pytest.raises(httpx2.RemoteProtocolError):
        client.post("/effect")
    assert effects(client) == before


def test_drop_after_loses_the_answer_of_an_effect_that_happened(client: httpx2.Client) -> None:
    before = effects(client)
    arm(client, path="effect", action="drop_after", times=1)
    with pytest.raises(httpx2.RemoteProtocolError):
        client.post("/effect")
    assert effects(client) == before + 1


def test_a_truncated_answer_ends_in_the_middle_of_its_body(client: httpx2.Client) -> None:
    arm(client, path="effect", action="truncate", times=1)
    with pytest.raises(httpx2.RemoteProtocolError, match="complete message body"):
        client.post("/effect")


@pytest.mark.parametrize(("action", "head"), [("stall", [200]), ("hang", [])])
def test_an_answer_that_stalls_has_its_headers_and_one_that_hangs_nothing(
    client: httpx2.Client, action: str, head: list[int]
) -> None:
    before = effects(client)
    arm(client, path="effect", action=action, times=1)
    seen: list[int] = []

    def look() -> None:
        with client.stream("POST", "/effect", timeout=0.5) as answer:
            seen.append(answer.status_code)
            answer.read()

    with pytest.raises(httpx2.ReadTimeout):
        look()
    assert seen == head
    assert effects(client) == before + 1


def test_garbage_is_a_200_that_no_json_parser_takes(client: httpx2.Client) -> None:
    arm(client, path="effect", action="garbage", times=1)
    answer = client.post("/effect")
    assert answer.status_code == 200
    with pytest.raises(ValueError):
        answer.json()


def test_delays_add_up_with_the_latency_knob_and_leave_other_routes_alone(client: httpx2.Client) -> None:
    client.put("/_admin/latency", json={"rules": [{"path": "effect", "seconds": 0.1}]})
    arm(client, path="effect", action="delay", seconds=0.1)
    arm(client, path="effect", action="delay_after", seconds=0.1)
    start = time.monotonic()
    assert client.post("/effect").status_code == 200
    spent = time.monotonic() - start
    assert spent > 0.29
    others = []
    for _ in range(5):
        start = time.monotonic()
        client.get("/_admin/count")
        others.append(time.monotonic() - start)
    assert min(others) < spent


def test_a_rule_is_listed_with_what_it_hit_and_can_be_removed(client: httpx2.Client) -> None:
    identifier = arm(client, path="effect", action="status", status=500)
    client.post("/effect")
    listed = client.get("/_admin/faults").json()["data"]
    assert [(rule["id"], rule["matched"], rule["fired"]) for rule in listed] == [(identifier, 1, 1)]
    assert client.delete(f"/_admin/faults/{identifier}").status_code == 200
    assert client.delete(f"/_admin/faults/{identifier}").status_code == 404
    assert client.post("/effect").status_code == 200


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "status"},
        {"action": "delay"},
        {"action": "status", "status": 500, "path": "("},
        {"action": "no"},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_a_reason(client: httpx2.Client, rule: dict[str, Any]) -> None:
    answer = client.post("/_admin/faults", json=rule)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_the_same_seed_gives_the_same_run_of_chances() -> None:
    def run() -> list[bool]:
        registry = FaultRegistry(seed=7)
        registry.add(FaultRule(action="garbage", probability=0.5))
        return [registry.plan(RequestFacts("GET", "/")).spoil is not None for _ in range(50)]

    first = run()
    assert first == run()
    assert 10 < sum(first) < 40


def test_method_query_and_host_narrow_a_rule() -> None:
    registry = FaultRegistry()
    registry.add(FaultRule(method="POST", query="=NO_HEARTBEAT", host=r"^a\.local", action="garbage"))
    hit = RequestFacts("POST", "/beat", "expected_last_heartbeat=NO_HEARTBEAT", "a.local:80")
    assert registry.plan(hit).spoil is not None
    for miss in (
        RequestFacts("GET", hit.path, hit.query, hit.host),
        RequestFacts("POST", hit.path, "expected_last_heartbeat=x", hit.host),
        RequestFacts("POST", hit.path, hit.query, "b.local"),
    ):
        assert registry.plan(miss).spoil is None


def test_admin_routes_are_never_touched() -> None:
    registry = FaultRegistry(latency=[LatencyRule(seconds=1.0)])
    registry.add(FaultRule(action="drop_before"))
    plan = registry.plan(RequestFacts("GET", "/_admin/faults"))
    assert (plan.before, plan.after, plan.spoil) == (0.0, 0.0, None)


def test_answers_do_not_wait_for_the_clients_delayed_acknowledgement() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP, "asyncio switches Nagle off only for this protocol number"


def test_a_service_ends_cleanly_on_sigterm_and_on_sigint() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        running = forked_service(SERVICE)
        os.kill(running.pid, number)
        assert running.stop() == 0


def test_a_service_ends_when_its_parent_is_killed() -> None:
    parent = (
        "import time; from infra.local.process import start_service;"
        f"print(start_service({SERVICE!r}).url, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx2.get(f"{url}/_admin/count").status_code == 200
        process.kill()
    until(lambda: not _answers(url), "the service outlived its parent")


def _answers(url: str) -> bool:
    try:
        httpx2.get(f"{url}/_admin/count", timeout=1.0)
    except httpx2.TransportError:
        return False
    return True


def test_a_taken_port_is_one_clear_line_and_exit_code_2(service: RunningService) -> None:
    port = service.url.rsplit(":", 1)[1]
    done = forked_run(["-m", SERVICE, "--port", port], cwd=ROOT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"port {port} is in use; ")
    assert done.stderr.count("\n") == 1


def test_a_service_that_fails_to_start_is_reported_with_its_last_words() -> None:
    with pytest.raises(ServiceStartError, match="the reason why it failed"):
        forked_service(SERVICE, ["--silent-failure"])
