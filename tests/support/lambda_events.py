"""Events as Lambda gets them, and a context with a clock of its own."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any, Final


class LambdaContext:
    """Lambda's context, as far as it is read: the time that is left of `seconds`."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self._end - time.monotonic()) * 1000))


def http(
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "POST",
    path: str = "/",
    base64_body: bool = False,
    **extra: Any,
) -> dict[str, Any]:
    """Payload format 2.0, of a function URL or an HTTP API."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": "abc.lambda-url.eu-west-1.on.aws", "content-length": str(len(body)), **(headers or {})},
        "requestContext": {
            "accountId": "anonymous",
            "domainName": "abc.lambda-url.eu-west-1.on.aws",
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7"},
            "stage": "$default",
        },
        "body": base64.b64encode(body).decode() if base64_body else body.decode(),
        "isBase64Encoded": base64_body,
        **extra,
    }


def rest_v1(body: str = "") -> dict[str, Any]:
    """Payload format 1.0, of a REST API."""
    return {
        "resource": "/",
        "path": "/",
        "httpMethod": "POST",
        "headers": {"host": "abc.execute-api.eu-west-1.amazonaws.com"},
        "requestContext": {"httpMethod": "POST"},
        "body": body,
        "isBase64Encoded": False,
    }


def sqs(*bodies: object) -> dict[str, Any]:
    """A batch; a text is a body as it stands, anything else becomes JSON. Message ids are m0, m1, …"""
    return {
        "Records": [
            {
                "messageId": f"m{index}",
                "receiptHandle": "handle",
                "body": body if isinstance(body, str) else json.dumps(body),
                "attributes": {},
                "messageAttributes": {},
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:eu-west-1:111122223333:wakes",
            }
            for index, body in enumerate(bodies)
        ]
    }


def eventbridge(detail: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "version": "0",
        "id": "e1",
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "111122223333",
        "region": "eu-west-1",
        "resources": [],
        "detail": dict(detail or {}),
    }


def other_event(kind: str, source: str, detail: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Of EventBridge, and no schedule's."""
    return eventbridge(detail) | {"detail-type": kind, "source": source}


STRANGERS: Final[Mapping[str, Any]] = {
    "Records of aws:s3": {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {}}]},
    "Records of aws:sns": {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": "{}"}}]},
    "Records of aws:dynamodb": {"Records": [{"eventSource": "aws:dynamodb", "dynamodb": {}}]},
    "Records of aws:kinesis": {"Records": [{"eventSource": "aws:kinesis", "kinesis": {"data": ""}}]},
    "Records of cf": {"Records": [{"cf": {"request": {}}}]},
    "Records of nothing": {"Records": []},
    "an event of aws:kafka": {"eventSource": "aws:kafka", "records": {"topic-0": []}},
    "an event with awslogs": {"awslogs": {"data": "H4sIAAAA"}},
    "an event with version, triggerSource, request": {
        "version": "1",
        "triggerSource": "PreSignUp_SignUp",
        "request": {},
    },
    "an event with invocationId, job, tasks": {"invocationId": "1", "job": {"id": "1"}, "tasks": []},
    "an event with arguments, source, request": {"arguments": {}, "source": {"id": "1"}, "request": {"headers": {}}},
    "an event with specversion, type, source": {"specversion": "1.0", "type": "a.b", "source": "/c", "data": {}},
    "an event with type, authorizationToken, methodArn": {"type": "TOKEN", "authorizationToken": "t", "methodArn": "a"},
    "Object Created of aws.s3": other_event("Object Created", "aws.s3", {"bucket": {}}),
    "Order of my.app": other_event("Order", "my.app"),
    "a Lambda destination": {
        "version": "1.0",
        "requestContext": {"functionArn": "arn:aws:lambda:eu-west-1:1:function:f", "condition": "Success"},
        "requestPayload": {"do": "tick"},
        "responsePayload": {},
    },
    "an API's question to its authorizer": http()
    | {"type": "REQUEST", "routeArn": "arn:aws:execute-api:eu-west-1:1:a"},
    "JSON object": ["a list"],
}
"""What may be connected to a function by mistake, under what names it."""
