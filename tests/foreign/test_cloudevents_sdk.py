"""What the CloudEvents SDK sends, in both of its forms, is an event to poll_tick and gets no body back."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from functions.poll_tick import is_event

http = pytest.importorskip("cloudevents.http", reason="the CloudEvents SDK is not installed")
conversion = pytest.importorskip("cloudevents.conversion")

ATTRIBUTES = {"type": "dev.knative.sources.ping", "source": "/apis/v1/namespaces/default/pingsources/tick"}


def _request(headers: dict[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw})


def test_both_forms_of_an_event_are_known() -> None:
    event = http.CloudEvent(ATTRIBUTES, {"tick": True})
    for form in (conversion.to_binary, conversion.to_structured):
        headers, _ = form(event)
        assert is_event(_request(headers)), form.__name__
    assert not is_event(_request({"content-type": "application/json"}))
