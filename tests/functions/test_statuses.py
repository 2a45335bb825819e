"""Each status that the OpenAPI document lists, met on a server, or named with the test that meets it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple
from unittest import mock

import httpx2
import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from functions.requests import BODY_LIMIT, UNPROVEN_LIMIT
from infra.cli.reference.http_api import document
from infra.cli.ui.served import app
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


# Why not here, and a test that meets it: by the operation and its status.
ELSEWHERE: Final[Mapping[tuple[str, int], tuple[str, str]]] = {
    ("post /on_run_started", 408): ("takes ten seconds", "test_a_body_that_never_comes_is_given_up_with_a_408"),
    ("post /poll_tick", 408): ("takes ten seconds", "test_a_body_that_drips_is_given_up_as_well"),
    (f"post {RACES}", 408): ("takes ten seconds", "test_a_body_that_drips_is_given_up_as_well"),
    (f"post {RACES}", 409): ("refuses a checkpoint", "test_a_source_that_cannot_be_checkpointed_is_no_report"),
    (f"post {RACES}", 501): (
        "this server lives on",
        "test_on_lambda_a_key_finds_the_race_again_and_its_location_is_read",
    ),
    (f"post {RACES}", 502): ("loses an answer", "test_a_source_that_cannot_be_checkpointed_is_no_report"),
    (f"delete {RACE}", 200): ("needs a race that is over", "test_a_race_that_is_over_is_not_changed_by_a_delete"),
    ("get /metrics", 200): (
        "needs OTEL_METRICS_EXPORTER",
        "test_a_session_a_fault_and_a_race_are_told_and_no_secret_prompt_or_output_is",
    ),
}
# Servers in this process, each with what it is told.
BARE: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
    "ANTHROPIC_API_KEY": API_KEY,
}
CLOSED: Final = BARE | {"SERVER_SANDBOX": "hands-server-x"}
INSIDE: Final = CLOSED | {"FUNCTIONS_TOKEN": TOKEN}
COUNTED: Final = BARE | {"FUNCTIONS_TOKEN": TOKEN, "RACE_CALLS_PER_MINUTE": "1"}


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


def rows_of_other_servers() -> Iterator[tuple[Mapping[str, str], StatusRow]]:
    for method, path in (("post", RACES), ("get", RACE), ("delete", RACE), ("post", "/poll_tick")):
        yield COUNTED, StatusRow(path, method, 429, OPERATOR)
        yield CLOSED, StatusRow(path, method, 503, OPERATOR)
    yield CLOSED, StatusRow("/on_run_started", "post", 503, OPERATOR, b"{}")
    for path in ("/status", "/metrics", "/ui/", "/healthz", "/readyz"):
        yield CLOSED, StatusRow(path, "get", 503, OPERATOR)
    for path in ("/healthz", "/readyz"):
        yield INSIDE, StatusRow(path, "get", 401, STRANGER)
        yield INSIDE, StatusRow(path, "get", 403, AGENT)


def operations() -> Iterator[tuple[str, str, int]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            for status in operation["responses"]:
                yield path, method, int(status)


def check(row: StatusRow, answer: httpx2.Response) -> None:
    """The answer's kind and body are what the document says of this status."""
    assert answer.status_code == row.status, (row[:3], answer.text)
    whole = document()
    content = whole["paths"][row.path][row.method]["responses"][str(row.status)].get("content", {})
    kind = answer.headers.get("content-type", "").partition(";")[0]
    assert kind in content if content else not answer.content, row[:3]
    if kind == "application/json":
        schema = {**content[kind]["schema"], "components": whole["components"]}
        Draft202012Validator(schema).validate(answer.json())


def test_every_listed_status_is_met_here_or_named_with_the_test_that_meets_it() -> None:
    every = [*rows(), *(row for _, row in rows_of_other_servers())]
    met = {(f"{row.method} {row.path}", row.status) for row in every}
    listed = {(f"{method} {path}", status) for path, method, status in operations()}
    assert met <= listed
    assert listed - met == set(ELSEWHERE)
    texts = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for _, name in ELSEWHERE.values() if f"def {name}(" not in texts] == []


@pytest.mark.parametrize("environ", [COUNTED, CLOSED, INSIDE], ids=["counted", "closed", "inside"])
def test_a_server_without_keys_or_in_a_sandbox_or_called_too_often_answers_as_the_document_says(
    environ: Mapping[str, str],
) -> None:
    with mock.patch.dict(os.environ, environ, clear=True), TestClient(app) as http:
        for told, row in rows_of_other_servers():
            if told is environ:
                path = row.path.replace("{race_id}", row.race_id)
                answer = http.request(row.method, path, headers=row.headers, content=row.body)
                for _ in range(100 if row.status == 429 else 0):  # calls that are refused for another reason count, too
                    if answer.status_code != 429:
                        answer = http.request(row.method, path, headers=row.headers, content=row.body)
                check(row, answer)


def test_each_status_is_answered_on_a_server_as_the_document_says(place: Place) -> None:
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
            check(row, answer)
            location = answer.headers.get("location", location).rpartition("/")[2]
