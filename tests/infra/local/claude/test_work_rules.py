"""The queue's rules, with a clock that moves when told."""

from __future__ import annotations

import pytest

from infra.local.claude.clock import ManualClock
from infra.local.claude.errors import ClaudeApiError
from infra.local.claude.knobs import Knobs
from infra.local.claude.work import OfflineWorkItem, OfflineWorkQueue, State

ENV = "env_1"


class WorkBench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.knobs = Knobs(lease_ttl=10)
        self.queue = OfflineWorkQueue(self.clock, self.knobs)
        self.ended: list[str] = []
        self.queue.on_end = lambda item: self.ended.append(item.id)

    def enqueue(self, session_id: str = "sesn_a") -> OfflineWorkItem:
        return self.queue.enqueue(ENV, "session", session_id)

    def started(self) -> OfflineWorkItem:
        item = self.enqueue()
        self.queue.claim(ENV)
        self.queue.acknowledge(item)
        return item

    def active(self) -> tuple[OfflineWorkItem, str]:
        item = self.started()
        return item, self.queue.heartbeat(item, "NO_HEARTBEAT")["last_heartbeat"]

    def refused(self, item: OfflineWorkItem, expected: str) -> dict[str, object]:
        with pytest.raises(ClaudeApiError) as caught:
            self.queue.heartbeat(item, expected)
        assert caught.value.status == 412
        state: dict[str, object] = caught.value.details["current_state"]
        return state


def test_a_claimed_item_stays_queued_and_is_not_offered_again_within_the_window() -> None:
    bench = WorkBench()
    item = bench.enqueue()
    assert bench.queue.claim(ENV) is item
    assert item.state is State.QUEUED
    bench.clock.advance(5.0)
    assert bench.queue.claim(ENV) is None


def test_the_window_is_a_property_of_whoever_polls_next() -> None:
    bench = WorkBench()
    item = bench.enqueue()
    bench.queue.claim(ENV, 60_000)
    bench.clock.advance(3.0)
    assert bench.queue.claim(ENV, 60_000) is None
    assert bench.queue.claim(ENV, 2_000) is item
    assert item.handouts == 2


def test_items_are_offered_oldest_first_and_only_to_their_environment() -> None:
    bench = WorkBench()
    first, second = bench.enqueue("sesn_a"), bench.enqueue("sesn_b")
    assert bench.queue.claim("env_2") is None
    assert [bench.queue.claim(ENV), bench.queue.claim(ENV)] == [first, second]


def test_an_ack_starts_the_item_once_and_repeating_it_changes_nothing() -> None:
    bench = WorkBench()
    item = bench.started()
    acknowledged = item.acknowledged_at
    bench.clock.advance(1.0)
    bench.queue.acknowledge(item)
    assert (item.state, item.acknowledged_at, item.acks) == (State.STARTING, acknowledged, 2)


def test_a_beat_on_an_item_nobody_acknowledged_is_refused_with_state_queued() -> None:
    bench = WorkBench()
    item = bench.enqueue()
    bench.queue.claim(ENV)
    assert bench.refused(item, "NO_HEARTBEAT") == {
        "state": "queued",
        "last_heartbeat": None,
        "lease_extended": False,
        "ttl_seconds": 120,
    }


def test_the_first_beat_activates_and_later_ones_must_echo_the_last_value_exactly() -> None:
    bench = WorkBench()
    item, first = bench.active()
    assert (item.state, item.started_at is not None) == (State.ACTIVE, True)
    assert bench.refused(item, "NO_HEARTBEAT")["last_heartbeat"] == first
    assert bench.refused(item, first.replace("Z", "+00:00"))["state"] == "active"
    answer = bench.queue.heartbeat(item, first)
    assert answer["lease_extended"] is True
    assert answer["last_heartbeat"] != first, "two beats at one instant must differ"


def test_a_lapsed_lease_queues_the_same_item_again_and_forgets_its_heartbeat() -> None:
    bench = WorkBench()
    item, last = bench.active()
    bench.clock.advance(10.0)
    assert bench.refused(item, last)["state"] == "queued"
    assert (item.acknowledged_at, item.started_at, item.last_heartbeat) == (None, None, None)
    assert bench.queue.claim(ENV) is item


def test_a_start_up_lease_never_lapses_unless_it_is_switched_on() -> None:
    bench = WorkBench()
    item = bench.started()
    bench.clock.advance(1e6)
    assert bench.queue.claim(ENV) is None
    bench.knobs.startup_lease = 120.0
    assert bench.queue.claim(ENV) is item


def test_a_graceful_stop_is_told_on_the_next_beat_whatever_that_expects() -> None:
    bench = WorkBench()
    item, _ = bench.active()
    bench.queue.stop(item, force=False)
    answer = bench.queue.heartbeat(item, "anything")
    assert (answer["state"], answer["lease_extended"]) == ("stopping", False)
    bench.queue.stop(item, force=True)
    assert (item.state, bench.ended) == (State.STOPPED, [item.id])


def test_a_claim_beat_on_a_stopping_item_that_never_beat_reports_an_empty_heartbeat() -> None:
    bench = WorkBench()
    item = bench.started()
    bench.queue.stop(item, force=False)
    assert bench.queue.heartbeat(item, "NO_HEARTBEAT") == {
        "type": "work_heartbeat",
        "state": "stopping",
        "lease_extended": False,
        "last_heartbeat": "",
        "ttl_seconds": 120,
    }


def test_a_stop_is_idempotent_and_a_queued_item_stops_at_once() -> None:
    bench = WorkBench()
    item = bench.enqueue()
    bench.queue.stop(item, force=False)
    stopped = item.stopped_at
    bench.clock.advance(1.0)
    bench.queue.stop(item, force=True)
    assert (item.state, item.stopped_at, bench.ended) == (State.STOPPED, stopped, [item.id])
    assert bench.queue.claim(ENV) is None


def test_a_stopping_item_whose_worker_died_stops_when_its_lease_lapses() -> None:
    bench = WorkBench()
    item, _ = bench.active()
    bench.queue.stop(item, force=False)
    bench.clock.advance(10.0)
    assert bench.queue.live_item_of("sesn_a") is None
    assert item.state is State.STOPPED


def test_the_item_of_a_deleted_session_answers_one_poll_with_404_and_is_gone() -> None:
    bench = WorkBench()
    bench.enqueue("sesn_a")
    other = bench.enqueue("sesn_b")
    bench.queue.forsake("sesn_a")
    with pytest.raises(ClaudeApiError) as caught:
        bench.queue.claim(ENV)
    assert caught.value.status == 404
    assert bench.queue.claim(ENV) is other


def test_stats_count_waiting_reserved_and_the_workers_of_the_last_half_minute() -> None:
    bench = WorkBench()
    first = bench.enqueue("sesn_a")
    bench.clock.advance(1.0)
    bench.enqueue("sesn_b")
    assert bench.queue.stats(ENV)["workers_polling"] is None
    for worker in ("w1", "w2", "w1"):
        bench.queue.note_poller(ENV, worker)
    bench.queue.claim(ENV)
    stats = bench.queue.stats(ENV)
    assert (stats["depth"], stats["pending"], stats["workers_polling"]) == (1, 1, 2)
    assert stats["oldest_queued_at"] == first.as_json()["created_at"]
    bench.clock.advance(31.0)
    stats = bench.queue.stats(ENV)
    assert (stats["pending"], stats["workers_polling"]) == (1, 0)


def test_a_desired_ttl_can_only_shorten_the_lease() -> None:
    bench = WorkBench()
    item, last = bench.active()
    assert bench.queue.heartbeat(item, last, desired_ttl=3)["ttl_seconds"] == 3
    last = item.last_heartbeat or ""
    assert bench.queue.heartbeat(item, last, desired_ttl=500)["ttl_seconds"] == 10


def test_a_412_can_be_had_on_demand() -> None:
    bench = WorkBench()
    item, last = bench.active()
    bench.knobs.heartbeat_412 = 1
    assert bench.refused(item, last) == {
        "state": "active",
        "last_heartbeat": last,
        "lease_extended": False,
        "ttl_seconds": 10,
    }
    assert bench.queue.heartbeat(item, last)["lease_extended"] is True


def test_an_item_can_be_aged_alone_so_that_its_reservation_and_its_lease_lapse() -> None:
    bench = WorkBench()
    item, other = bench.enqueue("sesn_a"), bench.enqueue("sesn_b")
    assert [bench.queue.claim(ENV, 60_000), bench.queue.claim(ENV, 60_000)] == [item, other]
    bench.queue.age(item, 61)
    assert bench.queue.claim(ENV, 60_000) is item
    assert bench.queue.claim(ENV, 60_000) is None
    bench.queue.acknowledge(item)
    bench.queue.heartbeat(item, "NO_HEARTBEAT")
    bench.queue.age(item, 9)
    states = [item.state]
    bench.queue.age(item, 1)
    states.append(item.state)
    assert states == [State.ACTIVE, State.QUEUED]
    assert (other.state, other.handouts) == (State.QUEUED, 1)
