"""What an event of Lambda's is, by its shape, where it is no request of somebody's.

Anything may be connected to a function by mistake: a log subscription, an object's notification, another function's
destination. So what is not known to be a wake-up, a batch of them or a race is refused with its name, and never taken
for the nearest of the three (tests/foreign/test_lambda_runtime_client.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from functions.invocations import Invocation
from shared.texts import printable

_LONGEST_NAME: Final = 60
_MOST_NAMED: Final = 5


class UnknownEvent(ValueError):
    """An event of no known kind. The text has its name, so that whoever sent it is found."""


def require_known_gateway(event: Mapping[str, Any]) -> None:
    """Raises UnknownEvent for what looks like HTTP, and whose sender reads no answer to a request."""
    if "requestPayload" in event:
        raise UnknownEvent("no request, but what a Lambda destination tells of another invocation")
    if event.get("type") == "REQUEST" and ("routeArn" in event or "methodArn" in event):
        raise UnknownEvent("no request, but an API's question to its authorizer")


def wake_up(event: object) -> Invocation:
    """What an event or a message asks for. `{}` is what a schedule sends that was told nothing. Raises UnknownEvent and
    BadInvocation."""
    if not isinstance(event, Mapping):
        raise UnknownEvent("it must be a JSON object")
    if "do" in event or not event:
        return Invocation.read(event)
    detail = event.get("detail")
    if (
        "detail-type" in event
        and isinstance(detail, Mapping)
        and ("do" in detail or (event.get("source") == "aws.events" and not detail))
    ):
        return Invocation.read(detail)
    raise UnknownEvent(f"no wake-up, but {_name(event)}")


def wake_up_in(body: str) -> Invocation:
    """What a message of a queue asks for. Raises like `wake_up`."""
    try:
        message = orjson.loads(body)
    except ValueError:
        raise UnknownEvent("the message is not JSON") from None
    return wake_up(message)


def sqs_messages(event: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The records of an SQS batch, each with its messageId and its body, both texts. Raises UnknownEvent."""
    records = event["Records"]
    if not isinstance(records, list) or not records or not all(map(_is_message, records)):
        raise UnknownEvent(f"no batch of SQS, but {_name(event)}")
    return records


def require_race(event: Mapping[str, Any]) -> None:
    """A race has a source that is an object with a known field; many a service's event has a text of that name. Raises
    UnknownEvent."""
    from shared.races.request import Source  # not needed by the other functions

    source = event.get("source")
    if isinstance(source, Mapping) and not source.keys().isdisjoint(Source.model_fields):
        return
    fields = ", ".join(Source.model_fields)
    raise UnknownEvent(f"no race, but {_name(event)}; a race's source is an object with one of {fields}")


def _is_message(record: object) -> bool:
    return (
        isinstance(record, Mapping)
        and record.get("eventSource") == "aws:sqs"
        and isinstance(record.get("messageId"), str)
        and isinstance(record.get("body"), str)
    )


def _name(event: Mapping[str, Any]) -> str:
    """For people, of at most some hundred characters."""
    if "Records" in event:
        return f"Records of {_sources(event['Records'])}"
    if "detail-type" in event:
        kind, source = _short(event["detail-type"]), _short(event.get("source"))
        return f"an EventBridge event: {kind} of {source}"
    if "eventSource" in event:
        return f"an event of {_short(event['eventSource'])}"
    return f"an event with {_keys(event)}"


def _sources(records: object) -> str:
    found = records[:_MOST_NAMED] if isinstance(records, list) else []
    names = {_source(each) for each in found if isinstance(each, Mapping)}
    return _short(", ".join(sorted(names)) or "nothing")


def _source(record: Mapping[str, Any]) -> str:
    return str(record.get("eventSource") or record.get("EventSource") or _keys(record))


def _keys(event: Mapping[str, Any]) -> str:
    return _short(", ".join(map(str, list(event)[:_MOST_NAMED])) or "nothing")


def _short(name: object) -> str:
    return printable(str(name), _LONGEST_NAME)
