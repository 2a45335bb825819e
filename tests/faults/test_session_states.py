"""States of a session that real users hit, from the first message to the last, over real sockets.

The platform's sessions, the dispatcher's drains and the worker in its sandbox; times are those of
`tests/support/world.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from typing import Any, Final

import anthropic
import httpx2
import pytest

from shared.claims.dispatcher import utc_now
from shared.ports import PollOutcome, WorkItem
from shared.reports import Act, DrainReport, ItemEnd
from tests.faults.session_steps import (
    agent,
    box,
    box_do,
    changed_drain,
    events,
    read,
    session_with,
    status,
    wait_for_item,
    what_happened,
    write,
)
from tests.faults.test_claims_under_faults import ACK, BEAT, CREATE, PROMPT, assert_served_once, drain, heal, runs
from tests.faults.test_reconciler import acts, reconcile
from tests.support.admin import fault
from tests.support.serving import UVICORN, serving
from tests.support.signing import delivery, signed
from tests.support.waiting import until
from tests.support.world import LEASE, Place


class TestFollowUps:
    def test_a_message_to_a_worker_that_idles_is_served_by_it_without_a_new_item(self, place: Place) -> None:
        place = place.world.place(RUNNER_MAX_IDLE_SECONDS="30")
        session = place.session("$ export NOTE=from-the-first-turn")
        heal(place, session)
        place.say(session, "$ echo note=$NOTE")
        place.wait_done(session, turns=2)
        assert "note=from-the-first-turn" in place.answers(session)[-1].splitlines()[-2]
        assert len(place.items(session)) == 1
        assert drain(place).items == ()

    @pytest.mark.parametrize("asleep", [False, True], ids=["sandbox running", "sandbox suspended"])
    def test_after_the_worker_left_files_and_installed_packages_are_still_there(
        self, place: Place, asleep: bool
    ) -> None:
        session = place.session(f"{INSTALL}\n$ echo kept > ~/.config-of-mine; echo gone > /dev/shm/x; export NOTE=lost")
        heal(place, session)
        wait_for_item(place, session, "stopped")
        before = box(place, session)["id"]
        if asleep:
            box_do(place, session, "expire")
            assert box(place, session)["status"] == "suspended"
        place.say(session, "$ python3 -c 'import greeting; print(greeting.TEXT)'; cat ~/.config-of-mine; echo n=$NOTE.")
        heal(place, session, turns=2)
        answer = place.answers(session)[-1]
        assert "hello from a package" in answer
        assert "kept" in answer
        assert "n=." in answer, "the shell is a new one (docs/wire/anthropic.md#t17)"
        assert box(place, session)["id"] == before
        first, second = place.items(session)
        assert (first["state"], first["id"] != second["id"]) == ("stopped", True)


INSTALL: Final = (
    "$ cd /tmp && python3 -c '"
    'import zipfile; wheel = zipfile.ZipFile("greeting-1.0-py3-none-any.whl", "w"); info = "greeting-1.0.dist-info/"; '
    'wheel.writestr("greeting.py", "TEXT = \\"hello from a package\\""); '
    'wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: greeting\\nVersion: 1.0\\n"); '
    'wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"); '
    'wheel.writestr(info + "RECORD", ""); wheel.close()'
    "'; export PIP_BREAK_SYSTEM_PACKAGES=1; python3 -m pip install --quiet --user --no-index greeting-1.0-*.whl"
    " || python3 -m zipfile -e greeting-1.0-*.whl $(python3 -m site --user-site); cd /workspace"
)
"""Installs a package that it makes itself: by pip, or as pip would where the machine has none."""


class TestInterrupts:
    def test_an_interrupt_during_a_long_tool_ends_the_turn_and_the_next_message_is_served(self, place: Place) -> None:
        session = place.session("$ touch /workspace/began; sleep 5; echo ran >> /workspace/runs")
        drain(place)
        until(lambda: read(place, session, "/workspace/began") is not None, "the tool did not begin")
        place.world.api.beta.sessions.events.send(session, events=[{"type": "user.interrupt"}])
        assert status(place, session) == "idle"
        (idle,) = events(place, session, "session.status_idle")[-1:]
        assert idle.stop_reason.type == "end_turn"
        place.say(session, "$ echo next >> /workspace/runs")
        heal(place, session)
        assert runs(place, session) == ["next"]  # the command in flight ended with its turn
        calls = events(place, session, "agent.tool_use")
        answered = [event.tool_use_id for event in events(place, session, "user.tool_result", "agent.tool_result")]
        assert answered == [call.id for call in calls]
        assert len(place.items(session)) == 1


class TestArchiveAndDelete:
    def test_archiving_is_refused_while_running_and_the_turn_goes_on(self, place: Place) -> None:
        place.world.claude_admin.patch("settings", {"think_seconds": 1.5})
        try:
            session = place.session(PROMPT)
            drain(place)
            until(lambda: status(place, session) == "running", "the session does not run")
            with pytest.raises(anthropic.BadRequestError):
                place.world.api.beta.sessions.archive(session)
            with pytest.raises(anthropic.BadRequestError):
                place.world.api.beta.sessions.delete(session)
        finally:
            place.world.claude_admin.patch("settings", {"think_seconds": 0.0})
        heal(place, session)
        assert_served_once(place, session)

    @pytest.mark.parametrize("verb", ["archive", "delete"])
    def test_the_worker_of_a_session_that_ends_leaves_at_once_and_drains_do_no_harm(
        self, place: Place, verb: str
    ) -> None:
        place = place.world.place(RUNNER_MAX_IDLE_SECONDS="60")
        session = place.session(PROMPT)
        heal(place, session)
        getattr(place.world.api.beta.sessions, verb)(session)
        wait_for_item(place, session, "stopped")
        if verb == "archive":
            assert status(place, session) == "terminated"
            with pytest.raises(anthropic.BadRequestError):
                place.say(session, "one more thing")
        box_do(place, session, "suspend")
        assert drain(place).items == ()
        assert box(place, session)["status"] == "suspended"
        assert runs(place, session) == ["ran"]

    def test_a_session_archived_before_its_item_was_claimed_is_let_go_by_its_worker(self, place: Place) -> None:
        archived, other = session_with(place, None), place.session(PROMPT)
        place.world.api.beta.sessions.archive(archived)
        report = drain(place)
        assert len(report.items) == 2
        wait_for_item(place, archived, "stopped")
        heal(place, other)
        assert runs(place, other) == ["ran"]
        assert drain(place).items == ()

    @pytest.mark.parametrize("ack", ["as always", "answers 404"])
    def test_a_session_deleted_between_claim_and_hand_over_is_reported_and_costs_no_other(
        self, place: Place, ack: str
    ) -> None:
        victim, other = session_with(place, None), place.session(PROMPT)
        rule = ACK | {"action": "status", "status": 404}

        @dataclasses.dataclass
        class Deleting:
            queue: Any

            async def poll(self) -> PollOutcome:
                outcome: PollOutcome = await self.queue.poll()
                if isinstance(outcome, WorkItem) and outcome.session_id == victim:
                    if ack == "answers 404":
                        one = rule | {"path": f"{outcome.id}/ack$"}
                        await asyncio.to_thread(place.world.claude_admin.post, "faults", one)
                    await asyncio.to_thread(place.world.api.beta.sessions.delete, victim)
                return outcome

            def __getattr__(self, name: str) -> Any:
                return getattr(self.queue, name)

        report = changed_drain(place, lambda whole: dataclasses.replace(whole, queue=Deleting(whole.queue)))
        ends = {item.session_id: item.end for item in report.items}
        assert ends == {
            victim: ItemEnd.HANDED_OVER if ack == "as always" else ItemEnd.GONE,
            other: ItemEnd.HANDED_OVER,
        }
        heal(place, other)
        assert runs(place, other) == ["ran"]
        if ack == "as always":
            wait_for_item(place, victim, "stopped")  # its worker finds no session, and stops the item
        else:
            place.age(victim)  # offered once more, as a stale entry
        assert drain(place).items == ()
        assert drain(place).items == ()

    def test_a_session_deleted_before_the_claim_is_passed_over(self, place: Place) -> None:
        victims = [session_with(place, None) for _ in range(2)]
        other = place.session(PROMPT)
        for victim in victims:
            place.world.api.beta.sessions.delete(victim)
        report = drain(place)
        assert [item.session_id for item in report.items] == [other]
        heal(place, other)
        assert_served_once(place, other)


class TestConfirmations:
    """A tool call that waits for the user's word, for longer than a lease lasts."""

    def test_a_sandbox_that_may_sleep_while_a_person_thinks_comes_back_with_the_answer(self, place: Place) -> None:
        place = place.world.place(SANDBOX_TIMEOUT_SECONDS="600")  # so short that each tick asks about the session
        session, call = self.waiting(place)
        patient = place.adjusted(WAITING_SLEEP_SECONDS="5")
        assert Act.STOP_WORKER in acts(reconcile(patient, ahead=30.0))
        wait_for_item(place, session, "stopped")
        until(lambda: Act.SUSPEND in acts(reconcile(patient, ahead=60.0)), "the sandbox does not go to sleep")
        asleep = box(place, session)
        assert (asleep["status"], status(place, session)) == ("suspended", "idle")
        self.confirm(place, session, call)
        heal(place, session)
        assert runs(place, session) == ["ran"]
        assert box(place, session)["id"] == asleep["id"]

    def test_a_sandbox_put_to_sleep_by_its_own_idle_timer_comes_back_as_well(self, place: Place) -> None:
        place = place.world.place(SANDBOX_TIMEOUT_SECONDS="5")
        session, call = self.waiting(place)
        until(lambda: box(place, session)["status"] == "suspended", "the idle timer did not suspend it")
        self.confirm(place, session, call)
        heal(place, session)
        assert_served_once(place, session)

    def waiting(self, place: Place) -> tuple[str, str]:
        """A session whose one call waits, and the call's id; a worker waits with it."""
        session = session_with(place, PROMPT, agent=agent(place, "always_ask"))
        drain(place)
        # The look into the sandbox keeps it awake for as long as the worker takes to start.
        until(lambda: runs(place, session) == [] and place.item(session)["state"] == "active", "no worker")
        until(lambda: status(place, session) == "idle", "the session does not wait")
        (call,) = events(place, session, "agent.tool_use")
        assert call.evaluated_permission == "ask"
        return session, call.id

    def confirm(self, place: Place, session: str, call: str, result: Any = "allow") -> None:
        word: Any = {"type": "user.tool_confirmation", "tool_use_id": call, "result": result}
        place.world.api.beta.sessions.events.send(session, events=[word])

    def test_the_worker_waits_for_longer_than_a_lease_and_runs_the_call_then(self, place: Place) -> None:
        session, call = self.waiting(place)
        asyncio.run(asyncio.sleep(LEASE + 1))
        assert drain(place).items == ()
        assert runs(place, session) == []
        self.confirm(place, session, call)
        place.wait_done(session)
        assert_served_once(place, session)
        assert "lease lapsed" not in what_happened(place.item(session))

    def test_a_call_that_is_denied_after_a_long_wait_never_runs(self, place: Place) -> None:
        session, call = self.waiting(place)
        asyncio.run(asyncio.sleep(LEASE + 1))
        self.confirm(place, session, call, "deny")
        place.wait_done(session)
        assert runs(place, session) == []
        assert "denied" in place.answers(session)[-1]

    @pytest.mark.parametrize("lapsed", [True, False], ids=["after the lease lapsed", "while the lease lasts"])
    def test_a_sandbox_suspended_meanwhile_comes_back_after_the_confirmation(self, place: Place, lapsed: bool) -> None:
        session, call = self.waiting(place)
        before = box(place, session)["id"]
        box_do(place, session, "expire")
        assert box(place, session)["status"] == "suspended"
        if lapsed:
            wait_for_item(place, session, "queued")
        self.confirm(place, session, call)
        assert box(place, session)["status"] == "suspended"
        heal(place, session)
        assert_served_once(place, session)
        assert box(place, session)["id"] == before
        assert "lease lapsed" in what_happened(place.item(session))

    def test_a_tick_wakes_the_sandbox_of_a_call_that_still_waits_and_runs_nothing(self, place: Place) -> None:
        session, call = self.waiting(place)
        box_do(place, session, "expire")
        wait_for_item(place, session, "queued")
        until(lambda: drain(place).counts.get("handed_over", 0) == 1, "the item was not handed over again")
        wait_for_item(place, session, "active")
        assert runs(place, session) == []
        self.confirm(place, session, call)
        place.wait_done(session)
        assert_served_once(place, session)


class TestLongTools:
    LONG: Final = f"$ touch /workspace/began; sleep {LEASE + 3:g}; echo ran >> /workspace/runs"
    HELD: Final = (
        "$ touch /workspace/began; until test -e /workspace/go; do sleep 0.1; done; echo ran >> /workspace/runs"
    )

    def begun(self, place: Place, call: str = LONG) -> str:
        """A session whose tool call is running."""
        session = place.session(call)
        drain(place)
        until(lambda: read(place, session, "/workspace/began") is not None, "the tool did not begin")
        return session

    def test_a_tool_call_that_takes_longer_than_the_lease_keeps_it_by_heartbeats(self, place: Place) -> None:
        session = place.session(self.LONG)
        heal(place, session)
        assert_served_once(place, session)
        assert "lease lapsed" not in what_happened(place.item(session))

    def test_a_lease_that_is_lost_during_a_tool_call_runs_the_call_once_and_its_result_counts(
        self, place: Place
    ) -> None:
        session = self.begun(place)
        with fault(place.world.claude_admin, BEAT | {"action": "status", "status": 503}):
            wait_for_item(place, session, "queued")
        heal(place, session)
        assert runs(place, session) == ["ran"]
        (call,) = events(place, session, "agent.tool_use")
        (result,) = events(place, session, "user.tool_result")
        assert (result.tool_use_id, result.is_error) == (call.id, False)
        assert "lease lapsed" in what_happened(place.item(session))

    def test_the_call_of_a_worker_that_was_killed_runs_again_since_nobody_knows_how_far_it_got(
        self, place: Place
    ) -> None:
        # The service's rule, not ours: a call without a result is every next worker's to answer
        # (docs/wire/anthropic.md#5-session-tool-runner).
        session = place.session(f"{PROMPT}; test -e killed || {{ touch killed; kill -9 $PPID; sleep 1; }}")
        heal(place, session)
        assert runs(place, session) == ["ran", "ran"]
        assert len(events(place, session, "user.tool_result")) == 1
        assert len(place.items(session)) == 1

    def test_a_second_copy_that_claims_the_item_waits_for_the_tool_of_the_first_worker(self, place: Place) -> None:
        session = self.begun(place, self.HELD)
        place.world.claude_admin.post(f"work/{place.item(session)['id']}/lapse")
        (item,) = drain(place).items
        assert item.end is not ItemEnd.HANDED_OVER, "the sandbox's lock is still the first worker's"
        assert item.end is not ItemEnd.POISONED
        write(place, session, "/workspace/go")
        heal(place, session)
        assert_served_once(place, session)


class TestClockSkew:
    """Our clock and the services' differ by minutes; only their own times matter to the services."""

    @pytest.mark.parametrize("minutes", [-10, 10])
    def test_a_drain_with_a_wrong_clock_serves_as_always(self, place: Place, minutes: int) -> None:
        session = place.session(PROMPT)
        (item,) = self.skewed(place, minutes).items
        assert item.end is ItemEnd.HANDED_OVER
        place.wait_done(session)
        assert_served_once(place, session)

    @pytest.mark.parametrize("minutes", [-10, 10])
    def test_a_wrong_clock_makes_no_failure_a_poisoned_item(self, place: Place, minutes: int) -> None:
        session = place.session(PROMPT)
        with fault(place.world.tensorlake_admin, CREATE | {"action": "status", "status": 500}):
            (item,) = self.skewed(place, minutes).items
        assert item.end is ItemEnd.FAILED
        assert place.item(session)["state"] == "queued"
        heal(place, session)
        assert_served_once(place, session)

    def test_webhooks_are_heard_within_five_minutes_of_our_clock_and_a_tick_makes_up_for_the_others(
        self, place: Place
    ) -> None:
        heard, unheard = [-280.0, 280.0], [-330.0, 330.0]
        with serving(place, UVICORN) as url, httpx2.Client(base_url=url, timeout=40, trust_env=False) as client:
            for age in unheard:
                session = place.session(PROMPT)
                body = delivery(delivery_id=f"whe_{session}")
                answer = client.post(
                    "/on_run_started", content=body, headers=signed(body, age=age, delivery_id=f"whe_{session}")
                )
                assert answer.status_code == 401
                assert place.item(session)["state"] == "queued"
            heal(place, session)
            for age in heard:
                session = place.session(PROMPT)
                body = delivery(delivery_id=f"whe_{session}")
                answer = client.post(
                    "/on_run_started", content=body, headers=signed(body, age=age, delivery_id=f"whe_{session}")
                )
                assert answer.status_code == 200
                place.wait_done(session)
                assert runs(place, session) == ["ran"]

    def skewed(self, place: Place, minutes: int) -> DrainReport:
        def now() -> Any:
            return utc_now() + timedelta(minutes=minutes)

        return changed_drain(place, lambda whole: dataclasses.replace(whole, now=now))
