"""What the CloudEvents SDK sends, in both of its forms, is an event to poll_tick and gets no body back."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.support.serving import TOKEN, UVICORN, serving
from tests.support.world import OfflineWorld

http = pytest.importorskip("cloudevents.http", reason="the CloudEvents SDK is not installed")
conversion = pytest.importorskip("cloudevents.conversion")

ATTRIBUTES = {"type": "dev.knative.sources.ping", "source": "/apis/v1/namespaces/default/pingsources/tick"}


@pytest.fixture(scope="module")
def url(world: OfflineWorld) -> Iterator[str]:
    with serving(world.place(), UVICORN) as url:
        yield url


def posted(url: str, headers: dict[str, str], body: bytes | None, token: str = TOKEN) -> httpx2.Response:
    authorized = {**headers, "authorization": f"Bearer {token}"}
    return httpx2.post(f"{url}/poll_tick", headers=authorized, content=body, timeout=90, trust_env=False)


@pytest.mark.parametrize("form", ["to_binary", "to_structured"])
def test_an_event_is_a_tick_and_its_answer_is_empty(url: str, form: str) -> None:
    headers, body = getattr(conversion, form)(http.CloudEvent(ATTRIBUTES, {"tick": True}))
    answer = posted(url, headers, body)
    assert (answer.status_code, answer.content) == (204, b"")
    refused = posted(url, headers, body, token="of-nobody")
    assert (refused.status_code, refused.json()["error"]["type"]) == (401, "unauthorized")


def test_the_same_body_without_an_events_marks_is_answered_with_the_report(url: str) -> None:
    _, body = conversion.to_structured(http.CloudEvent(ATTRIBUTES, {"tick": True}))
    answer = posted(url, {"content-type": "application/json"}, body)
    assert (answer.status_code, sorted(answer.json())) == (200, ["drains", "reconciled", "seconds"])
