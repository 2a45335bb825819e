"""The bundle under Lambda's real runtime client: what needs no SDK, and sessions and races on the offline services.
Each shape of event at each handler is in tests/foreign/test_lambda_runtime_client.py.

What is unpacked here is our part of the zip with its byte code, from the very functions that build it. The
dependencies come from this environment's site-packages; the whole build is run by hand (docs/deploy/aws.md).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.aws import package
from tests.faults.test_claims_under_faults import PROMPT, runs
from tests.support.lambda_events import eventbridge, http, rest_v1, sqs
from tests.support.lambda_runtime import InvocationFailed, Invoke, LambdaRuntime
from tests.support.signing import KEY, delivery, signed
from tests.support.world import Place

TOKEN = "an-operators-token-of-nobody-at-all"
NOBODY: Mapping[str, str] = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "not-a-real-environment-key",
    "TENSORLAKE_API_KEY": "not-a-real-tensorlake-key",
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY,
    "FUNCTIONS_TOKEN": TOKEN,
    "LOG_FORMAT": "json",
}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    built = package.write_zip(folder / "bundle.zip", package.with_byte_code(package.own_files()), byte_code=True)
    with zipfile.ZipFile(built.path) as archive:
        archive.extractall(folder / "task")
    return folder / "task"


def test_the_webhook_function_answers_strangers_and_gateways_without_an_sdk(code: Path) -> None:
    with LambdaRuntime(code, "functions.aws_lambda.on_run_started", NOBODY, fresh=True) as function:
        body = delivery("session.updated")
        good = function.invoke(http(body, signed(body), base64_body=True))
        assert (good["statusCode"], json.loads(good["body"])) == (200, {"ignored": "session.updated"})
        assert function.invoke(http(b"{}"))["statusCode"] == 401
        assert function.invoke(http(b"", method="GET"))["statusCode"] == 405
        assert function.invoke(rest_v1())["statusCode"] == 400
        assert "Traceback" not in function.output()


def test_a_bad_event_is_an_error_that_lambda_counts_and_the_next_one_is_served(code: Path) -> None:
    with LambdaRuntime(code, "functions.aws_lambda.poll_tick", NOBODY, fresh=True) as function:
        with pytest.raises(InvocationFailed) as failed:
            function.invoke({"do": "rm"})
        assert failed.value.kind == "BadInvocation"
        assert function.invoke(rest_v1())["statusCode"] == 400
        assert function.invoke(http())["statusCode"] == 401
        assert function.invoke(sqs("no json")) == {"batchItemFailures": [{"itemIdentifier": "m0"}]}


def test_a_session_is_served_by_the_webhook_function_and_the_next_by_a_tick(place: Place, code: Path) -> None:
    environ = {**NOBODY, **place.environ}
    first = place.session(PROMPT)
    with LambdaRuntime(code, "functions.aws_lambda.on_run_started", environ) as function:
        body = delivery()
        answer = function.invoke(http(body, signed(body)))
        (drain,) = json.loads(answer["body"])["drains"]
        assert [item["end"] for item in drain["items"]] == ["handed_over"]
        place.wait_done(first)
    second = place.session(PROMPT)
    with LambdaRuntime(code, "functions.aws_lambda.poll_tick", environ, timeout=120) as function:
        report = function.invoke({"do": "tick"})
        assert [item["end"] for item in report["drains"][0]["items"]] == ["handed_over"]
        place.wait_done(second)
        assert function.invoke(eventbridge())["drains"][0]["items"] == []
        assert function.invoke(sqs({"do": "drain"}, {"do": "drain"})) == {"batchItemFailures": []}
        lines = [json.loads(line) for line in function.output().splitlines() if line.startswith('{"severity"')]
        assert [line for line in lines if line["message"].startswith("tick.done")]
    for session in (first, second):
        assert runs(place, session) == ["ran"]
        assert len(place.items(session)) == 1
    assert sorted(box["name"] for box in place.sandboxes()) == sorted(map(place.sandbox, (first, second)))


def test_a_webhook_that_hands_its_work_on_gets_a_session_served_by_the_tick_function(place: Place, code: Path) -> None:
    """As the template wires them: this one can read no key of either service, the other does the work."""
    tick_function = "arn:aws:lambda:eu-west-1:111122223333:function:serverless-hands-poll-tick"
    session = place.session(PROMPT)
    with Invoke() as invoke:
        hands_on = {
            **NOBODY,
            **place.environ,
            **invoke.environ,
            "ANTHROPIC_ENVIRONMENT_KEY": "env:NOT_HERE",
            "TENSORLAKE_API_KEY": "env:NOT_HERE",
            "DRAIN_MODE": "enqueue",
            "ENQUEUE_TO": f"aws-lambda:{tick_function}",
        }
        with LambdaRuntime(code, "functions.aws_lambda.on_run_started", hands_on) as function:
            body = delivery()
            answer = function.invoke(http(body, signed(body)))
            assert (answer["statusCode"], "error" in json.loads(answer["body"])) == (200, False), function.output()
        name, event = invoke.next()
        assert invoke.none_left()
    assert (name, event["do"]) == (tick_function, "drain")
    with LambdaRuntime(code, "functions.aws_lambda.poll_tick", {**NOBODY, **place.environ}, timeout=120) as function:
        (drain,) = function.invoke(event)["drains"]
        assert [item["end"] for item in drain["items"]] == ["handed_over"]
        place.wait_done(session)
    assert runs(place, session) == ["ran"]
    assert len(place.items(session)) == 1


def test_a_race_runs_in_the_fork_function_or_in_another_invocation_of_it(place: Place, code: Path) -> None:
    race = {
        "source": {"image": "agent-cli"},
        "n": 2,
        "script": "echo {i} > score.txt",
        "judge": {"type": "command", "script": "cat score.txt"},
    }
    own = "serverless-hands-fork-best-of-n"
    environ = {**NOBODY, **place.environ, "RACES_HANDED_TO": f"aws-lambda:{own}"}
    handler = "functions.aws_lambda.fork_best_of_n"
    with (
        Invoke() as invoke,
        LambdaRuntime(code, handler, {**environ, **invoke.environ}, timeout=120) as function,
    ):
        authorized = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
        answer = function.invoke(http(json.dumps(race).encode(), authorized))
        assert answer["statusCode"] == 200, answer
        report = json.loads(answer["body"])
        assert report["winner"] == "b1"
        assert report["leftovers"] == []
        later = function.invoke(http(json.dumps(race).encode(), {**authorized, "prefer": "respond-async"}))
        assert later["statusCode"] == 202, function.output()
        where = f"/{later['headers']['location'].rpartition('/')[2]}"
        name, event = invoke.next()
        with LambdaRuntime(code, handler, environ, timeout=120) as other:
            assert (name, other.invoke(event)) == (own, {"race": "finished"}), other.output()
            assert other.invoke(event) == {"race": "not taken up"}
        told = json.loads(function.invoke(http(b"", authorized, method="GET", path=where))["body"])
        assert (told["state"], told["report"]["winner"]) == ("finished", "b1")
        assert invoke.none_left()
