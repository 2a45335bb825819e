"""Each event shape, through Lambda's own runtime client, to each of the three handlers: a known one does its work, any
other is a failed invocation that Lambda counts, with its name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from tests.support.checkout import ROOT
from tests.support.lambda_events import STRANGERS, eventbridge, http, other_event, rest_v1, sqs
from tests.support.lambda_runtime import InvocationFailed, LambdaRuntime
from tests.support.serving import TOKEN
from tests.support.signing import KEY, delivery, signed
from tests.support.world import IMAGE, OfflineWorld

HANDLERS: Final = ("on_run_started", "poll_tick", "fork_best_of_n")
UNKNOWN, BAD = "UnknownEvent", "BadInvocation"
DRY: Final[Mapping[str, Any]] = {"source": {"image": IMAGE}, "n": 2, "command": ["true"], "dry_run": True}
OPERATOR: Final = {"authorization": f"Bearer {TOKEN}"}
SIGNED: Final = delivery("session.updated")
OVER: Final = {"do": "session_over", "session_id": "sesn_of_nobody"}
KNOWN: Final[Mapping[str, tuple[Any, tuple[Any, Any, Any]]]] = {
    "a schedule that was told nothing": ({}, ("reconciled", "reconciled", UNKNOWN)),
    "Scheduler's input": ({"do": "tick"}, ("reconciled", "reconciled", BAD)),
    "a drain": ({"do": "drain"}, ("drains", "drains", BAD)),
    "a session that is over": (OVER, ("reconciled", "reconciled", BAD)),
    "a rule with a schedule": (eventbridge(), ("reconciled", "reconciled", UNKNOWN)),
    "a wake-up on a bus": (other_event("Tick", "my.app", {"do": "tick"}), ("reconciled", "reconciled", UNKNOWN)),
    "a batch of wake-ups": (sqs({"do": "drain"}, {}, "no json"), ("batchItemFailures", "batchItemFailures", UNKNOWN)),
    "a wake-up of no known kind": ({"do": "rm"}, (BAD, BAD, BAD)),
    "a race": (DRY, (UNKNOWN, UNKNOWN, 200)),
    "a function URL's request": (http(b"{}"), (401, 401, 401)),
    "an operator's request": (http(json.dumps(DRY).encode(), OPERATOR), (401, 200, 200)),
    "a webhook": (lambda: http(SIGNED, signed(SIGNED), base64_body=True), (200, 401, 401)),
    "a request of a REST API": (rest_v1(), (400, 400, 400)),
    "a load balancer's request": ({"requestContext": {"elb": {}}, "httpMethod": "POST", "body": ""}, (400, 400, 400)),
    "a WebSocket's message": ({"requestContext": {"connectionId": "c"}, "body": "{}"}, (400, 400, 400)),
}
"""A shape (a function, where it is signed with the time), and what comes of it with each handler: the key of a report,
an answer's status, or the kind of error."""


@pytest.fixture(scope="module")
def environ(world: OfflineWorld) -> Mapping[str, str]:
    return {**world.place().environ, "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY, "FUNCTIONS_TOKEN": TOKEN}


@pytest.fixture(scope="module", params=HANDLERS)
def function(request: pytest.FixtureRequest, environ: Mapping[str, str]) -> Iterator[tuple[int, LambdaRuntime]]:
    """The handler's index, and its process."""
    with LambdaRuntime(ROOT, f"functions.aws_lambda.{request.param}", environ) as runtime:
        yield HANDLERS.index(request.param), runtime


@pytest.mark.parametrize("shape", list(KNOWN))
def test_a_known_shape_does_its_work_or_says_why_not(function: tuple[int, LambdaRuntime], shape: str) -> None:
    index, runtime = function
    event, expected = KNOWN[shape]
    try:
        answer = runtime.invoke(event() if callable(event) else event)
    except InvocationFailed as error:
        assert error.kind == expected[index]
    else:
        assert expected[index] in (answer.get("statusCode"), *answer), runtime.output()


@pytest.mark.parametrize("name", list(STRANGERS))
def test_a_shape_of_another_service_is_refused_with_its_name(function: tuple[int, LambdaRuntime], name: str) -> None:
    _, runtime = function
    with pytest.raises(InvocationFailed) as refused:
        runtime.invoke(STRANGERS[name])
    assert refused.value.kind == UNKNOWN
    assert name in str(refused.value)
