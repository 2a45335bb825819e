"""What happens in a turn: the order of events, parking, confirmations, interrupts, and what is queued again."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from tests.infra.local.claude.conftest import ClaudeStage, message
from tests.support.waiting import until

HEAD = ["session.status_running", "session.thread_status_running"]
TAIL = ["span.model_request_end", "session.thread_status_idle", "session.usage", "session.status_idle"]

CUSTOM = {
    "type": "custom",
    "name": "get_order",
    "description": "looks an order up",
    "input_schema": {"type": "object", "properties": {}},
}


def parked(stage: ClaudeStage, session_id: str) -> list[str]:
    """Wait until the turn is parked; the ids it waits for."""
    ids: list[str] = stage.until_idle(session_id, "requires_action").stop_reason.event_ids
    return ids


def agent_with(stage: ClaudeStage, *tools: Any) -> None:
    toolset: Any = {"type": "agent_toolset_20260401"}
    stage.api.beta.agents.update(stage.agent_id, tools=list(tools) or [toolset])


def script(*rounds: str) -> str:
    return "script:\n" + "\n".join(f"- {line}" for line in rounds)


def test_the_events_of_a_turn_come_in_the_documented_order(stage: ClaudeStage) -> None:
    session_id = stage.session("create hello.txt with 'hi' then read it back")
    for result in ("wrote 2 bytes to hello.txt", "hi"):
        [call] = parked(stage, session_id)
        stage.send(session_id, stage.answer(call, result), client=stage.worker)
    stage.until_idle(session_id)
    wake = ["user.tool_result", *HEAD, "span.model_request_start"]
    assert stage.types(session_id) == [
        *(*HEAD, "user.message", "span.model_request_start", "agent.thinking", "agent.tool_use", *TAIL),
        *(*wake, "agent.tool_use", *TAIL),
        *(*wake, "agent.message", *TAIL),
    ]
    said = next(event for event in stage.events(session_id) if event.type == "agent.message")
    assert "hi" in said.content[0].text and "scripted brain, not a model" in said.content[0].text


def test_every_event_has_an_id_and_a_time_and_spans_pair_up(stage: ClaudeStage) -> None:
    session_id = stage.session("hello there")
    stage.until_idle(session_id)
    events = stage.events(session_id)
    assert all(event.id.startswith("sevt_") and event.processed_at for event in events)
    start, end = (next(e for e in events if e.type == f"span.model_request_{part}") for part in ("start", "end"))
    assert end.model_request_start_id == start.id


def test_a_message_nobody_understands_is_answered_plainly_and_ends_the_turn(stage: ClaudeStage) -> None:
    session_id = stage.session("What is the meaning of life?")
    stage.until_idle(session_id)
    said = next(event for event in stage.events(session_id) if event.type == "agent.message")
    assert "I do not understand" in said.content[0].text and "$ COMMAND" in said.content[0].text


def test_parallel_calls_park_until_every_id_is_answered(stage: ClaudeStage) -> None:
    session_id = stage.session(
        script(
            "calls: [{tool: bash, input: {command: ls}}, {tool: read, input: {file_path: a}}]",
            "say: 'got {results}'",
        )
    )
    first, second = parked(stage, session_id)
    stage.send(session_id, stage.answer(second, "two"))
    assert parked(stage, session_id) == [first]
    assert stage.status(session_id) == "idle"
    stage.send(session_id, stage.answer(first, "one"))
    stage.until_idle(session_id)
    said = next(event for event in stage.events(session_id) if event.type == "agent.message")
    assert said.content[0].text == "got one\ntwo"


def test_a_second_result_for_one_call_is_accepted_and_ignored(stage: ClaudeStage) -> None:
    session_id = stage.session("$ ls")
    [call] = parked(stage, session_id)
    stage.send(session_id, stage.answer(call, "first"))
    stage.until_idle(session_id)
    before = stage.types(session_id)
    echoed = stage.send(session_id, stage.answer(call, "second")).data
    assert echoed[0].id.startswith("sevt_")
    assert stage.types(session_id) == before


def test_a_result_for_an_unknown_call_or_of_the_wrong_kind_is_400(stage: ClaudeStage) -> None:
    session_id = stage.session("$ ls")
    [call] = parked(stage, session_id)
    for wrong in (
        stage.answer("sevt_nowhere"),
        {"type": "user.custom_tool_result", "custom_tool_use_id": call},
        {"type": "agent.message", "content": []},
        {"type": "user.message", "content": []},
    ):
        with pytest.raises(anthropic.BadRequestError):
            stage.send(session_id, wrong)
    assert parked(stage, session_id) == [call]


def test_custom_tools_are_answered_by_a_custom_result(stage: ClaudeStage) -> None:
    agent_with(stage, CUSTOM)
    session_id = stage.session('call get_order {"order_id": "7"}')
    [call] = parked(stage, session_id)
    used = next(event for event in stage.events(session_id) if event.type == "agent.custom_tool_use")
    assert (used.id, used.input) == (call, {"order_id": "7"})
    content = [{"type": "text", "text": "shipped"}]
    stage.send(session_id, {"type": "user.custom_tool_result", "custom_tool_use_id": call, "content": content})
    stage.until_idle(session_id)


def test_web_tools_are_answered_by_the_server_without_a_second_running_pair(stage: ClaudeStage) -> None:
    session_id = stage.session(
        script("calls: [{tool: web_search, input: {query: x}, result: 'sunny'}]", "say: 'it is {last}'")
    )
    stage.until_idle(session_id)
    events = stage.events(session_id)
    assert [event.type for event in events].count("session.status_running") == 1
    result = next(event for event in events if event.type == "agent.tool_result")
    assert result.content[0].text == "sunny"
    assert events[-5].content[0].text == "it is sunny"


def test_a_call_to_a_tool_that_is_switched_off_is_denied_and_the_turn_goes_on(stage: ClaudeStage) -> None:
    agent_with(stage, {"type": "agent_toolset_20260401", "configs": [{"name": "bash", "enabled": False}]})
    session_id = stage.session("$ ls")
    stage.until_idle(session_id)
    events = stage.events(session_id)
    call = next(event for event in events if event.type == "agent.tool_use")
    result = next(event for event in events if event.type == "agent.tool_result")
    assert (call.evaluated_permission, call.evaluation) == ("deny", None)
    assert (result.tool_use_id, result.is_error) == (call.id, True)


def asking(stage: ClaudeStage) -> tuple[str, str]:
    policy = {"name": "bash", "permission_policy": {"type": "always_ask"}}
    agent_with(stage, {"type": "agent_toolset_20260401", "configs": [policy]})
    session_id = stage.session("$ ls")
    [call] = parked(stage, session_id)
    used = next(event for event in stage.events(session_id) if event.type == "agent.tool_use")
    assert (used.evaluated_permission, used.evaluation.type) == ("ask", "always_ask")
    return session_id, call


def test_an_asked_call_waits_for_the_users_word_and_then_for_its_result(stage: ClaudeStage) -> None:
    session_id, call = asking(stage)
    with pytest.raises(anthropic.BadRequestError, match="confirmation"):
        stage.send(session_id, stage.answer(call))
    stage.send(session_id, {"type": "user.tool_confirmation", "tool_use_id": call, "result": "allow"})
    assert stage.types(session_id)[-1] == "user.tool_confirmation"
    stage.send(session_id, stage.answer(call))
    stage.until_idle(session_id)


def test_a_denied_call_is_resolved_by_the_server_with_the_users_reason(stage: ClaudeStage) -> None:
    session_id, call = asking(stage)
    stage.send(
        session_id,
        {"type": "user.tool_confirmation", "tool_use_id": call, "result": "deny", "deny_message": "not on prod"},
    )
    stage.until_idle(session_id)
    result = next(event for event in stage.events(session_id) if event.type == "agent.tool_result")
    assert (result.tool_use_id, result.is_error) == (call, True)
    assert "not on prod" in result.content[0].text


def test_an_interrupt_ends_a_parked_turn_and_answers_its_calls(stage: ClaudeStage) -> None:
    session_id = stage.session("$ sleep 100")
    [call] = parked(stage, session_id)
    stage.send(session_id, {"type": "user.interrupt"})
    stage.until_idle(session_id)
    assert stage.types(session_id)[-5:] == ["user.interrupt", "agent.tool_result", *TAIL[1:]]
    stage.send(session_id, stage.answer(call, "late"))
    assert stage.types(session_id)[-1] == "session.status_idle"


def test_an_interrupt_ends_a_running_turn_and_closes_its_span(stage: ClaudeStage) -> None:
    stage.settings(think_seconds=30)
    session_id = stage.session("$ ls")
    until(lambda: "span.model_request_start" in stage.types(session_id), "the model is asked")
    stage.send(session_id, {"type": "user.interrupt"})
    stage.until_idle(session_id)
    assert stage.types(session_id)[-5:] == ["span.model_request_end", "user.interrupt", *TAIL[1:]]
    assert stage.status(session_id) == "idle"


def test_messages_wait_for_their_turn_at_the_tail_of_the_list(stage: ClaudeStage) -> None:
    session_id = stage.session("$ ls")
    [call] = parked(stage, session_id)
    queued = stage.send(session_id, message("hello")).data[0]
    assert queued.processed_at is None
    tail = stage.events(session_id)[-1]
    assert (tail.id, tail.processed_at) == (queued.id, None)
    stage.send(session_id, stage.answer(call))
    stage.until_idle(session_id)
    processed = [event for event in stage.events(session_id) if event.id == queued.id]
    assert [event.processed_at is not None for event in processed] == [True]


def test_a_system_message_follows_what_it_accompanies(stage: ClaudeStage) -> None:
    session_id = stage.session()
    note = {"type": "system.message", "content": [{"type": "text", "text": "be brief"}]}
    stage.send(session_id, message("hello"), note)
    stage.until_idle(session_id)
    assert stage.types(session_id)[:5] == [*HEAD, "user.message", "system.message", "span.model_request_start"]
    with pytest.raises(anthropic.BadRequestError):
        stage.send(session_id, note)


def test_a_failure_that_is_retried_reschedules_and_then_goes_on(stage: ClaudeStage) -> None:
    failure = "fail: {type: model_overloaded_error, message: busy, retry: retrying, times: 2}, say: 'at last'"
    session_id = stage.session("script:\n- {" + failure + "}")
    stage.until_idle(session_id)
    types = stage.types(session_id)
    assert types.count("session.error") == types.count("session.status_rescheduled") == 2
    assert types[-5] == "agent.message"


def test_an_exhausted_failure_leaves_the_session_idle_and_a_terminal_one_ends_it(stage: ClaudeStage) -> None:
    exhausted = stage.session("script:\n- fail: {retry: exhausted}")
    stage.until_idle(exhausted, "retries_exhausted")
    terminal = stage.session("script:\n- fail: {retry: terminal}")
    until(lambda: stage.status(terminal) == "terminated", "terminated")
    assert stage.types(terminal)[-2:] == ["session.error", "session.status_terminated"]


# What is queued (docs/wire/anthropic.md#33-state-machine)


def test_one_session_has_one_live_item_and_a_message_to_a_dormant_one_queues_a_new_one(stage: ClaudeStage) -> None:
    session_id = stage.session("hello")
    stage.until_idle(session_id)
    stage.send(session_id, message("hello again"))
    stage.until_idle(session_id)
    assert len(stage.items()) == 1
    stage.stop(stage.claim().id, force=True)
    stage.send(session_id, message("are you there?"))
    assert [item.state for item in stage.items()] == ["queued", "stopped"]


def test_a_stop_with_unanswered_calls_queues_nothing_until_an_interrupt_or_a_message(stage: ClaudeStage) -> None:
    session_id = stage.session("$ ls")
    parked(stage, session_id)
    stage.stop(stage.claim().id, force=True)
    assert stage.poll() is None
    stage.send(session_id, {"type": "user.interrupt"})
    stage.until_idle(session_id)
    assert stage.poll().data.id == session_id
    other = stage.session("$ ls")
    parked(stage, other)
    stage.stop(stage.claim().id, force=True)
    stage.send(other, message("still there?"))
    assert stage.poll().data.id == other


def test_a_message_that_its_worker_no_longer_sees_gets_a_new_item_at_the_stop(stage: ClaudeStage) -> None:
    session_id = stage.session("hello")
    stage.until_idle(session_id)
    item = stage.claim()
    stage.beat(item.id)
    stage.send(session_id, message("$ ls"))
    parked(stage, session_id)
    stage.stop(item.id, force=True)
    fresh = stage.poll()
    assert fresh.data.id == session_id and fresh.id != item.id


def test_a_late_result_that_wakes_the_session_queues_it_again(stage: ClaudeStage) -> None:
    session_id = stage.session(script("calls: [{tool: bash, input: {command: ls}}]", "say: done"))
    [call] = parked(stage, session_id)
    stage.stop(stage.claim().id, force=True)
    stage.send(session_id, stage.answer(call), client=stage.worker)
    stage.until_idle(session_id)
    assert stage.poll().data.id == session_id


def test_workers_can_be_limited_to_results(stage: ClaudeStage) -> None:
    session_id = stage.session("$ ls")
    [call] = parked(stage, session_id)
    stage.settings(results_only_for_workers=True)
    with pytest.raises(anthropic.PermissionDeniedError):
        stage.send(session_id, {"type": "user.interrupt"}, client=stage.worker)
    stage.send(session_id, stage.answer(call), client=stage.worker)
    stage.until_idle(session_id)
