"""What each shape of event is taken for at each of Lambda's entry points, and how what is none is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from functions import aws_lambda
from functions.invocations import BadInvocation
from functions.lambda_events import UnknownEvent
from tests.support.lambda_bench import LambdaBench
from tests.support.lambda_events import STRANGERS, LambdaContext, eventbridge, http, other_event, rest_v1, sqs


@pytest.fixture
def bench() -> Iterator[LambdaBench]:
    bench = LambdaBench()
    yield bench
    bench.process.close()


@pytest.mark.parametrize("event", [{}, {"do": "tick"}, eventbridge(), eventbridge({"do": "tick"})])
def test_the_schedules_events_tick_without_a_token(bench: LambdaBench, event: Mapping[str, Any]) -> None:
    assert bench(event) == {"drains": [], "reconciled": [], "seconds": 0.0}
    assert bench.done == ["tick"]


@pytest.mark.parametrize(
    "event",
    [
        rest_v1(),
        {"httpMethod": "POST"},
        {"headers": {}},
        {"requestContext": {"elb": {}}, "do": "tick"},
        {"requestContext": {"connectionId": "websocket"}, "body": "{}"},
        http() | {"version": "1.0"},
        http() | {"requestContext": {"http": {}}},
        http() | {"body": "not base64!", "isBase64Encoded": True},
        http() | {"body": 7},
    ],
)
def test_http_of_another_form_is_refused_and_never_taken_for_the_schedule(
    bench: LambdaBench, event: Mapping[str, Any]
) -> None:
    assert bench(event)["statusCode"] == 400
    assert bench.done == []


HANDLERS = ("on_run_started", "poll_tick", "fork_best_of_n")


@pytest.fixture(params=HANDLERS)
def entry(request: pytest.FixtureRequest, bench: LambdaBench, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """One of the three, as Lambda calls it, in the bench's process."""
    monkeypatch.setattr(aws_lambda, "_of_this_process", bench.process)
    called = getattr(aws_lambda, request.param)
    return lambda event: called(event, LambdaContext())


@pytest.mark.parametrize("name", list(STRANGERS))
def test_what_was_connected_by_mistake_does_nothing_and_is_named(
    bench: LambdaBench, entry: Callable[[Any], Any], name: str
) -> None:
    with pytest.raises(UnknownEvent) as caught:
        entry(STRANGERS[name])
    assert name in str(caught.value)
    assert bench.services == []


@pytest.mark.parametrize(
    "event",
    [
        None,
        "tick",
        {"Records": 7},
        {"Records": [7]},
        {"Records": [*sqs({})["Records"], {"eventSource": "aws:sns"}]},
        {"source": "aws.s3"},
        {"source": {}},
        {"at": 1.0},
        {"\x1b[2J\n": 1, **{f"k{n}": 1 for n in range(1_000)}},
        other_event("\x1b[2J" * 1_000, "\n" * 1_000),
    ],
)
def test_an_event_of_no_known_kind_has_a_name_that_can_be_shown(
    bench: LambdaBench, entry: Callable[[Any], Any], event: Any
) -> None:
    with pytest.raises(UnknownEvent) as caught:
        entry(event)
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()
    assert bench.services == []


@pytest.mark.parametrize("event", [{}, sqs({"do": "tick"}), eventbridge(), eventbridge({"do": "tick"})])
def test_the_fork_function_takes_no_schedules_event_for_a_race(
    bench: LambdaBench, monkeypatch: pytest.MonkeyPatch, event: Mapping[str, Any]
) -> None:
    monkeypatch.setattr(aws_lambda, "_of_this_process", bench.process)
    with pytest.raises(UnknownEvent, match=r"no race, but .*; a race's source is an object with one of session_id, "):
        aws_lambda.fork_best_of_n(event, LambdaContext())
    with pytest.raises(BadInvocation):
        aws_lambda.fork_best_of_n({"do": "tick"}, LambdaContext())
    assert bench.services == []


def test_a_wake_up_may_come_in_the_detail_of_any_event(bench: LambdaBench) -> None:
    bench(other_event("Tick", "my.app", {"do": "tick"}))
    assert bench.done == ["tick"]


def test_a_message_that_is_no_wake_up_is_given_back_and_named(
    bench: LambdaBench, caplog: pytest.LogCaptureFixture
) -> None:
    """What S3, SNS or a rule puts into the queue."""
    names = [name for name in STRANGERS if "requestContext" not in STRANGERS[name]]
    batch = sqs(*(STRANGERS[name] for name in names), "no json", {"do": "rm"}, {"do": "tick"}, eventbridge())
    failed = [each["itemIdentifier"] for each in bench(batch)["batchItemFailures"]]
    assert failed == [f"m{index}" for index in range(len(names) + 2)]
    assert bench.done == ["tick"]
    said = [record.getMessage() for record in caplog.records if "message.unreadable" in record.getMessage()]
    assert [name in line for name, line in zip([*names, "not JSON", "do: must be"], said, strict=True)] == [True] * len(
        said
    )


@pytest.mark.parametrize(
    "event", [{"do": "rm"}, {"do": 7}, {"do": "session_over"}, {"do": "drain", "at": "now"}, {"do": "tick", "at": True}]
)
def test_a_wake_up_of_no_known_kind_is_an_error(bench: LambdaBench, event: Any) -> None:
    with pytest.raises(BadInvocation):
        bench(event)
