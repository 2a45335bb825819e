"""The lease gate against a scripted service over real sockets: each sequence of answers, and what comes of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from image.session.claim import Ended, Exit
from image.session.worker import lease_acquisition
from image.session.worker.claim_registry import ClaimRegistry, ClaimReply
from image.session.worker.http_client import Unanswered, WorkItemClient
from image.session.worker.lease import Lease
from image.session.worker.lease_acquisition import LeaseKeeper, acquire_lease
from image.session.worker.shutdown import Shutdown
from tests.image.session.worker.harness import make_claim, secret_for
from tests.image.session.worker.service import ENVIRONMENT, WORK, BeatFault, WorkService, running
from tests.support.certificates import self_signed
from tests.support.waiting import until


class Gate:
    """A holder's side of the gate, without its process."""

    def __init__(self, service: WorkService, *, gate: float = 10.0) -> None:
        self.stop = Shutdown(last_resort=lambda status, detail: None)
        self.registry = ClaimRegistry(
            make_claim(service.url, Path("/w"), gate=gate), on_claim=lambda claim: self.stop.nudge()
        )
        self.lease = Lease()
        self.calls = WorkItemClient(service.url, ENVIRONMENT, WORK)
        self.reach = 10.0
        self.said: list[str] = []

    def ready(self) -> None:
        self.said.append("ready")
        self.registry.announced(0.0)

    def waiting(self, reason: str) -> None:
        self.said.append(reason)

    def acquire(self) -> str:
        return acquire_lease(self.lease, self.calls, self.registry, self.stop, self, reach=self.reach)

    def run(self) -> str | Exit:
        """The secret that holds the lease, or how it ended."""
        try:
            return self.acquire()
        except Ended as ended:
            return ended.exit_status
        finally:
            self.calls.close()


def when_asked(service: WorkService, times: int, act: Callable[[], object]) -> None:
    """Acts beside the caller, once the service has been asked for the lease so often."""

    def watch() -> None:
        until(lambda: len(service.beats) >= times, f"nobody asked {times} times")
        act()

    threading.Thread(target=watch, daemon=True).start()


def keeper_lives() -> bool:
    return any(thread.name == "keeper" for thread in threading.enumerate())


def statuses(service: WorkService) -> Sequence[int | None]:
    return [beat.status for beat in service.beats]


def test_an_acked_item_is_leased_with_the_first_beat() -> None:
    with running(state="starting") as service:
        gate = Gate(service)
        assert gate.run() == secret_for("token-of-a-test")
        assert [(beat.expected, beat.token) for beat in service.beats] == [("NO_HEARTBEAT", "token-of-a-test")]
        assert gate.registry.offer(make_claim(service.url, Path("/w"))) is ClaimReply.LEASED


def test_an_item_that_nobody_has_acked_is_asked_for_again_until_somebody_does() -> None:
    with running() as service:
        gate = Gate(service)
        when_asked(service, 2, service.ack)
        assert gate.run() == secret_for("token-of-a-test")
        assert statuses(service)[-1] == 200
        assert 2 <= statuses(service).count(412) <= 4


@pytest.mark.parametrize("lost", [BeatFault.ANSWER_LOST, BeatFault.ERROR_AFTER, BeatFault.GARBAGE_AFTER])
def test_the_first_beats_lost_answer_is_found_again_in_the_412_that_follows(lost: BeatFault) -> None:
    with running(state="starting", faults=[lost]) as service:
        gate = Gate(service)
        assert gate.run() == secret_for("token-of-a-test")
        first, second, third = service.beats
        assert (first.expected, second.expected, second.status) == ("NO_HEARTBEAT", "NO_HEARTBEAT", 412)
        assert third.status == 200
        assert third.expected != "NO_HEARTBEAT"


def test_a_beat_without_an_answer_within_its_limit_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image.session.worker.http_client.LIMIT", 0.3)
    with running(state="starting", faults=[BeatFault.SLOW_AFTER]) as service:
        began = time.monotonic()
        assert Gate(service).run() == secret_for("token-of-a-test")
        assert time.monotonic() - began < 20
        *doubted, last = statuses(service)[1:]  # on a busy machine another answer may be late too
        assert (set(doubted), last) == ({412}, 200)


def test_a_lost_answer_while_the_item_is_unacked_counts_as_doubt_for_good() -> None:
    """A beat may be under way for longer than its sender waits, and arrive after the ack."""
    lease = Lease()
    lease.sending()  # lost on its way, as far as anybody knows
    lease.sending()
    assert lease.judge(412, _state("queued", None)).name == "NOT_ACKED"
    lease.sending()
    assert lease.judge(412, _state("active", "2026-10-20T09:00:01Z")).name == "OURS"


def test_doubt_pays_for_one_412_only() -> None:
    lease = Lease()
    lease.sending()
    lease.sending()
    assert lease.judge(412, _state("active", "2026-10-20T09:00:01Z")).name == "OURS"
    assert lease.sending() == "2026-10-20T09:00:01Z"
    assert lease.judge(412, _state("active", "2026-10-20T09:00:02Z")).name == "LOST"


def test_a_412_of_an_active_item_without_doubt_is_somebody_elses_lease() -> None:
    with running(state="active", last_heartbeat="2026-10-20T08:59:00Z") as service:
        assert Gate(service).run() is Exit.LEASE_LOST
        assert statuses(service) == [412]


def test_an_error_without_effect_earns_no_right_to_another_workers_lease() -> None:
    """401s and the like are answers: no beat of ours can be behind a 412 that follows them."""
    lease = Lease()
    lease.sending()
    assert lease.judge(404, b"{}").name == "DOUBTFUL"
    lease.sending()
    assert lease.judge(412, _state("active", "2026-10-20T09:00:01Z")).name == "LOST"


@pytest.mark.parametrize("fault", [BeatFault.ERROR, BeatFault.REQUEST_LOST])
def test_errors_are_survived(fault: BeatFault) -> None:
    with running(state="starting", faults=[fault, fault, fault]) as service:
        assert Gate(service).run() == secret_for("token-of-a-test")


def test_an_item_that_nobody_ever_acks_is_given_up_and_claims_are_refused_from_then_on() -> None:
    with running() as service:
        gate = Gate(service, gate=0.5)
        began = time.monotonic()
        assert gate.run() is Exit.NEVER_ACKED
        assert 0.5 <= time.monotonic() - began < 20
        assert gate.registry.offer(make_claim(service.url, Path("/w"))) is ClaimReply.REFUSED


@pytest.mark.parametrize(("fault", "reason"), [(BeatFault.REQUEST_LOST, "127.0.0.1"), (BeatFault.ERROR, "503")])
def test_a_service_that_never_answers_is_given_up_with_the_reason_and_without_a_ready(
    fault: BeatFault, reason: str
) -> None:
    """An answer that anything on the way could have given proves no way to the service."""
    with running(fault_for_ever=fault) as service:
        gate = Gate(service)
        gate.reach = 0.5
        assert gate.run() is Exit.UNREACHABLE
        assert gate.said == [gate.said[0]], "each reason is told once"
        assert reason in gate.said[0]
        assert gate.registry.offer(make_claim(service.url, Path("/w"))) is ClaimReply.REFUSED


def test_ready_is_said_once_after_the_first_answered_beat() -> None:
    with running(faults=[BeatFault.REQUEST_LOST]) as service:
        gate = Gate(service, gate=2.0)
        assert gate.run() is Exit.NEVER_ACKED
        assert (len(gate.said), gate.said[-1]) == (2, "ready")
        assert statuses(service)[:2] == [None, 412]


@pytest.mark.parametrize("state", ["stopped", "active"])
def test_an_item_that_cannot_be_served_is_never_ready(state: str) -> None:
    with running(state=state, last_heartbeat="2026-10-20T09:00:00Z") as service:
        gate = Gate(service)
        gate.run()
        assert gate.said == []


def test_an_item_whose_ack_takes_seconds_costs_a_few_beats() -> None:
    with running() as service:
        gate = Gate(service, gate=0.0)
        gate.registry.announced(3.0)
        assert gate.run() is Exit.NEVER_ACKED
        began = service.beats[0].at
        assert 2 <= len([beat for beat in service.beats if beat.at - began < 3.0]) <= 5


def test_a_stopped_item_is_left_alone() -> None:
    with running(state="stopped") as service:
        assert Gate(service).run() is Exit.STOPPED
        assert service.stops() == 0


def test_an_item_that_is_stopping_is_stopped_for_good() -> None:
    with running(state="stopping") as service:
        assert Gate(service).run() is Exit.STOPPED
        assert service.state == "stopped"


def test_a_refused_credential_ends_it() -> None:
    with running(state="starting", refused_tokens={"token-of-a-test"}) as service:
        assert Gate(service).run() is Exit.REFUSED
        assert statuses(service) == [401]


def test_a_newer_secret_is_tried_before_a_refusal_is_final() -> None:
    with running(refused_tokens={"newer"}) as service:
        gate = Gate(service)
        assert gate.registry.offer(make_claim(service.url, Path("/w"), token="newer")) is ClaimReply.UNPROVEN
        service.ack()
        assert gate.run() == secret_for("token-of-a-test")
        assert [(beat.token, beat.status) for beat in service.beats] == [("newer", 401), ("token-of-a-test", 200)]


def test_the_newest_secret_is_used() -> None:
    with running(state="starting") as service:
        gate = Gate(service)
        gate.registry.offer(make_claim(service.url, Path("/w"), token="newer"))
        assert gate.run() == secret_for("newer")
        assert [beat.token for beat in service.beats] == ["newer"]


def test_a_claim_that_arrives_wakes_the_gate_for_its_ack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses grow; the ack that a new claim announces does not wait for the end of one."""
    monkeypatch.setattr(lease_acquisition, "_GROWTH", 10_000.0)
    monkeypatch.setattr(lease_acquisition, "_LONGEST_PAUSE", 100.0)
    with running() as service:
        gate = Gate(service)
        ended: list[str | Exit] = []
        thread = threading.Thread(target=lambda: ended.append(gate.run()))
        thread.start()
        until(lambda: len(service.beats) >= 2, "nobody asks for the lease")
        service.ack()
        gate.registry.offer(make_claim(service.url, Path("/w"), token="newer"))
        thread.join(60)
        assert ended == [secret_for("newer")]


def test_a_request_to_stop_ends_the_gate_at_once() -> None:
    with running() as service:
        gate = Gate(service)
        when_asked(service, 4, lambda: gate.stop.request(Exit.STOPPED, "SIGTERM"))
        assert gate.run() is Exit.STOPPED
        assert service.state == "queued"


def test_the_keeper_beats_until_the_hand_over_and_never_after() -> None:
    with running(state="starting", ttl=2) as service:
        gate = Gate(service)
        secret = gate.acquire()
        lease_keeper = LeaseKeeper(gate.lease, gate.calls, secret)
        until(lambda: len(service.beats) >= 3, "the keeper does not beat")
        assert keeper_lives()
        lease_keeper.hand_over()
        assert not keeper_lives()
        gate.calls.close()


def test_the_keeper_finds_its_own_lost_beat() -> None:
    with running(state="starting", ttl=2, faults=[BeatFault.NONE, BeatFault.ANSWER_LOST]) as service:
        gate = Gate(service)
        secret = gate.acquire()
        lease_keeper = LeaseKeeper(gate.lease, gate.calls, secret)
        until(lambda: len(service.beats) >= 4, "the keeper does not beat")
        lease_keeper.hand_over()
        assert statuses(service)[:4] == [200, None, 412, 200]
        gate.calls.close()


@pytest.mark.parametrize(("fault", "end"), [(BeatFault.STOLEN, Exit.LEASE_LOST), (BeatFault.REFUSED, Exit.REFUSED)])
def test_a_lease_that_is_lost_while_the_sdk_loads_ends_the_worker_before_any_session_call(
    fault: BeatFault, end: Exit
) -> None:
    with running(state="starting", ttl=2, faults=[BeatFault.NONE, fault]) as service:
        gate = Gate(service)
        lease_keeper = LeaseKeeper(gate.lease, gate.calls, gate.acquire())
        until(lambda: not keeper_lives(), "the keeper beats on without a lease")
        with pytest.raises(Ended) as ended:
            lease_keeper.hand_over()
        assert ended.value.exit_status is end
        gate.calls.close()


def test_an_idle_connection_that_the_server_closed_costs_no_doubt() -> None:
    with running(state="starting") as service:
        calls = WorkItemClient(service.url, ENVIRONMENT, WORK)
        assert calls.heartbeat("NO_HEARTBEAT", "t").status == 200
        port = calls._connection.sock.getsockname()[1] if calls._connection else 0
        service.hang_up()
        assert calls.heartbeat("x", "t").status == 412
        assert calls._connection is not None
        assert calls._connection.sock.getsockname()[1] != port
        calls.close()


def test_an_answer_that_drips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image.session.worker.http_client.LIMIT", 0.5)
    with running(state="starting", drip=0.1) as service:
        calls = WorkItemClient(service.url, ENVIRONMENT, WORK)
        began = time.monotonic()
        with pytest.raises(Unanswered):
            calls.heartbeat("NO_HEARTBEAT", "t")
        assert time.monotonic() - began < 20


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(state="starting") as service:
        monkeypatch.setenv("http_proxy", service.url.replace("http://", "http://user:pass@"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        calls = WorkItemClient("http://service.invalid", ENVIRONMENT, WORK)
        assert calls.heartbeat("NO_HEARTBEAT", "t").status == 200
        assert service.targets[-1].startswith("http://service.invalid/v1/environments/")
        assert service.proxy_credentials == "Basic dXNlcjpwYXNz"
        calls.close()


def test_an_authority_that_only_the_systems_file_has_is_found_with_a_second_handshake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate = self_signed(tmp_path)
    (tmp_path / "directory").mkdir()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "directory"))
    with running(state="starting", certificate=certificate) as service:
        with pytest.raises(Unanswered, match="certificate"):
            WorkItemClient(service.url, ENVIRONMENT, WORK).heartbeat("NO_HEARTBEAT", "t")
        assert not service.beats
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        calls = WorkItemClient(service.url, ENVIRONMENT, WORK)
        assert calls.heartbeat("NO_HEARTBEAT", "t").status == 200
        assert len(service.beats) == 1
        calls.close()


def _state(state: str, last_heartbeat: str | None) -> bytes:
    current = {"state": state, "last_heartbeat": last_heartbeat, "lease_extended": False, "ttl_seconds": 120}
    return json.dumps({"type": "error", "error": {"details": {"current_state": current}}}).encode()
