"""One worker at a time in a sandbox: what two or three processes with claims make of it."""

from __future__ import annotations

import base64
import socket
import threading
import time
from pathlib import Path

import pytest

from image.session.claim import Exit, Word
from image.session.worker import sealing
from image.session.worker.claim_registry import ClaimRegistry, ClaimReply
from tests.image.session.worker.harness import make_claim, sandbox
from tests.image.session.worker.service import BeatFault, running
from tests.support.waiting import until

READ = ("glob", {"pattern": "*"})
LONG = ("bash", {"command": "sleep 3"})


def test_a_second_claim_for_the_same_item_is_passed_to_the_holder_and_its_secret_wins(tmp_path: Path) -> None:
    with running(tool_calls=[READ]) as service, sandbox(tmp_path) as box:
        holder = box.start(make_claim(service.url, box.workdir, token="first"))
        holder.wait_for(Word.READY)
        passer = box.start(make_claim(service.url, box.workdir, token="second"))
        ready = passer.wait_for(Word.READY)
        assert passer.exit() is Exit.PASSED_ON
        assert ready.on_behalf
        service.ack()
        assert holder.exit() is Exit.SERVED, holder.report()
        accepted = {beat.token for beat in service.beats if beat.status == 200}
        assert accepted == {"second"}


def test_three_claims_at_once_for_one_item_make_one_holder(tmp_path: Path) -> None:
    with running(tool_calls=[READ]) as service, sandbox(tmp_path) as box:
        workers = [box.start(make_claim(service.url, box.workdir, token=f"t{number}")) for number in range(3)]
        for worker in workers:
            worker.wait_for(Word.READY)
        service.ack()
        exits = sorted(worker.exit() for worker in workers)
        assert exits == [Exit.SERVED, Exit.PASSED_ON, Exit.PASSED_ON]
        assert len([beat for beat in service.beats if beat.expected == "NO_HEARTBEAT" and beat.status == 200]) == 1


def test_a_claim_for_an_item_that_is_being_served_waits_and_never_says_ready(tmp_path: Path) -> None:
    with running(tool_calls=[LONG]) as service, sandbox(tmp_path) as box:
        service.ack()
        holder = box.start(make_claim(service.url, box.workdir))
        holder.wait_for(Word.LEASED)
        late = box.start(make_claim(service.url, box.workdir, token="late", lock_wait=0.8))
        assert late.exit() is Exit.LOCKED_OUT
        assert late.words() == [Word.WAITING, Word.ENDED]
        assert "leased" in late.ending()
        assert holder.exit() is Exit.SERVED, holder.report()


def test_a_claim_for_another_item_gets_the_lock_when_the_older_worker_is_done(tmp_path: Path) -> None:
    with running(tool_calls=[LONG]) as service, sandbox(tmp_path) as box:
        service.ack()
        holder = box.start(make_claim(service.url, box.workdir))
        holder.wait_for(Word.LEASED)
        other = box.start(make_claim(service.url, box.workdir, work_id="work_02Other", lock_wait=20.0, gate=0.2))
        assert "other" in other.wait_for(Word.WAITING).detail
        assert holder.exit() is Exit.SERVED, holder.report()
        other.wait_for(Word.READY)
        assert other.words() == [Word.WAITING, Word.READY]


def test_a_killed_holder_frees_the_lock_for_the_claim_that_waits(tmp_path: Path) -> None:
    with running(tool_calls=[READ]) as service, sandbox(tmp_path) as box:
        holder = box.start(make_claim(service.url, box.workdir))
        holder.wait_for(Word.READY)
        other = box.start(make_claim(service.url, box.workdir, work_id="work_02Other", lock_wait=20.0, gate=0.2))
        other.wait_for(Word.WAITING)
        holder.process.kill()
        other.wait_for(Word.READY, within=15)  # and not only when its 20 s are over


def test_a_holder_that_gives_up_while_claims_arrive_leaves_each_of_them_with_a_living_holder(tmp_path: Path) -> None:
    """Whoever says `ready` must be alive or have been promised to: claims come in all around the moment of giving up,
    and afterwards one more beat than before the last `ready` shows that somebody still asks."""
    with running() as service, sandbox(tmp_path) as box:
        box.start(make_claim(service.url, box.workdir, gate=0.6)).wait_for(Word.READY)
        workers = []
        for number in range(6):
            workers.append(box.start(make_claim(service.url, box.workdir, token=f"t{number}", gate=0.6)))
            time.sleep(0.12)
        for worker in workers:
            worker.wait_for(Word.READY)
        beats = len(service.beats)
        until(lambda: len(service.beats) > beats, "nobody asks for the lease after the last ready")


def test_a_claim_is_either_taken_and_waited_for_or_refused() -> None:
    now = [0.0]
    claim = make_claim("http://service.invalid", Path("/w"), gate=10.0)
    registry = ClaimRegistry(claim, on_claim=lambda _: None, clock=lambda: now[0])
    registry.announced(10.0)
    now[0] = 9.9
    assert registry.offer(claim) is ClaimReply.TAKEN
    now[0] = 10.1
    assert not registry.give_up()
    now[0] = 19.9
    assert registry.give_up()
    assert registry.offer(claim) is ClaimReply.REFUSED
    assert registry.secret() == claim.secret


def test_nobody_says_ready_on_behalf_of_a_holder_that_the_service_has_not_answered_yet(tmp_path: Path) -> None:
    with running(fault_for_ever=BeatFault.REQUEST_LOST) as service, sandbox(tmp_path) as box:
        holder = box.start(make_claim(service.url, box.workdir, reach=20.0))
        assert "does not answer" in holder.wait_for(Word.WAITING).detail
        passer = box.start(make_claim(service.url, box.workdir, token="second", lock_wait=20.0))
        assert "unproven" in passer.wait_for(Word.WAITING).detail
        assert Word.READY not in (*holder.words(), *passer.words())
        service.fault_for_ever = None
        holder.wait_for(Word.READY)
        assert passer.wait_for(Word.READY).on_behalf
        service.ack()
        holder.wait_for(Word.LEASED)
        assert service.beats[-1].token == "second"


def test_a_registry_with_a_lease_takes_no_claim() -> None:
    claim = make_claim("http://service.invalid", Path("/w"))
    registry = ClaimRegistry(claim, on_claim=lambda _: None)
    assert registry.offer(make_claim("http://service.invalid", Path("/w"), work_id="work_other")) is ClaimReply.OTHER
    registry.leased()
    assert registry.offer(claim) is ClaimReply.LEASED
    registry.close()
    assert registry.offer(claim) is ClaimReply.REFUSED


@pytest.mark.parametrize("message", [b"", b"garbage\n", b"x" * 200_000, b'{"protocol": 1}\n'])
def test_nonsense_at_the_socket_harms_nobody(tmp_path: Path, message: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tool_calls=[READ]) as service, sandbox(tmp_path) as box:
        holder = box.start(make_claim(service.url, box.workdir))
        holder.wait_for(Word.READY)
        monkeypatch.chdir(box.state)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as nonsense:
            nonsense.settimeout(5)
            nonsense.connect("claims.sock")
            nonsense.settimeout(0.5)
            try:
                nonsense.sendall(message)
                nonsense.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # cut off in the middle
        passer = box.start(make_claim(service.url, box.workdir, token="second"))
        assert passer.exit() is Exit.PASSED_ON, passer.report()
        service.ack()
        assert holder.exit() is Exit.SERVED, holder.report()


def test_a_holder_that_does_not_answer_is_no_reason_to_say_ready(tmp_path: Path) -> None:
    """A process may hold the lock and listen to nobody."""
    import fcntl
    import os

    with running() as service, sandbox(tmp_path) as box:
        box.state.mkdir(mode=0o700)
        descriptor = os.open(box.state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        worker = box.start(make_claim(service.url, box.workdir, lock_wait=0.5))
        assert worker.exit() is Exit.LOCKED_OUT
        assert worker.words() == [Word.ENDED]
        os.close(descriptor)


def test_somebody_else_who_holds_the_lock_and_listens_gets_no_claim_and_no_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of the agent's, which has the same user, poses as the lock's holder."""
    import fcntl
    import os

    heard: list[bytes] = []
    with running() as service, sandbox(tmp_path) as box:
        box.state.mkdir(mode=0o700)
        descriptor = os.open(box.state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        monkeypatch.chdir(box.state)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind("claims.sock")
            listener.listen(16)

            def pose() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    with connection:
                        heard.append(connection.recv(1 << 20))
                        connection.sendall(b"taken " + b"0" * 64 + b"\n")

            posing = threading.Thread(target=pose, daemon=True)
            posing.start()
            claim = make_claim(service.url, box.workdir, lock_wait=1.0)
            worker = box.start(claim)
            assert worker.exit() is Exit.LOCKED_OUT
            listener.shutdown(socket.SHUT_RDWR)
            posing.join(10)
        os.close(descriptor)
    assert worker.words() == [Word.ENDED]
    assert heard
    for message in heard:
        plain = base64.b64decode(message)
        assert claim.secret.encode() not in message + plain
        assert b"secret" not in plain


def test_a_claim_of_another_key_is_not_taken(tmp_path: Path) -> None:
    with running() as service, sandbox(tmp_path) as box:
        box.start(make_claim(service.url, box.workdir)).wait_for(Word.READY)
        other = box.start(make_claim(service.url, box.workdir, token="x", session_key="another", lock_wait=0.5))
        assert other.exit() is Exit.LOCKED_OUT


def test_what_is_sealed_can_be_read_with_its_key_alone() -> None:
    data = "a claim, \u00e9".encode() * 3000
    sealed = sealing.seal("key", sealing.fresh_nonce(), data)
    assert sealing.unseal("key", sealed) == (sealed[:16], data)
    assert data[:32] not in sealed
    for wrong in (sealed[:-1] + bytes([sealed[-1] ^ 1]), bytes([sealed[0] ^ 1]) + sealed[1:], sealed[:40], b""):
        with pytest.raises(ValueError, match="not sealed"):
            sealing.unseal("key", wrong)
    with pytest.raises(ValueError, match="not sealed"):
        sealing.unseal("other", sealed)


def test_a_stale_socket_is_replaced_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tool_calls=[READ]) as service, sandbox(tmp_path) as box:
        box.state.mkdir(mode=0o700)
        monkeypatch.chdir(box.state)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
            stale.bind("claims.sock")
        holder = box.start(make_claim(service.url, box.workdir))
        holder.wait_for(Word.READY)
        assert box.start(make_claim(service.url, box.workdir)).exit() is Exit.PASSED_ON
        service.ack()
        assert holder.exit() is Exit.SERVED, holder.report()
        assert not (box.state / "claims.sock").exists()


def test_a_state_directory_with_a_long_path_works(tmp_path: Path) -> None:
    """A socket's path must fit into 108 bytes, a directory's need not."""
    root = tmp_path.joinpath(*["a-rather-long-name-of-a-directory"] * 4)
    root.mkdir(parents=True)
    with running() as service, sandbox(root) as box:
        box.start(make_claim(service.url, box.workdir)).wait_for(Word.READY)
        assert box.start(make_claim(service.url, box.workdir)).exit() is Exit.PASSED_ON


def test_two_drains_that_race_with_one_sandbox_never_make_two_holders(tmp_path: Path) -> None:
    with running() as service, sandbox(tmp_path) as box:
        begin = threading.Barrier(4)
        words: list[bool] = []

        def claim(number: int) -> None:
            begin.wait()
            worker = box.start(make_claim(service.url, box.workdir, token=f"t{number}"))
            words.append(worker.wait_for(Word.READY).on_behalf)

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(words) == [False, True, True, True]
