"""What people see of a session's events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from infra.cli.session.render import LineStyle, Renderer, shorten, summarise

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


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("retries_exhausted", ": the model could not be reached, and no more tries are made; "),
        ("budget_reached", ": the session's budget is used up: "),
        ("refusal", ": the model refused"),
        ("something_new", ""),
    ],
)
def test_an_end_that_is_not_the_usual_one_says_which_and_what_it_means(reason: str, words: str) -> None:
    (line,) = shown([{"type": "session.status_idle", "stop_reason": {"type": reason}}])
    assert line.startswith(f"· done ({reason}){words}")
    assert words or line == f"· done ({reason})"


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
    for retry, words in (
        ("retrying", "retrying: the service tries again by itself"),
        ("exhausted", "exhausted: the service tries no more; you may send the message again"),
        ("terminal", "terminal: the session ends with it; start a new one"),
        ("new_kind", "new_kind"),
    ):
        error = {"type": "model_overloaded_error", "message": "busy", "retry_status": {"type": retry}}
        lines = list(Renderer().lines({"type": "session.error", "error": error}))
        assert [line.text for line in lines] == [f"✗ session error: model_overloaded_error: busy ({words})"]
        assert lines[0].look is LineStyle.WRONG


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


HOSTILE = "odd\x1b[2J\x9b31m\u202egnp\u2066\u2028\nFORGED"


@pytest.mark.parametrize(
    "event",
    [
        {"type": "session.status_idle", "stop_reason": {"type": HOSTILE}},
        {"type": "session.error", "error": {"type": HOSTILE, "message": HOSTILE, "retry_status": {"type": HOSTILE}}},
        call("sevt_1", HOSTILE, {HOSTILE: HOSTILE}),
        {"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "deny", "deny_message": HOSTILE},
        {"type": "user.tool_result", "tool_use_id": "s", "content": [{"type": HOSTILE}]},
        {"type": "user.tool_result", "tool_use_id": "s", "content": [{"type": "image", "source": {"url": HOSTILE}}]},
        {"type": "user.tool_result", "tool_use_id": "s", "content": [{"source": {"media_type": HOSTILE, "data": "x"}}]},
    ],
)
def test_no_text_of_the_service_or_the_agent_turns_the_line_or_makes_one(event: Mapping[str, Any]) -> None:
    for text in shown([event]):
        assert all(each.isprintable() or each == "\n" for each in text)
        assert not [line for line in text.split("\n") if line.startswith("FORGED")]


def test_a_message_of_the_agent_cannot_pass_for_a_line_of_the_program() -> None:
    said = "good\n· done\n✗ all is lost\n> rm -rf /\nsession sesn_1\n  · set in"
    (text,) = shown([{"type": "agent.message", "content": [{"type": "text", "text": said}]}])
    assert text.split("\n") == [
        "", "good", "  · done", "  ✗ all is lost", "  > rm -rf /", "  session sesn_1", "  · set in", ""
    ]  # fmt: skip


def test_images_and_documents_are_named_with_their_size() -> None:
    png = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJDRA=="}}
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "A" * 2_000_000}}
    link = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "12345"}}
    content = [{"type": "text", "text": "see "}, png, pdf, link, text, {"type": "image"}]
    (line,) = shown([{"type": "user.tool_result", "tool_use_id": "s", "content": content}])
    assert line == (
        "← see [image/png, 4 B][application/pdf, 1.5 MB][image at https://example.com/a.png][text/plain, 5 B][image]"
    )


def test_a_confirmation_is_told() -> None:
    allow = {"type": "user.tool_confirmation", "tool_use_id": "s", "result": "allow"}
    deny = {"type": "user.tool_confirmation", "tool_use_id": "s", "result": "deny", "deny_message": "not on prod"}
    assert shown([allow, deny, {**deny, "deny_message": None}]) == ["· allowed", "· denied: not on prod", "· denied"]
