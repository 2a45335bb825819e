"""Drives a session's turns: input in, model requests, tool rounds, idle (docs/wire/anthropic.md#81-a-self-hosted-turn,
docs/wire/anthropic.md#33-state-machine).

    AT_REST --input--> THINKING --reply without calls--> AT_REST (end_turn)
    THINKING --reply with calls for a client--> PARKED (requires_action) --last answer--> THINKING
    any --user.interrupt--> AT_REST

Between two awaits of the brain everything is synchronous, so a burst of events is never interleaved and
`session.status_idle` is the last event of a turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from infra.local.claude.agents import SERVER_TOOLS, custom_tools, enabled_tools, evaluate
from infra.local.claude.brain import Brain, Conversation, Failure, Reply, Round, ToolCall, ToolOutcome
from infra.local.claude.clock import Clock, stamp
from infra.local.claude.errors import ClaudeApiError, invalid
from infra.local.claude.events import Event
from infra.local.claude.ids import new_id
from infra.local.claude.inputs import MESSAGE_TYPES, RESULT_TYPES, text_of
from infra.local.claude.knobs import Knobs
from infra.local.claude.sessions import Input, OfflineSession, OpenCall, Phase
from infra.local.claude.work import OfflineWorkItem, OfflineWorkQueue, State

MAX_ROUNDS = 500
"""A brain that asks for more tool rounds in one turn is broken; the turn ends in an error."""

_NO_TOKENS = {
    "input_tokens": 0,
    "output_tokens": 0,
    "cache_read_input_tokens": 0,
    "cache_creation_input_tokens": 0,
}
_log = logging.getLogger(__name__)

Announce = Callable[[str, OfflineSession], None]
"""Emits a webhook event of that type for the session."""


class Turns:
    def __init__(self, clock: Clock, knobs: Knobs, queue: OfflineWorkQueue, brain: Brain, announce: Announce) -> None:
        self._clock = clock
        self._knobs = knobs
        self._queue = queue
        self.brain = brain
        self._announce = announce

    # What comes in

    def open(self, session: OfflineSession, payloads: list[dict[str, Any]]) -> None:
        """A new session: with initial events it runs at once, without it is queued all the same."""
        if payloads:
            self.accept(session, payloads)
        elif self._knobs.create_enqueues:
            self._ensure_item(session)

    def accept(self, session: OfflineSession, payloads: list[dict[str, Any]]) -> list[Event]:
        """Take checked client events in order; answers them with their ids, as they are recorded by then."""
        if session.terminated:
            raise invalid("the session is terminated")
        taken: list[Event | Input] = []
        waiting = list(payloads)
        while waiting:
            payload = waiting.pop(0)
            event = {"id": new_id("sevt"), "processed_at": None, **payload}
            follower: Event | None = None
            if waiting and waiting[0]["type"] == "system.message":
                follower = {"id": new_id("sevt"), "processed_at": None, **waiting.pop(0)}
            if event["type"] in MESSAGE_TYPES:
                entry = Input(event, _task_of(event), [follower] if follower else [])
                taken.append(entry)
                self._take(session, entry)
            else:
                taken.append(self._apply(session, event, follower))
            if follower is not None and event["type"] not in MESSAGE_TYPES:
                taken.append(follower)
        echoes: list[Event] = []
        for item in taken:
            echoes += [item.event, *item.followers] if isinstance(item, Input) else [item]
        return echoes

    def item_ended(self, session: OfflineSession, item: OfflineWorkItem) -> None:
        """The session's item has stopped. Work that its worker may never have seen gets a new one.

        A stop that merely leaves calls unanswered queues nothing (docs/wire/anthropic.md#33-state-machine).
        """
        lost = session.phase is not Phase.AT_REST and session.unserved_input
        if lost and not session.terminated and self._knobs.message_at_stop_enqueues:
            self._ensure_item(session)

    def terminate(self, session: OfflineSession) -> None:
        """The session is archived, or a failure ended it for good."""
        self._cancel(session)
        self._set_status(session, "terminated")
        session.phase = Phase.AT_REST
        session.log.add("session.status_terminated")
        self._announce("session.status_terminated", session)

    def abandon(self, session: OfflineSession) -> None:
        """The session is being deleted, or the service ends."""
        self._cancel(session)

    # Inputs

    def _take(self, session: OfflineSession, entry: Input) -> None:
        session.inbox.append(entry)
        item = self._queue.live_item_of(session.id)
        if item is not None and self._knobs.message_adds_item:
            self._queue.enqueue(session.environment_id, "session", session.id)
        if session.phase is Phase.AT_REST:
            session.unserved_input = item is not None and item.state in (State.ACTIVE, State.STOPPING)
            self._run(session)
            self._take_next_input(session)
            self._spawn(session)
            return
        if entry.event["type"] == "user.define_outcome":
            entry.event = session.log.process(entry.event)
        else:
            session.log.hold(entry.event)
        for event in entry.followers:
            session.log.hold(event)
        if any(not call.custom for call in session.open_calls):
            self._ensure_item(session)

    def _take_next_input(self, session: OfflineSession) -> None:
        entry = session.inbox.popleft()
        if entry.event["processed_at"] is None:
            entry.event = session.log.process(entry.event)
        entry.followers = [session.log.process(event) for event in entry.followers]
        session.messages.append(entry.text)
        session.rounds = []

    def _apply(self, session: OfflineSession, event: Event, follower: Event | None) -> Event:
        kind = event["type"]
        if kind == "user.interrupt":
            return self._interrupt(session, event)
        call = session.calls.get(event[RESULT_TYPES.get(kind, "tool_use_id")])
        if call is None or call.outcome is not None:
            # Answered before, or closed by an interrupt: accepted and without effect.
            if kind in RESULT_TYPES and self._knobs.second_result_status != 200:
                raise ClaudeApiError(self._knobs.second_result_status, "the call has a result")
            return {**event, "processed_at": stamp(self._clock.now())}
        if kind == "user.tool_confirmation":
            return self._confirm(session, call, event)
        done = session.log.process(event)
        if follower is not None:
            follower.update(session.log.process(follower))
        session.unserved_input = False
        call.outcome = ToolOutcome(call.call, text_of(event["content"]), event["is_error"])
        if self._knobs.mirrors_results and not call.custom:
            answer = {name: event[name] for name in ("tool_use_id", "is_error", "content")}
            session.log.add("agent.tool_result", **answer)
        self._after_answer(session)
        return done

    def _confirm(self, session: OfflineSession, call: OpenCall, event: Event) -> Event:
        done = session.log.process(event)
        if call.confirmed:
            return done
        if event["result"] == "deny":
            reason = event.get("deny_message") or "no reason given"
            self._resolve(session, call, f"the user denied this call: {reason}", is_error=True)
            self._after_answer(session)
            return done
        call.confirmed = True
        if call.call.name in SERVER_TOOLS:
            self._resolve(session, call, _web_result(call.call), is_error=False)
            self._after_answer(session)
        else:
            self._ensure_item(session)
        return done

    def _interrupt(self, session: OfflineSession, event: Event) -> Event:
        """Ends the turn; open calls are answered by the server with an error."""
        if session.open_calls and not self._knobs.interrupt_ends_calls:
            return session.log.process(event)
        thinking = session.phase is Phase.THINKING
        self._cancel(session)
        if thinking and session.request_id is not None:
            self._end_request(session, is_error=False)
        done = session.log.process(event)
        for call in session.open_calls:
            self._resolve(session, call, "interrupted by the user before it had a result", is_error=True)
        self._rest(session, {"type": "end_turn"})
        if session.inbox:
            self._run(session)
            self._take_next_input(session)
            self._spawn(session)
        else:
            self._ensure_item(session)
        return done

    # Model requests

    def _spawn(self, session: OfflineSession) -> None:
        session.phase = Phase.THINKING
        session.task = asyncio.get_running_loop().create_task(self._think(session), name=f"turn {session.id}")

    def _cancel(self, session: OfflineSession) -> None:
        if session.task is not None:
            session.task.cancel()
            session.task = None

    async def _think(self, session: OfflineSession) -> None:
        again = True
        while again:
            start = session.log.add("span.model_request_start")
            session.request_id = start["id"]
            reply = await self._ask(session)
            if reply.thinking:
                session.log.add("agent.thinking")
            await asyncio.sleep(max(reply.seconds, self._knobs.think_seconds))
            again = self._carry_out(session, reply)

    async def _ask(self, session: OfflineSession) -> Reply:
        if len(session.rounds) >= MAX_ROUNDS:
            return Reply(failure=Failure("tool_use_limit_reached_error", f"{MAX_ROUNDS} tool rounds in one turn"))
        conversation = Conversation(
            session_id=session.id,
            agent=session.agent,
            tools=enabled_tools(session.agent),
            turn=len(session.messages),
            message=session.messages[-1],
            rounds=tuple(session.rounds),
            earlier_messages=tuple(session.messages[:-1]),
            attempt=session.attempt,
        )
        try:
            return await self.brain.respond(conversation)
        except Exception as error:
            _log.exception("brain.failed session=%s", session.id)
            return Reply(failure=Failure(message=f"the brain failed: {type(error).__name__}: {error}"))

    def _carry_out(self, session: OfflineSession, reply: Reply) -> bool:
        """Record one reply and what follows from it; True if another model request is due at once."""
        if reply.failure is not None:
            return self._fail(session, reply.failure)
        session.attempt = 0
        session.reply = reply
        if reply.text is not None:
            session.log.add("agent.message", content=[{"type": "text", "text": reply.text}])
        settled = [self._open_call(session, call) for call in reply.calls]
        self._end_request(session, is_error=False)
        for answer in settled:
            if answer is not None:
                self._resolve(session, answer[0], answer[1].text, is_error=answer[1].is_error)
        if session.open_calls:
            self._park(session)
            return False
        if reply.calls:
            self._close_round(session)
            return True
        if session.inbox:
            self._take_next_input(session)
            return True
        self._rest(session, {"type": "end_turn"})
        return False

    def _open_call(self, session: OfflineSession, call: ToolCall) -> tuple[OpenCall, ToolOutcome] | None:
        """Record the call; answers what the server itself has to say to it, if anything."""
        if call.name in custom_tools(session.agent):
            event = session.log.add("agent.custom_tool_use", name=call.name, input=call.input)
            session.calls[event["id"]] = OpenCall(event["id"], call, custom=True)
            return None
        verdict = evaluate(session.agent, call.name)
        evaluation = {} if verdict.evaluation is None else {"evaluation": verdict.evaluation}
        event = session.log.add(
            "agent.tool_use",
            name=call.name,
            input=call.input,
            evaluated_permission=verdict.permission,
            **evaluation,
            session_thread_id=None,
        )
        opened = OpenCall(event["id"], call, confirmed=verdict.permission != "ask")
        session.calls[opened.id] = opened
        if verdict.permission == "deny":
            return opened, ToolOutcome(call, f"{call.name} is not a tool of this agent", is_error=True)
        if call.name in SERVER_TOOLS and opened.confirmed:
            return opened, ToolOutcome(call, _web_result(call))
        return None

    def _resolve(self, session: OfflineSession, call: OpenCall, text: str, *, is_error: bool) -> None:
        call.outcome = ToolOutcome(call.call, text, is_error)
        content = [{"type": "text", "text": text}]
        session.log.add("agent.tool_result", tool_use_id=call.id, is_error=is_error, content=content)

    def _after_answer(self, session: OfflineSession) -> None:
        if session.open_calls:
            # Only some are answered: the remainder is announced again (docs/wire/anthropic.md#81-a-self-hosted-turn).
            session.log.add("session.status_idle", stop_reason=self._waiting_for(session), stop_details=None)
            return
        self._close_round(session)
        self._run(session)
        self._spawn(session)

    def _close_round(self, session: OfflineSession) -> None:
        outcomes = [call.outcome for call in session.calls.values() if call.outcome is not None]
        session.rounds.append(Round(session.reply or Reply(), tuple(outcomes)))
        self._close_calls(session)

    def _close_calls(self, session: OfflineSession) -> None:
        session.closed_calls.update({call.id: call.custom for call in session.calls.values()})
        session.calls = {}

    def _end_request(self, session: OfflineSession, *, is_error: bool) -> None:
        session.log.add(
            "span.model_request_end",
            model_request_start_id=session.request_id,
            is_error=is_error,
            model_usage=dict(_NO_TOKENS),
        )
        session.request_id = None

    def _fail(self, session: OfflineSession, failure: Failure) -> bool:
        self._end_request(session, is_error=True)
        retry = {"type": failure.retry}
        error = {"type": failure.type, "message": failure.message, "retry_status": retry}
        session.log.add("session.error", error=error)
        if failure.retry == "retrying":
            session.attempt += 1
            self._set_status(session, "rescheduling")
            session.log.add("session.status_rescheduled")
            self._announce("session.status_rescheduled", session)
            self._run(session)
            return True
        session.attempt = 0
        if failure.retry == "terminal":
            session.task = None
            self.terminate(session)
        else:
            self._rest(session, {"type": "retries_exhausted"})
        return False

    # Transitions

    def _run(self, session: OfflineSession) -> None:
        self._set_status(session, "running")
        thread = {"session_thread_id": session.thread_id, "agent_name": session.agent["name"]}
        session.log.add("session.status_running")
        session.log.add("session.thread_status_running", **thread)
        self._ensure_item(session)
        self._announce("session.status_run_started", session)

    def _park(self, session: OfflineSession) -> None:
        session.phase = Phase.PARKED
        self._idle(session, self._waiting_for(session))
        if any(call.confirmed and not call.custom for call in session.open_calls):
            self._ensure_item(session)

    def _rest(self, session: OfflineSession, stop_reason: Mapping[str, Any]) -> None:
        self._close_calls(session)
        session.rounds = []
        session.phase = Phase.AT_REST
        self._idle(session, stop_reason)

    def _idle(self, session: OfflineSession, stop_reason: Mapping[str, Any]) -> None:
        self._set_status(session, "idle")
        thread = {"session_thread_id": session.thread_id, "agent_name": session.agent["name"]}
        session.log.add("session.thread_status_idle", **thread, stop_reason=dict(stop_reason))
        usage = {"input_tokens": 0, "output_tokens": 0}
        session.log.add("session.usage", usage=usage, budget=None)
        session.log.add("session.status_idle", stop_reason=dict(stop_reason), stop_details=None)
        self._announce("session.thread_idled", session)
        self._announce("session.status_idled", session)

    def _waiting_for(self, session: OfflineSession) -> dict[str, Any]:
        return {"type": "requires_action", "event_ids": [call.id for call in session.open_calls]}

    def _set_status(self, session: OfflineSession, status: Any) -> None:
        now = self._clock.now()
        if session.running_since is not None:
            session.active_seconds += (now - session.running_since).total_seconds()
        session.running_since = now if status == "running" else None
        session.status = status
        session.updated_at = now

    def _ensure_item(self, session: OfflineSession) -> None:
        """At most one item of a session is live."""
        if session.rounds and not self._knobs.results_enqueue:
            return
        if self._queue.live_item_of(session.id) is None:
            session.unserved_input = False
            self._queue.enqueue(session.environment_id, "session", session.id)


def _task_of(event: Event) -> str:
    if event["type"] == "user.define_outcome":
        description: str = event["description"]
        return description
    return text_of(event["content"])


def _web_result(call: ToolCall) -> str:
    if call.result is not None:
        return call.result
    return f"(offline: {call.name} was not carried out; the scripted brain has no web)"
