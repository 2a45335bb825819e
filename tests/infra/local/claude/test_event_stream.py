"""Listing and streaming a session's events (docs/wire/anthropic.md#82-event-json,
docs/wire/anthropic.md#83-sse-framing)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import anthropic
import pytest

from tests.infra.local.claude.conftest import API_KEY, BETA, ClaudeStage, message
from tests.support.waiting import until


def streamed(stage: ClaudeStage, session_id: str, act: Callable[[], object], until: str) -> list[Any]:
    """Open a stream, act, and collect events up to the first of type `until`."""
    seen = []
    with stage.api.beta.sessions.events.stream(session_id) as stream:
        act()
        for event in stream:
            seen.append(event)
            if event.type == until:
                break
    return seen


def test_a_stream_is_live_only_and_agrees_with_the_list(stage: ClaudeStage) -> None:
    session_id = stage.session("hello")
    stage.until_idle(session_id)
    before = stage.events(session_id)
    seen = streamed(stage, session_id, lambda: stage.send(session_id, message("again")), "session.status_idle")
    assert [event.id for event in seen] == [event.id for event in stage.events(session_id)[len(before) :]]


def test_every_listener_gets_every_event(stage: ClaudeStage) -> None:
    session_id = stage.session()
    seen: list[list[str]] = []
    ready = threading.Barrier(3)

    def listen() -> None:
        events = streamed(stage, session_id, ready.wait, "session.status_idle")
        seen.append([event.id for event in events])

    threads = [threading.Thread(target=listen) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait(5)
    stage.send(session_id, message("hello"))
    for thread in threads:
        thread.join(5)
    assert len(seen) == 2 and seen[0] == seen[1] != []


def test_frames_name_their_event_and_silence_is_pinged(stage: ClaudeStage) -> None:
    stage.settings(ping_interval=0.1)
    session_id = stage.session()
    headers = {"authorization": f"Bearer {API_KEY}", **BETA}
    with stage.raw.stream("GET", f"/v1/sessions/{session_id}/events/stream", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines) == "event: ping"
        stage.send(session_id, message("hello"))
        named = next(line for line in lines if line.startswith("event: ") and line != "event: ping")
        assert named == "event: session.status_running"
        assert next(lines).startswith('data: {"type":"session.status_running","id":"sevt_')


def test_the_sdk_does_not_see_pings(stage: ClaudeStage) -> None:
    stage.settings(ping_interval=0.05)
    session_id = stage.session()

    def act() -> None:
        time.sleep(0.2)
        stage.send(session_id, message("hello"))

    assert streamed(stage, session_id, act, "session.status_running")[0].type == "session.status_running"


def test_a_stream_ends_when_its_session_is_deleted(stage: ClaudeStage) -> None:
    session_id = stage.session()
    seen = streamed(stage, session_id, lambda: stage.api.beta.sessions.delete(session_id), "none")
    assert [event.type for event in seen] == ["session.deleted"]


def test_streams_can_be_cut_on_request_and_listeners_are_forgotten(stage: ClaudeStage) -> None:
    session_id = stage.session()

    def cut() -> None:
        assert stage.admin.post("/_admin/streams/close", json={"session_id": session_id}).json() == {"closed": 1}

    assert streamed(stage, session_id, cut, "none") == []
    assert _listeners(stage, session_id) == 0


def test_a_client_that_goes_away_is_forgotten(stage: ClaudeStage) -> None:
    stage.settings(ping_interval=0.05)
    session_id = stage.session()
    with stage.api.beta.sessions.events.stream(session_id):
        assert _listeners(stage, session_id) == 1
    until(lambda: _listeners(stage, session_id) == 0, "the listener is gone")


def _listeners(stage: ClaudeStage, session_id: str) -> int:
    sessions = stage.admin.get("/_admin/state").json()["sessions"]
    count: int = next(session["listeners"] for session in sessions if session["id"] == session_id)
    return count


def test_the_list_filters_orders_and_pages(stage: ClaudeStage) -> None:
    session_id = stage.session("hello")
    stage.until_idle(session_id)
    events = stage.api.beta.sessions.events
    everything = stage.types(session_id)
    assert [e.type for e in events.list(session_id, limit=3)] == everything
    assert [e.type for e in events.list(session_id, limit=3, order="desc")] == everything[::-1]
    chosen = events.list(session_id, types=["agent.message", "user.message"])
    assert [e.type for e in chosen] == ["user.message", "agent.message"]
    message_at = stage.events(session_id)[2].processed_at
    later = [e.type for e in events.list(session_id, created_at_gt=message_at)]
    assert later == everything[3:]
    with pytest.raises(anthropic.BadRequestError):
        events.list(session_id, limit=1001)


def test_only_known_previews_may_be_asked_for(stage: ClaudeStage) -> None:
    session_id = stage.session()
    with pytest.raises(anthropic.BadRequestError):
        stage.api.beta.sessions.events.stream(session_id, event_deltas=["user.message"])  # type: ignore[list-item]
