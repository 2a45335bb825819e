"""A claim is served from start to end by real processes over real sockets, with Anthropic's own worker class."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import signal
from pathlib import Path

import pytest

from image.session.archive import build_archive, digest
from image.session.claim import STOP_SIGNAL, Exit, Word
from tests.image.session.worker.harness import make_claim, sandbox
from tests.image.session.worker.service import BeatFault, running
from tests.support.waiting import until

WRITE = ("write", {"file_path": "hello.txt", "content": "hi"})
READ = ("read", {"file_path": "hello.txt"})


def test_a_session_is_served_from_claim_to_end(tmp_path: Path) -> None:
    calls = [WRITE, READ, ("bash", {"command": "cat hello.txt; pwd"})]
    with running(tool_calls=calls) as service, sandbox(tmp_path) as box:
        worker = box.start(make_claim(service.url, box.workdir))
        ready = worker.wait_for(Word.READY)
        service.ack()
        assert worker.exit() is Exit.SERVED, worker.report()
        assert worker.words() == [Word.READY, Word.LEASED, Word.ENDED]
        assert worker.ending() == "SERVED"
        assert (box.workdir / "hello.txt").read_text() == "hi"
        texts = [result["content"][0]["text"] for result in service.results]
        assert texts[2] == f"hi{box.workdir}"
        assert service.stops() == 1
    assert (ready.worker, ready.on_behalf, ready.pid) == (digest(build_archive()), False, worker.process.pid)
    assert ready.sdk == importlib.metadata.version("anthropic")
    # One chain of beats, from the gate's into the SDK's: each names the one before.
    accepted = [beat for beat in service.beats if beat.status == 200]
    assert len(accepted) >= 2
    assert [beat.expected for beat in accepted[:1]] == ["NO_HEARTBEAT"]
    assert all(beat.status in (200, 412) for beat in service.beats)
    assert not [beat for beat in service.beats if beat.status == 412 and beat.expected != "NO_HEARTBEAT"]


def test_no_session_call_is_made_before_the_lease_is_held(tmp_path: Path) -> None:
    with running(tool_calls=[READ]) as service, sandbox(tmp_path) as box:
        worker = box.start(make_claim(service.url, box.workdir))
        worker.wait_for(Word.READY)
        service.wait_for("/heartbeat", 4)
        assert all(line.endswith("/heartbeat") for line in service.requests)
        service.ack()
        assert worker.exit() is Exit.SERVED, worker.report()


def test_the_sdks_own_first_beat_continues_from_the_gates(tmp_path: Path) -> None:
    with running(tool_calls=[READ]) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.SERVED, worker.report()
        first, second = service.beats[:2]
        assert (first.expected, first.status, second.status) == ("NO_HEARTBEAT", 200, 200)
        assert second.expected.startswith("2026-")


def test_the_lease_is_kept_while_the_sdk_loads(tmp_path: Path) -> None:
    """With a lease of 6 s the beats are three seconds apart, whoever sends them."""
    with running(tool_calls=[("bash", {"command": "sleep 7.5"})], ttl=6) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.SERVED, worker.report()
        times = [beat.at for beat in service.beats]
        assert max(late - early for early, late in itertools.pairwise(times)) < 5.7


def test_a_later_beat_whose_answers_are_lost_does_not_end_the_lease(tmp_path: Path) -> None:
    """The SDK sends the beat again by itself, with the value that its lost success has outdated."""
    calls = [("bash", {"command": "sleep 9"}), READ]
    faults = [BeatFault.NONE, BeatFault.NONE, BeatFault.ANSWER_LOST]
    with running(tool_calls=calls, ttl=6, faults=faults) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.SERVED, worker.report()
        assert [beat.status for beat in service.beats[:5]] == [200, 200, None, 412, 200]
        assert len(service.results) == 2


def test_every_kind_of_doubtful_beat_is_survived(tmp_path: Path) -> None:
    calls = [("bash", {"command": "sleep 17"}), READ]
    faults = [
        *(BeatFault.NONE, BeatFault.NONE, BeatFault.ERROR_AFTER, BeatFault.NONE, BeatFault.NONE),
        *(
            BeatFault.GARBAGE_AFTER,
            BeatFault.NONE,
            BeatFault.NONE,
            BeatFault.ERROR,
            BeatFault.NONE,
            BeatFault.REQUEST_LOST,
        ),
    ]
    with running(tool_calls=calls, ttl=6, faults=faults) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.SERVED, worker.report()
        assert service.faults == []
        assert len(service.results) == 2


def test_i1_a_call_from_before_the_stream_runs_though_the_history_could_not_be_read_at_first(tmp_path: Path) -> None:
    """The SDK's client tries three times at each reading, and its runner reads once while the stream lasts."""
    with running(tool_calls=[READ], history_failures=5) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.SERVED, worker.report()
        assert (service.history_failures, len(service.results)) == (0, 1)


def test_an_answer_that_comes_too_late_is_a_lost_one(tmp_path: Path) -> None:
    calls = [("bash", {"command": "until [ -e on ]; do sleep 0.2; done"}), READ]
    faults = [BeatFault.NONE, BeatFault.NONE, BeatFault.SLOW_AFTER]
    with running(tool_calls=calls, ttl=12, faults=faults) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        until(lambda: len(service.beats) > len(faults) + 1, "nothing beats any more")
        (box.workdir / "on").touch()
        assert worker.exit() is Exit.SERVED, worker.report()
        assert len(service.results) == 2


def test_a_lease_that_another_worker_holds_is_lost_without_a_stop(tmp_path: Path) -> None:
    calls = [("bash", {"command": "sleep 2"})]
    faults = [BeatFault.NONE, BeatFault.NONE, BeatFault.STOLEN]
    with running(tool_calls=calls, ttl=2, faults=faults) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.LEASE_LOST, worker.report()
        assert service.stops() == 0


def test_a_lease_that_has_lapsed_is_lost(tmp_path: Path) -> None:
    with running(tool_calls=[("bash", {"command": "sleep 2"})], ttl=2) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        service.wait_for("GET /v1/sessions")
        service.requeue()
        assert worker.exit() is Exit.LEASE_LOST, worker.report()
        assert service.stops() == 0


def test_a_lease_that_nothing_answers_for_is_taken_for_lost(tmp_path: Path) -> None:
    with running(tool_calls=[("bash", {"command": "sleep 5"})], ttl=2) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        service.wait_for("/events/stream")  # the SDK has beaten once by now
        with service.lock:
            service.fault_for_ever = BeatFault.REQUEST_LOST
        assert worker.exit() is Exit.LEASE_LOST, worker.report()
        assert service.stops() == 0


def test_an_item_that_is_stopped_while_served_ends_the_worker(tmp_path: Path) -> None:
    with running(tool_calls=[("bash", {"command": "sleep 2"})], ttl=2) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir, max_idle=None))
        service.wait_for("GET /v1/sessions")
        with service.lock:
            service.state = "stopping"
        assert worker.exit() is Exit.STOPPED, worker.report()
        assert (service.state, service.stops()) == ("stopped", 1)


def test_a_credential_that_is_refused_while_serving_says_so(tmp_path: Path) -> None:
    faults = [BeatFault.NONE, BeatFault.NONE, BeatFault.REFUSED]
    calls = [("bash", {"command": "sleep 2"})]
    with running(tool_calls=calls, ttl=2, faults=faults) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.REFUSED, worker.report()


def test_sigterm_lets_the_tool_in_flight_finish_and_post(tmp_path: Path) -> None:
    command = "touch begun; sleep 1.5; echo finished"
    with running(tool_calls=[("bash", {"command": command}), READ]) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        _wait_for_file(box.workdir / "begun")
        worker.process.send_signal(signal.SIGTERM)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exit() is Exit.STOPPED, worker.report()
        assert [result["content"][0]["text"] for result in service.results] == ["finished"]
        assert "SIGTERM" in worker.ending()


IN_FRONT = "(sleep 600 & echo $! >behind; touch begun; sleep 600; touch went-on); touch went-on"


@pytest.mark.parametrize("how", ["its next heartbeat says so", "a signal says so at once"])
def test_a_command_of_stopped_work_is_ended_and_its_call_answered_and_what_runs_behind_it_lives(
    how: str, tmp_path: Path
) -> None:
    ttl = 2 if "heartbeat" in how else 300
    with running(tool_calls=[("bash", {"command": IN_FRONT})], ttl=ttl) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        _wait_for_file(box.workdir / "begun")
        with service.lock:
            service.state = "stopping"
        if ttl > 2:
            worker.process.send_signal(STOP_SIGNAL)
        assert worker.exit() is Exit.STOPPED, worker.report()
        assert "work was stopped" in worker.ending() or "the item was stopped" in worker.ending()
        (result,) = service.results
        assert result["is_error"] and "the session's work was stopped" in result["content"][0]["text"]
        assert service.stops() == 1 and not (box.workdir / "went-on").exists()
        os.kill(int((box.workdir / "behind").read_text()), signal.SIGKILL)  # raises where it is gone


def test_work_that_is_stopped_before_the_sdk_serves_it_is_stopped_by_its_worker_all_the_same(tmp_path: Path) -> None:
    with running(tool_calls=[("bash", {"command": "sleep 600"})], ttl=300) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        worker.wait_for(Word.LEASED)
        with service.lock:
            service.state = "stopping"
        worker.process.send_signal(STOP_SIGNAL)
        assert worker.exit() is Exit.STOPPED, worker.report()
        assert (service.state, service.stops()) == ("stopped", 1)


@pytest.mark.parametrize("command", [IN_FRONT, "touch begun; trap true INT; while :; do sleep 0.1; done"])
def test_a_command_of_an_interrupted_turn_is_ended_by_force_if_need_be_and_the_worker_serves_on(
    command: str, tmp_path: Path
) -> None:
    calls = [
        ("bash", {"command": f"cd sub; {command}"}),
        READ,
        ("bash", {"command": "pwd"}),
        ("bash", {"command": "pwd"}),
    ]
    with running(tool_calls=calls) as service, sandbox(tmp_path) as box:
        service.ack()
        (box.workdir / "hello.txt").write_text("served on")
        (box.workdir / "sub").mkdir()
        worker = box.start(make_claim(service.url, box.workdir))
        _wait_for_file(box.workdir / "sub" / "begun")
        with service.lock:
            service.events.append({"type": "user.interrupt", "id": "sevt_stop", "session_thread_id": "another"})
            service.events.append({"type": "user.interrupt", "id": "sevt_stop2"})
        assert worker.exit() is Exit.SERVED, worker.report()
        said = [result["content"][0]["text"] for result in service.results]
        assert "its turn was interrupted" in said[0] and "served on" in said[1]
        assert said[2:] == [
            f"[a new shell in {box.workdir}/sub: the one before ended with its command]\n{box.workdir}/sub",
            f"{box.workdir}/sub",
        ]
        assert not (box.workdir / "sub" / "went-on").exists()


def test_a_worker_does_not_outlive_its_lifetime(tmp_path: Path) -> None:
    with running(tool_calls=[READ]) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir, max_idle=None, lifetime=15.0))
        assert worker.exit() is Exit.LIFETIME, worker.report()
        assert len(service.results) == 1


def test_a_memory_directory_that_a_killed_worker_left_is_set_aside(tmp_path: Path) -> None:
    store = {"type": "memory_store", "memory_store_id": "memstore_1", "access": "read_write", "name": "notes"}
    mount = tmp_path / "memory" / "notes"
    mount.mkdir(parents=True)
    (mount / "kept.md").write_text("never uploaded")
    resources = [{**store, "mount_path": str(mount)}]
    with running(tool_calls=[READ], resources=resources) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.SERVED, worker.report()
    (aside,) = mount.parent.glob("notes.left-*")
    assert (aside / "kept.md").read_text() == "never uploaded"


def test_a_new_worker_starts_where_one_was_killed(tmp_path: Path) -> None:
    """It leaves a socket, and a shell that still runs in the workspace."""
    calls = [("bash", {"command": "echo $$ > shell; touch begun; sleep 60"})]
    with running(tool_calls=calls) as service, sandbox(tmp_path) as box:
        service.ack()
        killed = box.start(make_claim(service.url, box.workdir))
        _wait_for_file(box.workdir / "begun")
        killed.process.kill()
        killed.process.wait()
        shell = int((box.workdir / "shell").read_text())
        try:
            os.kill(shell, 0)  # it does live on
            assert (box.state / "claims.sock").exists()
            with service.lock:
                service.events[0] |= {"name": "read", "input": {"file_path": "shell"}}
            service.requeue()
            service.ack()
            worker = box.start(make_claim(service.url, box.workdir))
            assert worker.exit() is Exit.SERVED, worker.report()
            os.kill(shell, 0)  # not ours to end
        finally:
            for process in (*_children(shell), shell):
                os.kill(process, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _wait_for_file(path: Path) -> None:
    until(path.exists, f"{path.name} did not appear")
