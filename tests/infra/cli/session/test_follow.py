"""Following a session whatever its stream does, against a scripted feed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from infra.cli.session import follow
from infra.cli.session.follow import Call, FeedBroken, FeedRefused, Finish, Follower, Message, NotSent, Quiet
from infra.cli.session.render import Event

PROMPT = "sevt_prompt"
TEXT = "do it"
SILENCE = "silence"
BREAK = "break"


def event(identity: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"id": identity, "type": kind, "processed_at": "2026-10-20T09:00:02Z", **more}


def idle(identity: str, reason: str) -> dict[str, Any]:
    return event(identity, "session.status_idle", stop_reason={"type": reason})


def prompt(processed: bool = True) -> dict[str, Any]:
    return event(PROMPT, "user.message", content=[{"type": "text", "text": TEXT}]) | (
        {} if processed else {"processed_at": None}
    )


RUNNING = event("sevt_r", "session.status_running")
CALL = event("sevt_c", "agent.tool_use", name="bash", input={})
PARKED = idle("sevt_p", "requires_action")
RESULT = event("sevt_t", "user.tool_result", tool_use_id="sevt_c")
END = idle("sevt_e", "end_turn")


@dataclass
class ScriptedFeed:
    """Each connection plays one list: events, SILENCE (until closed) or BREAK. `past` is the history, which grows
    with what was played; `hidden` events are only ever in the history, from connection number `n` on."""

    connections: Sequence[Sequence[Event | str]]
    past: list[Event] = field(default_factory=list)
    hidden: dict[int, list[Event]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    opened: int = 0
    refuse_after: int = 1000
    send_fails: list[FeedBroken] = field(default_factory=list)
    arrives_late: int | None = None
    """Where a send fails: the message is in the history from this look on; None: it never arrived."""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncIterator[Event], None]:
        self.opened += 1
        self.order.append("open")
        if self.opened > self.refuse_after:
            raise FeedRefused("the service answered 404")
        if self.opened > len(self.connections):
            raise FeedBroken("no more connections")
        self.past += self.hidden.get(self.opened, [])
        async with contextlib.aclosing(self._play(self.connections[self.opened - 1])) as played:
            yield played

    async def _play(self, script: Sequence[Event | str]) -> AsyncGenerator[Event, None]:
        for step in script:
            if step == SILENCE:
                await asyncio.sleep(3600)
            elif step == BREAK:
                raise FeedBroken("lost")
            elif isinstance(step, dict):
                self.past = [old for old in self.past if old.get("id") != step["id"]] + [step]
                yield step

    async def history(self) -> Sequence[Event]:
        self.order.append("history")
        if self.arrives_late is not None and self.order.count("history") >= self.arrives_late:
            self.past.append(prompt())
            self.arrives_late = None
        return list(self.past)

    async def send(self) -> str:
        self.order.append("send")
        if self.send_fails:
            raise self.send_fails.pop(0)
        self.past.append(prompt(processed=False))
        return PROMPT


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(follow, "_LONGEST_PAUSE", 0.01)


def collect(feed: ScriptedFeed, *, send: bool = True, **options: Any) -> tuple[list[str], Finish | None, list[Quiet]]:
    follower = Follower(feed, prompt=Message(TEXT, feed.send) if send else None, **options)

    async def run() -> tuple[list[str], list[Quiet]]:
        ids: list[str] = []
        quiets: list[Quiet] = []
        async with asyncio.timeout(5), contextlib.aclosing(follower.events()) as events:
            async for item in events:
                if isinstance(item, Quiet):
                    quiets.append(item)
                else:
                    ids.append(str(item["id"]))
        return ids, quiets

    ids, quiets = asyncio.run(run())
    return ids, follower.finish, quiets


def test_the_stream_is_open_before_the_prompt_is_sent() -> None:
    feed = ScriptedFeed([[prompt(), RUNNING, END]])
    ids, finish, _ = collect(feed)
    assert feed.order.index("open") < feed.order.index("send")
    assert (ids, finish) == ([PROMPT, "sevt_r", "sevt_e"], Finish.DONE)


def test_an_idle_that_requires_action_is_not_the_end() -> None:
    ids, finish, _ = collect(ScriptedFeed([[prompt(), RUNNING, CALL, PARKED, RESULT, END]]))
    assert ids == [PROMPT, "sevt_r", "sevt_c", "sevt_p", "sevt_t", "sevt_e"]
    assert finish is Finish.DONE


@pytest.mark.parametrize("cut", range(1, 6))
@pytest.mark.parametrize("how", ["end of the stream", BREAK])
def test_a_stream_that_ends_anywhere_is_taken_up_again_and_each_event_comes_once(cut: int, how: str) -> None:
    events: list[Event | str] = [prompt(), RUNNING, CALL, PARKED, RESULT, END]
    first = [*events[:cut], *([BREAK] if how == BREAK else [])]
    feed = ScriptedFeed([first, events[cut:]])
    ids, finish, _ = collect(feed)
    assert ids == [PROMPT, "sevt_r", "sevt_c", "sevt_p", "sevt_t", "sevt_e"]
    assert finish is Finish.DONE
    assert feed.order.count("send") == 1


def test_what_happened_between_two_streams_comes_from_the_history() -> None:
    feed = ScriptedFeed([[prompt(), RUNNING, CALL, PARKED, BREAK], [SILENCE]], hidden={2: [RESULT, END]})
    ids, finish, _ = collect(feed)
    assert ids[-2:] == ["sevt_t", "sevt_e"]
    assert finish is Finish.DONE


def test_an_event_that_the_stream_lost_is_found_when_it_falls_silent() -> None:
    feed = ScriptedFeed([[prompt(), RUNNING, SILENCE]])
    follower = Follower(feed, prompt=Message(TEXT, feed.send), quiet_after=0.05)

    async def run() -> list[str]:
        ids = []
        async with asyncio.timeout(5), contextlib.aclosing(follower.events()) as events:
            async for item in events:
                if isinstance(item, Quiet):
                    continue
                ids.append(str(item["id"]))
                if item["id"] == "sevt_r":
                    feed.past += [END]
        return ids

    assert asyncio.run(run()) == [PROMPT, "sevt_r", "sevt_e"]
    assert follower.finish is Finish.DONE


def test_the_end_of_an_earlier_turn_is_not_the_end_of_ours() -> None:
    old_end = idle("sevt_old", "end_turn")
    feed = ScriptedFeed([[old_end, prompt(), RUNNING, END]], past=[event("sevt_0", "user.message"), RUNNING])
    ids, finish, _ = collect(feed)
    assert ids == [PROMPT, "sevt_old", "sevt_e"]  # the prompt waits in the history; sevt_r was there before it
    assert finish is Finish.DONE


def test_an_earlier_turns_history_is_not_shown_again_when_a_session_goes_on() -> None:
    feed = ScriptedFeed([[prompt(), END]], past=[event("sevt_0", "user.message"), idle("sevt_1", "end_turn")])
    ids, finish, _ = collect(feed)
    assert (ids, finish) == ([PROMPT, "sevt_e"], Finish.DONE)


def test_a_service_that_does_not_repeat_the_prompt_on_the_stream_is_understood_by_its_history() -> None:
    @dataclass
    class Terse(ScriptedFeed):
        async def history(self) -> Sequence[Event]:
            past = await super().history()
            ended = any(old["id"] == "sevt_e" for old in past)
            first = [prompt()] if ended else []
            return [*first, *(old for old in past if old["id"] != PROMPT)]

    ids, finish, _ = collect(Terse([[RUNNING, END, SILENCE]]))
    assert "sevt_e" in ids
    assert finish is Finish.DONE


@pytest.mark.parametrize("reason", ["retries_exhausted", "budget_reached", "refusal", "unheard_of"])
def test_a_turn_that_ends_otherwise_has_failed(reason: str) -> None:
    assert collect(ScriptedFeed([[prompt(), RUNNING, idle("sevt_e", reason)]]))[1] is Finish.FAILED


def test_an_error_event_is_not_the_end_and_a_terminated_session_is() -> None:
    error = event("sevt_x", "session.error", error={"type": "model_overloaded_error"})
    assert collect(ScriptedFeed([[prompt(), error, END]]))[1] is Finish.DONE
    ids, finish, _ = collect(ScriptedFeed([[prompt(), error, event("sevt_y", "session.status_terminated")]]))
    assert (ids[-1], finish) == ("sevt_y", Finish.FAILED)


def test_a_deleted_session_ends_it() -> None:
    assert collect(ScriptedFeed([[prompt(), event("sevt_y", "session.deleted")]]))[1] is Finish.FAILED


def test_a_feed_that_stays_broken_is_given_up_after_its_patience() -> None:
    assert collect(ScriptedFeed([[prompt(), RUNNING]]), patience=0.05)[1] is Finish.LOST


def test_a_refusal_is_raised_and_not_retried() -> None:
    feed = ScriptedFeed([[prompt(), BREAK]], refuse_after=1)
    with pytest.raises(FeedRefused):
        collect(feed)
    assert feed.opened == 2


def test_a_session_without_a_worker_is_reported_as_quiet_and_waiting() -> None:
    feed = ScriptedFeed([[prompt(), RUNNING, CALL, PARKED, SILENCE]])
    follower = Follower(feed, prompt=Message(TEXT, feed.send), quiet_after=0.02)

    async def first_quiet() -> Quiet | None:
        async with asyncio.timeout(5), contextlib.aclosing(follower.events()) as events:
            async for item in events:
                if isinstance(item, Quiet):
                    return item
        return None

    call = Call("sevt_c", "bash", {}, follow.unix_time(CALL["processed_at"]))
    assert asyncio.run(first_quiet()) == Quiet(0.02, waiting=True, calls=(call,))


def test_watching_without_a_prompt_shows_the_last_turn_alone() -> None:
    past: list[Event] = [
        event("sevt_0", "user.message"),
        idle("sevt_1", "end_turn"),
        event("sevt_2", "user.message"),
        END,
    ]
    assert collect(ScriptedFeed([[SILENCE]], past=past), send=False)[:2] == (["sevt_2", "sevt_e"], Finish.DONE)


def test_watching_a_turn_that_still_runs_goes_on_to_its_end() -> None:
    past: list[Event] = [
        event("sevt_0", "user.message"),
        idle("sevt_1", "end_turn"),
        event("sevt_2", "user.message"),
        RUNNING,
    ]
    ids, finish, _ = collect(ScriptedFeed([[CALL, PARKED, RESULT, END]], past=past), send=False)
    assert ids == ["sevt_2", "sevt_r", "sevt_c", "sevt_p", "sevt_t", "sevt_e"]
    assert finish is Finish.DONE


def test_preview_events_without_an_id_are_not_shown() -> None:
    feed = ScriptedFeed([[prompt(), END]])
    feed.past.append({"type": "event_delta", "event_id": "sevt_9"})
    assert collect(feed)[0] == [PROMPT, "sevt_e"]


@pytest.mark.parametrize("look", [2, 3, 5])
def test_a_message_whose_answer_was_lost_is_found_in_the_history_and_not_sent_again(look: int) -> None:
    earlier = event("sevt_old", "user.message", content=[{"type": "text", "text": TEXT}])
    connections: list[list[Event | str]] = [[SILENCE] for _ in range(look - 1)]
    connections.append([RUNNING, END])
    feed = ScriptedFeed(connections, past=[earlier], send_fails=[FeedBroken("lost")], arrives_late=look)
    ids, finish, _ = collect(feed)
    assert feed.order.count("send") == 1
    assert finish is Finish.DONE and "sevt_old" not in ids and PROMPT in ids


def test_a_message_that_never_shows_up_is_not_sent_again_and_that_is_how_it_ends() -> None:
    feed = ScriptedFeed([[SILENCE]] * 50, send_fails=[FeedBroken("lost")])
    ids, finish, _ = collect(feed)
    assert (ids, finish, feed.order.count("send")) == ([], Finish.UNKNOWN_SEND, 1)


def test_a_message_that_certainly_did_not_leave_is_sent_again() -> None:
    feed = ScriptedFeed([[SILENCE], [prompt(), RUNNING, END]], send_fails=[NotSent("refused")])
    _, finish, _ = collect(feed)
    assert (finish, feed.order.count("send")) == (Finish.DONE, 2)


def open_calls(*events: dict[str, Any]) -> tuple[Call, ...]:
    follower = Follower(ScriptedFeed([[prompt(), RUNNING, *events, SILENCE]]), quiet_after=0.02)

    async def first_quiet() -> Quiet:
        async with asyncio.timeout(5), contextlib.aclosing(follower.events()) as found:
            async for item in found:
                if isinstance(item, Quiet):
                    return item
        raise AssertionError

    quiet = asyncio.run(first_quiet())
    assert quiet.calls == follower.calls
    return quiet.calls


def test_what_the_session_waits_for_is_told_with_its_time() -> None:
    (call,) = open_calls(CALL, PARKED)
    assert (call.id, call.name, call.asks, call.custom) == ("sevt_c", "bash", False, False)
    assert call.began == follow.unix_time("2026-10-20T09:00:02Z")
    assert open_calls(CALL, PARKED, RESULT, RUNNING) == ()


def test_a_call_asks_until_it_is_confirmed() -> None:
    asking = {**CALL, "evaluated_permission": "ask"}
    (call,) = open_calls(asking, PARKED)
    assert call.asks
    (call,) = open_calls(
        asking, PARKED, event("sevt_y", "user.tool_confirmation", tool_use_id="sevt_c", result="allow")
    )
    assert not call.asks


def test_a_custom_tool_waits_for_somebody_elses_program() -> None:
    use = event("sevt_u", "agent.custom_tool_use", name="get_order", input={})
    (call,) = open_calls(use, PARKED)
    assert call.custom
    assert open_calls(use, PARKED, event("sevt_v", "user.custom_tool_result", custom_tool_use_id="sevt_u")) == ()


def test_a_time_stamp_that_is_none_is_unknown() -> None:
    assert follow.unix_time(None) is follow.unix_time("soon") is None
