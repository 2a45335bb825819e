"""What people see of a session's events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from infra.cli.session.render import Look, Renderer, shorten, summarise

IDLE_END = {"type": "session.status_idle", "stop_reason": {"type": "end_turn"}}
IDLE_ACTION = {"type": "session.status_idle", "stop_reason": {"type": "requires_action", "event_ids": ["sevt_1"]}}
RUNNING = {"type": "session.status_running"}
THINKING = {"type": "agent.thinking"}


def shown(events: Sequence[Mapping[str, Any]]) -> list[str]:
    renderer = Renderer()
    return [line.text for event in events for line in renderer.lines(event)]


def call(identity: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "agent.tool_use", "id": identity, "name": name, "input": arguments}


def result(identity: str, text: str, kind: str = "user.tool_result", wrong: bool = False) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {"type": kind, "tool_use_id": identity, "content": content, "is_error": wrong}


def test_the_quickstart_reads_running_thinking_write_read_done() -> None:
    events = [
        RUNNING,
        {"type": "session.thread_status_running"},
        THINKING,
        call("sevt_1", "write", {"file_path": "hello.txt", "content": "hi"}),
        IDLE_ACTION,
        result("sevt_1", "wrote 2 bytes to hello.txt"),
        RUNNING,
        call("sevt_2", "read", {"file_path": "hello.txt"}),
        IDLE_ACTION,
        result("sevt_2", "hi"),
        RUNNING,
        {"type": "session.usage"},
        IDLE_END,
    ]
    assert shown(events) == [
        "· running",
        "· thinking",
        "→ write  hello.txt content='hi'",
        "← wrote 2 bytes to hello.txt",
        "→ read  hello.txt",
        "← hi",
        "· done",
    ]


def test_a_result_that_both_sides_report_is_shown_once() -> None:
    assert shown([result("sevt_1", "a"), result("sevt_1", "a", "agent.tool_result")]) == ["← a"]
    assert shown([result("sevt_1", "a", "agent.tool_result"), result("sevt_2", "b")]) == ["← a", "← b"]


def test_custom_tools_and_their_results_are_shown() -> None:
    use = {"type": "agent.custom_tool_use", "id": "sevt_4", "name": "get_order", "input": {"order_id": "7"}}
    answer = {"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_4", "content": "shipped"}
    assert shown([use, answer]) == ["→ get_order  order_id='7'", "← shipped"]


def test_a_second_turn_says_running_again_and_thinking_twice_in_a_row_is_said_once() -> None:
    assert shown([RUNNING, THINKING, THINKING, IDLE_END, RUNNING]) == ["· running", "· thinking", "· done", "· running"]


@pytest.mark.parametrize("reason", ["retries_exhausted", "budget_reached", "refusal", "something_new"])
def test_an_end_that_is_not_the_usual_one_says_which(reason: str) -> None:
    assert shown([{"type": "session.status_idle", "stop_reason": {"type": reason}}]) == [f"· done ({reason})"]


def test_an_idle_without_a_reason_is_shown_as_unknown() -> None:
    assert shown([{"type": "session.status_idle", "stop_reason": None}]) == ["· done (unknown)"]


def test_unknown_events_and_redacted_content_break_nothing() -> None:
    events: list[Mapping[str, Any]] = [
        {"type": "workflow_run.brand_new", "x": 1},
        {},
        {"type": "agent.message", "content": [{"type": "redacted"}]},
    ]
    assert shown(events) == ["\n[redacted]\n"]


def test_an_error_is_shown_with_its_type_message_and_retry() -> None:
    error = {"type": "model_overloaded_error", "message": "busy", "retry_status": {"type": "retrying"}}
    lines = list(Renderer().lines({"type": "session.error", "error": error}))
    assert [line.text for line in lines] == ["✗ session error: model_overloaded_error: busy (retrying)"]
    assert lines[0].look is Look.WRONG


def test_long_results_and_inputs_are_shortened_and_say_so() -> None:
    (line,) = shown([result("sevt_1", "x" * 2000)])
    assert line.endswith("… (+1500 characters)") and len(line) < 600
    (line,) = shown([result("sevt_1", "\n".join("abcdefghijkl"))])
    assert line.count("\n") == 7 and "… (+8 characters)" in line
    (line,) = shown([call("sevt_1", "write", {"file_path": "f", "content": "y" * 500})])
    assert len(line) < 300


def test_shortening_leaves_a_short_text_as_it_is() -> None:
    assert shorten("abc", 3, 1) == "abc"
    assert shorten("abcd", 3, 1) == "abc … (+1 characters)"


def test_a_command_of_several_lines_stays_on_one() -> None:
    assert summarise({"command": "ls\npwd"}) == "ls⏎pwd"
    assert summarise({"restart": True}) == "restart=True"
    assert summarise(None) == ""


def test_terminal_sequences_of_the_agent_never_reach_the_terminal() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07a\x9bb\rc\x00"
    lines = shown(
        [
            result("sevt_1", hostile),
            {"type": "agent.message", "content": [{"type": "text", "text": hostile}]},
            call("sevt_2", hostile, {"command": hostile}),
            {"type": "session.error", "error": {"type": "x", "message": hostile}},
        ]
    )
    assert len(lines) == 4
    assert not [line for line in lines if set(line) & set("\x1b\x07\x9b\r\x00")]
