"""What a pass costs and whom it looks at first: cost follows what changes, not what exists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from shared.ports import Absent, Doubtful, ItemState, Listing, OpenCalls, SandboxStatus, SessionRecord, SessionStatus
from shared.reconcile.lookups import questions
from shared.reconcile.world import Items, World
from shared.reports import Act
from tests.shared.reconcile.services import (
    NOW,
    FakeServices,
    acts,
    asleep,
    box,
    idle,
    item,
    over,
    proper,
    reconciled,
    settings,
)

LONG = {"RECONCILE_SECONDS": "40"}
SHORT = {"RECONCILE_PAGES": "1", "RECONCILE_LOOKUPS": "10"}
DAY = 86_400.0


def sleepers(count: int, meanwhile: Callable[[str], None] = lambda call: None) -> FakeServices:
    history = [item(number % count, ItemState.STOPPED, created=12 * 3600 + 60.0 * number) for number in range(200)]
    sessions = {f"sesn_{number}": idle(f"sesn_{number}", timedelta(hours=12)) for number in range(count)}
    return FakeServices([asleep(number) for number in range(count)], history, sessions=sessions, meanwhile=meanwhile)


@pytest.mark.parametrize("count", [1, 30, 100, 1000])
def test_an_idle_tick_costs_at_most_twenty_calls(count: int) -> None:
    services = sleepers(count)
    report = reconciled(services, LONG)
    assert report.actions == () and report.alarms == ()
    assert services.calls.total() <= 18, "two more are the drain's"


@pytest.mark.parametrize("seconds", [60, 120, 300, 600, 3600])
def test_every_sleeper_is_looked_at_within_bounded_ticks_whatever_their_period(seconds: int) -> None:
    rows = [asleep(number) for number in range(300)]
    world = World.of(NOW, "hands", "env_1", rows, Items.of(Listing((), complete=True), "hands", "env_1"))
    seen: set[str] = set()
    for tick in range(129):
        now = NOW + timedelta(seconds=seconds * tick)
        seen |= set(questions(replace(world, now=now), settings({}), place=0.0).sleepers[:7])
    assert len(seen) == 300, "three rounds at most: one takes 43 ticks"


def test_copies_share_the_ring_of_sleepers() -> None:
    looked: list[set[str]] = []
    for place in (0.0, 0.5):
        calls: list[str] = []
        reconciled(sleepers(1000, meanwhile=calls.append), LONG, place=place)
        looked.append({call for call in calls if call.startswith("session ")})
    assert looked[0] and looked[1] and not looked[0] & looked[1]


def test_what_runs_and_what_waits_comes_before_a_thousand_sleepers() -> None:
    paid = [box(number) for number in range(2000, 2004)]
    stuck = box(3000)
    services = sleepers(1000)
    services.boxes |= {each.id: each for each in (*paid, stuck)}
    services.items += [
        item(each, ItemState.STOPPED, created=7200.0, stopped=7100.0) for each in (*range(2000, 2004), 3000)
    ]
    services.waiting["sesn_3000"] = OpenCalls(("call",))
    report = reconciled(services, LONG)
    assert sorted(acts(report)) == sorted(
        [(Act.FINISH, "sesn_3000"), *((Act.SUSPEND, proper(number)) for number in range(2000, 2004))]
    )


def test_what_does_not_fit_into_the_look_ups_is_named_and_comes_in_turn() -> None:
    services = FakeServices([box(number) for number in range(30)])
    done: set[str] = set()
    for minute in range(12):
        report = reconciled(services, LONG | {"RECONCILE_LOOKUPS": "10"}, after=60.0 * minute)
        assert any("20 session(s) wait for later ticks" in alarm for alarm in report.alarms)
        done |= {target for _, target in acts(report)}
    assert len(done) > 25, "the order changes with the minute"


def test_more_items_than_a_pass_reads_do_not_switch_clean_up_off() -> None:
    """The session's own newest item is proof enough: it has one live item at most."""
    history = [item(10 + number % 40, ItemState.STOPPED, created=1800.0 + 94 * number) for number in range(2300)]
    mine = item(1, ItemState.STOPPED, created=5.2 * 3600, stopped=5.1 * 3600)
    services = FakeServices([box(1), box(2)], [*history, mine], sessions={"sesn_2": Absent()})
    report = reconciled(services, LONG | {"RECONCILE_PAGES": "20"})
    assert acts(report) == [(Act.SUSPEND, proper(1)), (Act.MARK, proper(2))]
    assert any("read back to" in alarm and proper(2) in alarm for alarm in report.alarms)


def test_where_no_proof_can_be_had_the_session_and_a_look_inside_decide() -> None:
    history = [item(10 + number % 40, ItemState.STOPPED, created=60.0 + 10 * number) for number in range(400)]
    old = idle("sesn_1", timedelta(hours=5))
    services = FakeServices([box(1)], history, sessions={"sesn_1": old})
    report = reconciled(services, LONG | {"RECONCILE_PAGES": "2"})
    assert acts(report) == [(Act.SUSPEND, proper(1))]
    assert services.calls["process_names"] == 1
    assert any(proper(1) in alarm for alarm in report.alarms), "an absence that was not proven is told"


def test_only_the_newest_items_are_read_where_they_decide() -> None:
    history = [item(10 + number % 40, ItemState.STOPPED, created=60.0 + 300 * number) for number in range(900)]
    services = FakeServices([asleep(number) for number in range(10, 50)], history)
    reconciled(services, LONG)
    assert services.calls["list_items"] == 1


def test_a_look_up_that_fails_twice_is_named() -> None:
    services = FakeServices([box(1), box(2)], answers={"session sesn_1": Doubtful("HTTP 500")})
    report = reconciled(services, LONG)
    assert any("failed twice: sesn_1" in alarm for alarm in report.alarms)
    assert acts(report) == [(Act.SUSPEND, proper(2))]


def test_a_status_that_stays_unknown_is_named() -> None:
    strange = replace(box(1), status=SandboxStatus.UNKNOWN)
    report = reconciled(FakeServices([strange], [item(2, ItemState.UNKNOWN)]), LONG)
    (alarm,) = [alarm for alarm in report.alarms if "unknown status" in alarm]
    assert proper(1) in alarm and "work2" in alarm
    assert report.actions == ()


def test_a_session_of_unknown_status_is_asked_again_and_named() -> None:
    session = SessionRecord("sesn_1", SessionStatus.UNKNOWN, False, NOW)
    services = FakeServices([box(1)], sessions={"sesn_1": session})
    report = reconciled(services, LONG)
    assert services.calls["session"] == 2
    assert any("sesn_1" in alarm for alarm in report.alarms)


def test_the_end_of_a_session_without_a_sandbox_costs_one_call() -> None:
    services = FakeServices([box(2)])
    assert over(services, "sesn_1").actions == ()
    assert services.calls.total() == 1


def test_the_end_of_a_session_marks_its_sandbox_without_listing_the_project() -> None:
    services = FakeServices([box(1), box(2)], sessions={"sesn_1": idle("sesn_1", archived=True)})
    assert acts(over(services, "session_1", LONG)) == [(Act.MARK, proper(1))]
    assert services.calls["list_sandboxes"] == 0


def test_a_wrong_key_is_found_out_by_sessions_that_nobody_asked_about() -> None:
    """With a thousand sleepers a tick looks at so few that all of them may be gone for good, or all be unknown."""
    services = sleepers(1000)
    services.sessions = {f"sesn_{number}": Absent() for number in range(1000)}
    report = reconciled(services, LONG)
    assert acts(report) == []
    assert any("are unknown: wrong key or environment?" in alarm for alarm in report.alarms)


def test_sessions_that_lost_their_sandbox_are_asked_about_at_once_and_then_more_seldom() -> None:
    asked = []
    for minutes in (5, 50):
        left = [item(number, ItemState.STOPPED, created=3600.0, stopped=60.0 * minutes) for number in range(100)]
        services = FakeServices([], left)
        reconciled(services, LONG | {"RECONCILE_LOOKUPS": "1000"})
        asked.append(services.calls["session"])
    assert asked[0] == 100
    assert 5 < asked[1] < 40


def test_i5_a_sandbox_whose_item_was_perhaps_not_read_is_kept_awake() -> None:
    history = [item(1000 + number, ItemState.STOPPED, created=60.0 + 10 * number) for number in range(400)]
    boxes = [box(number) for number in range(60)]
    running = {f"sesn_{number}": SessionRecord(f"sesn_{number}", SessionStatus.RUNNING, False) for number in range(60)}
    report = reconciled(FakeServices(boxes, history, sessions=running), LONG | {"RECONCILE_PAGES": "1"})
    assert acts(report) and {act for act, _ in acts(report)} == {Act.TOUCH}
    known = reconciled(FakeServices(boxes, [], sessions=running), LONG)
    assert not acts(known), "where every item was read none of them has work"


def test_sessions_at_work_are_no_alarm_although_not_every_item_is_read_and_each_is_asked_about_in_turn() -> None:
    """As in an environment with thousands of live items: what is well does not ring, and what is not is named."""
    history = [item(1000 + number, ItemState.STOPPED, created=60.0 + 10 * number) for number in range(900)]
    numbers = range(200)
    sessions = {f"sesn_{n}": SessionRecord(f"sesn_{n}", SessionStatus.RUNNING, False) for n in numbers}
    asked: list[str] = []
    for minute in range(60):
        services = FakeServices([box(n) for n in numbers], history, sessions=sessions, meanwhile=asked.append)
        report = reconciled(services, LONG | SHORT, after=60.0 * minute)
        assert report.alarms == () and services.calls["session"] <= 10
    assert {f"session sesn_{n}" for n in numbers} <= set(asked), "within three rounds of the ring"

    resting = sessions | {f"sesn_{n}": idle(f"sesn_{n}", timedelta(hours=5)) for n in numbers}
    (alarm,) = reconciled(FakeServices([box(n) for n in numbers], history, sessions=resting), LONG | SHORT).alarms
    assert "RECONCILE_PAGES" in alarm and "and 5 more" in alarm, "of those that were asked about in this tick"


def test_a_ring_of_doubts_that_takes_more_than_an_hour_is_an_alarm() -> None:
    """Where so many sessions are more urgent that hardly a look-up is left for them."""
    history = [item(1000 + number, ItemState.STOPPED, created=1060.0 + 10 * number) for number in range(900)]
    urgent = [item(number, ItemState.STOPPED, created=600.0 + number, stopped=500.0) for number in range(30)]
    at_work = {f"sesn_{n}": SessionRecord(f"sesn_{n}", SessionStatus.RUNNING, False) for n in range(30, 160)}
    services = FakeServices([box(n) for n in range(160)], [*urgent, *history], sessions=at_work)
    late, slow = reconciled(services, LONG | {"RECONCILE_PAGES": "1", "RECONCILE_LOOKUPS": "6"}).alarms
    assert "25 session(s) wait for later ticks" in late
    assert "130 session(s)" in slow and "more than an hour" in slow and "RECONCILE_LOOKUPS" in slow


def test_look_ups_grow_with_the_sandboxes_that_are_awake() -> None:
    services = FakeServices([box(number) for number in range(480)])
    report = reconciled(services, LONG | {"RECONCILE_LOOKUPS": "2"})
    assert any("468 session(s) wait for later ticks" in alarm for alarm in report.alarms)


def test_doubts_keep_a_quarter_of_the_look_ups_however_many_sessions_are_urgent() -> None:
    """Sandboxes that are awake for nothing come first, and those that may be at work are not starved by them."""
    history = [item(1000 + number, ItemState.STOPPED, created=60.0 + 10 * number) for number in range(400)]
    urgent = [item(number, ItemState.STOPPED, created=600.0 + number, stopped=500.0) for number in range(30)]
    doubtful = {f"sesn_{n}": SessionRecord(f"sesn_{n}", SessionStatus.RUNNING, False) for n in range(30, 60)}
    asked: list[str] = []
    services = FakeServices(
        [box(number) for number in range(60)], [*history, *urgent], sessions=doubtful, meanwhile=asked.append
    )
    report = reconciled(services, LONG | {"RECONCILE_PAGES": "2", "RECONCILE_LOOKUPS": "20"})
    assert len(doubtful.keys() & {call.removeprefix("session ") for call in asked}) == 5
    assert any("15 session(s) wait for later ticks" in alarm for alarm in report.alarms)
