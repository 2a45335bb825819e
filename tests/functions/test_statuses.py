"""Each status that the OpenAPI document lists, met on one server, or named with the test that meets it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import httpx2
from jsonschema import Draft202012Validator

from functions.requests import BODY_LIMIT, UNPROVEN_LIMIT
from infra.cli.reference.http_api import document
from shared.capability import FORK, Capability, issue, signing_key
from tests.support.admin import fault
from tests.support.checkout import ROOT
from tests.support.serving import TOKEN, UVICORN, serving
from tests.support.signing import delivery, signed
from tests.support.waiting import PATIENCE, until
from tests.support.world import API_KEY, Place

OPERATOR: Final = {"authorization": f"Bearer {TOKEN}"}
AGENT: Final = {
    "authorization": "Bearer "
    + issue(Capability(FORK, "env_1", "sesn_1", "work_1", 3, 60.0, int(time.time()) + 3_600), signing_key(TOKEN))
}
STRANGER: Final = {"authorization": "Bearer of-nobody"}
EVENT: Final = {"ce-id": "1", "ce-source": "timer", "ce-specversion": "1.0", "ce-type": "tick"}
RACES: Final = "/fork_best_of_n"
RACE: Final = RACES + "/{race_id}"
SERVED: Final = tuple("infra.cli.ui.served:app" if part == "functions.asgi:app" else part for part in UVICORN)
WISH: Final = {**OPERATOR, "idempotency-key": "once", "prefer": "respond-async"}


# Why not here, and a test that meets it: a status, on one operation or another; or that of one operation.
ELSEWHERE: Final[Mapping[int | tuple[str, int], tuple[str, str]]] = {
    408: ("takes ten seconds and more", "test_a_body_that_never_comes_is_given_up_with_a_408"),
    409: ("the service refuses a checkpoint", "test_a_source_that_cannot_be_checkpointed_is_no_report"),
    429: ("needs many calls or a small bound", "test_calls_are_counted_for_each_caller_and_come_back_with_time"),
    501: (
        "this server lives on",
        "test_on_lambda_a_key_finds_the_race_again_and_its_location_is_read",
    ),
    502: ("the service loses an answer", "test_a_source_that_cannot_be_checkpointed_is_no_report"),
    503: ("this server has its keys", "test_without_their_keys_the_endpoints_fail_closed"),
    (f"delete {RACE}", 200): ("needs a race that is over", "test_a_race_that_is_over_is_not_changed_by_a_delete"),
    ("get /metrics", 200): (
        "needs OTEL_METRICS_EXPORTER",
        "test_a_session_a_fault_and_a_race_are_told_and_no_secret_prompt_or_output_is",
    ),
    ("get /healthz", 401): ("open but in a server sandbox", "test_only_the_webhook_is_open_without_a_token"),
    ("get /healthz", 403): ("open but in a server sandbox", "test_only_the_webhook_is_open_without_a_token"),
    ("get /readyz", 401): ("open but in a server sandbox", "test_only_the_webhook_is_open_without_a_token"),
    ("get /readyz", 403): ("open but in a server sandbox", "test_only_the_webhook_is_open_without_a_token"),
}


def race(**fields: object) -> bytes:
    asked = {"source": {"image": "agent-cli"}, "n": 1, "script": "true", "judge": {"type": "exit_code"}}
    return json.dumps({**asked, **fields}).encode()


class StatusRow(NamedTuple):
    path: str
    method: str
    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    race_id: str = "race_of_nobody"
    sent: str = ""
    """The method, where it is another one than the operation's."""
    broken: Mapping[str, object] | None = None
    """A fault of the Claude API's meanwhile."""


def rows() -> Iterator[StatusRow]:
    """In this order. `race_id` is empty where it is the race that the row before began."""
    webhook = "/on_run_started"
    yield StatusRow(webhook, "post", 200, signed(body := delivery("session.created")), body)
    yield StatusRow(webhook, "post", 400, signed(b"["), b"[")
    yield StatusRow(webhook, "post", 401, {}, delivery())
    yield StatusRow(webhook, "post", 405, sent="get")
    yield StatusRow(webhook, "post", 413, signed(body := bytes(UNPROVEN_LIMIT + 1)), body)
    for path in ("/poll_tick", RACES):
        yield StatusRow(path, "post", 401, STRANGER)
        yield StatusRow(path, "post", 403, AGENT)
        yield StatusRow(path, "post", 405, OPERATOR, sent="put")
        yield StatusRow(path, "post", 413, OPERATOR, bytes(BODY_LIMIT + 1))
    yield StatusRow("/poll_tick", "post", 200, OPERATOR)
    yield StatusRow("/poll_tick", "post", 204, {**OPERATOR, **EVENT})
    yield StatusRow(RACES, "post", 200, OPERATOR, race(dry_run=True))
    yield StatusRow(RACES, "post", 400, OPERATOR, b"{}")
    yield StatusRow(RACES, "post", 404, OPERATOR, race(source={"session_id": "sesn_0nobody"}))
    yield StatusRow(RACES, "post", 406, {**OPERATOR, "accept": "image/png"}, race(dry_run=True))
    yield StatusRow(RACES, "post", 202, WISH, race(script="sleep 600"))
    yield StatusRow(RACES, "post", 422, WISH, race(script="false"))
    yield StatusRow(RACE, "get", 200, OPERATOR, race_id="")
    yield StatusRow(RACE, "delete", 202, OPERATOR, race_id="")
    for method in ("get", "delete"):
        yield StatusRow(RACE, method, 401, STRANGER)
        yield StatusRow(RACE, method, 403, AGENT)
        yield StatusRow(RACE, method, 404, OPERATOR)
    yield StatusRow("/healthz", "get", 200)
    yield StatusRow("/readyz", "get", 200)
    refused = {"method": "GET", "path": "^/v1/sessions$", "action": "status", "status": 403}
    # Before the page is read: an answer is good for some seconds (infra/cli/ui/answers.py).
    yield StatusRow("/ui/", "get", 502, OPERATOR, broken=refused)
    for path, status in (("/status", 200), ("/metrics", 404), ("/ui/", 200)):
        yield StatusRow(path, "get", status, OPERATOR)
        yield StatusRow(path, "get", 401, STRANGER)
        yield StatusRow(path, "get", 403, AGENT)
    yield StatusRow("/ui/", "get", 405, OPERATOR, sent="post")


def operations() -> Iterator[tuple[str, str, int, Mapping[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                yield path, method, int(status), answer


def test_every_listed_status_is_met_here_or_named_with_the_test_that_meets_it() -> None:
    met = {(row.path, row.method, row.status) for row in rows()}
    listed = {(path, method, status) for path, method, status, _ in operations()}
    assert met <= listed
    rest = {(path, method, status) for path, method, status in listed - met}
    reasons = {status if status in ELSEWHERE else (f"{method} {path}", status) for path, method, status in rest}
    assert reasons == set(ELSEWHERE)
    texts = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for _, name in ELSEWHERE.values() if f"def {name}(" not in texts] == []


def test_each_status_is_answered_on_a_server_as_the_document_says(place: Place) -> None:
    answers = {(path, method, status): answer for path, method, status, answer in operations()}
    components = document()["components"]
    location = ""
    with (
        serving(place, SERVED, ANTHROPIC_API_KEY=API_KEY) as url,
        httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False) as http,
    ):
        until(lambda: http.get("/readyz").status_code == 200, "the server did not become ready")
        for row in rows():
            path = row.path.replace("{race_id}", row.race_id or location)
            with fault(place.world.claude_admin, row.broken) if row.broken else contextlib.nullcontext():
                answer = http.request(row.sent or row.method, path, headers=row.headers, content=row.body or None)
            assert answer.status_code == row.status, (row[:3], answer.text)
            location = answer.headers.get("location", location).rpartition("/")[2]
            kind = answer.headers.get("content-type", "").partition(";")[0]
            content = answers[row[:3]].get("content", {})
            assert kind in content if content else not answer.content, row[:3]
            if kind == "application/json":
                schema = {**content[kind]["schema"], "components": components}
                Draft202012Validator(schema).validate(answer.json())
