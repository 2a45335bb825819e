"""What a worker concludes from answers to its heartbeats, one rule at a time."""

from __future__ import annotations

import json

from image.session.worker.lease import NO_HEARTBEAT, Lease, Verdict


def held(value: str) -> bytes:
    answer = {"state": "active", "lease_extended": True, "last_heartbeat": value, "ttl_seconds": 300}
    return json.dumps(answer).encode()


def mismatch(state: str, value: str | None = None) -> bytes:
    current = {"state": state, "last_heartbeat": value, "lease_extended": False, "ttl_seconds": 120}
    return json.dumps({"error": {"details": {"current_state": current}}}).encode()


def beat(lease: Lease, status: int, body: bytes = b"") -> Verdict:
    lease.sending()
    return lease.judge(status, body)


def test_a_beat_of_ours_that_lapsed_before_it_was_used_is_asked_for_anew() -> None:
    lease = Lease()
    assert beat(lease, 503) is Verdict.DOUBTFUL
    assert beat(lease, 412, mismatch("active", "t1")) is Verdict.OURS
    assert lease.sending() == "t1"
    assert lease.judge(412, mismatch("queued")) is Verdict.NOT_ACKED
    assert lease.sending() == NO_HEARTBEAT
    assert lease.judge(200, held("t2")) is Verdict.HELD


def test_a_lease_that_was_granted_and_is_on_the_queue_again_is_lost() -> None:
    lease = Lease()
    assert beat(lease, 200, held("t1")) is Verdict.HELD
    assert beat(lease, 412, mismatch("queued")) is Verdict.LOST


def test_an_item_that_was_acked_anew_after_a_lease_that_ended_unseen_is_taken_anew_once() -> None:
    lease = Lease()
    assert beat(lease, 200, held("t1")) is Verdict.HELD
    assert beat(lease, 412, mismatch("starting")) is Verdict.ACKED_ANEW
    assert lease.sending() == NO_HEARTBEAT
    assert lease.judge(200, held("t2")) is Verdict.HELD
    assert beat(lease, 412, mismatch("starting")) is Verdict.ACKED_ANEW
    assert beat(lease, 412, mismatch("starting")) is Verdict.LOST


def test_an_active_item_without_a_doubtful_beat_of_ours_is_somebody_elses() -> None:
    assert beat(Lease(), 412, mismatch("active", "t1")) is Verdict.LOST


def test_one_doubtful_beat_explains_one_mismatch() -> None:
    lease = Lease()
    assert beat(lease, 500) is Verdict.DOUBTFUL
    assert beat(lease, 412, mismatch("active", "t1")) is Verdict.OURS
    assert beat(lease, 412, mismatch("active", "t9")) is Verdict.LOST
