"""Requests to stop: who decides, who is told, and what happens if nobody obeys."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from image.session.claim import GIVE_UP_SIGNAL, Ended, Exit, Word
from image.session.worker.shutdown import GRACE, Shutdown
from tests.image.session.worker.harness import make_claim, sandbox
from tests.image.session.worker.service import running


def test_the_first_request_decides_and_is_told_once() -> None:
    told: list[str] = []
    stop = Shutdown(last_resort=lambda status, detail: None)
    stop.check()
    stop.on_request(lambda: told.append("told"))
    stop.request(Exit.LIFETIME, "over")
    stop.request(Exit.STOPPED, "SIGTERM")
    assert stop.reason == (Exit.LIFETIME, "over")
    assert told == ["told"]
    with pytest.raises(Ended) as ended:
        stop.check()
    assert ended.value.exit_status is Exit.LIFETIME


def test_who_listens_too_late_is_told_at_once() -> None:
    told: list[str] = []
    stop = Shutdown(last_resort=lambda status, detail: None)
    stop.request(Exit.STOPPED, "SIGTERM")
    stop.on_request(lambda: told.append("told"))
    assert told == ["told"]


def test_a_worker_that_does_not_end_in_its_grace_is_ended() -> None:
    ended: list[tuple[Exit, str]] = []
    gone = threading.Event()

    def last_resort(status: Exit, detail: str) -> None:
        ended.append((status, detail))
        gone.set()

    stop = Shutdown(last_resort=last_resort, grace=0.1)
    stop.request(Exit.STOPPED, "SIGTERM")
    assert gone.wait(5)
    assert ended == [(Exit.STOPPED, "SIGTERM; the grace is over too")]


def test_a_worker_that_does_not_start_in_time_is_ended_and_one_that_does_is_not() -> None:
    ended: list[tuple[Exit, str]] = []
    gone = threading.Event()

    def last_resort(status: Exit, detail: str) -> None:
        ended.append((status, detail))
        gone.set()

    quick = Shutdown(last_resort=last_resort)
    quick.listen(100.0, 0.4)
    quick.started()
    Shutdown(last_resort=last_resort).listen(100.0, 0.8)
    assert gone.wait(20)
    assert ended == [(Exit.HUNG, "it did not start within 0.8 s")]


def test_a_worker_gives_up_when_asked_unless_it_has_started() -> None:
    ended: list[tuple[Exit, str]] = []
    gone = threading.Event()

    def last_resort(status: Exit, detail: str) -> None:
        ended.append((status, detail))
        gone.set()

    started = Shutdown(last_resort=last_resort)
    started.listen(100.0, 100.0)
    started.started()
    signal.raise_signal(GIVE_UP_SIGNAL)
    starting = Shutdown(last_resort=last_resort)
    starting.listen(100.0, 100.0)
    signal.raise_signal(GIVE_UP_SIGNAL)
    assert gone.wait(20)
    assert ended == [(Exit.GIVEN_UP, "the dispatcher gave it up before it was ready")]
    # Whoever was asked can no longer start, even before the thread that hears of it has ended the process.
    with pytest.raises(Ended) as late:
        starting.started()
    assert late.value.exit_status is Exit.GIVEN_UP


def test_a_worker_that_waits_for_the_lock_gives_up_when_asked_and_one_that_is_ready_does_not(tmp_path: Path) -> None:
    with running() as service, sandbox(tmp_path) as box:
        holder = box.start(make_claim(service.url, box.workdir))
        holder.wait_for(Word.READY)
        waiting = box.start(make_claim(service.url, box.workdir, work_id="work_another", lock_wait=60.0))
        waiting.wait_for(Word.WAITING)
        for worker in (holder, waiting):
            worker.process.send_signal(GIVE_UP_SIGNAL)
        assert waiting.exit() is Exit.GIVEN_UP, waiting.report()
        service.ack()
        holder.wait_for(Word.LEASED)


def test_the_grace_covers_the_longest_tool_and_its_result() -> None:
    from anthropic.lib.tools._beta_session_runner import TOOL_TIMEOUT

    assert GRACE >= TOOL_TIMEOUT + 30


def test_every_wait_is_short_once_somebody_has_asked() -> None:
    stop = Shutdown(last_resort=lambda status, detail: None)
    stop.request(Exit.STOPPED, "SIGTERM")
    began = time.monotonic()
    for _ in range(3):
        stop.wait(60)
    assert time.monotonic() - began < 60


def test_sigterm_while_the_sdk_loads_leaves_the_item_to_its_lease(tmp_path: Path) -> None:
    """Nothing runs yet: a stop would lose the turn, while a lease that lapses brings the item back."""
    with running(tool_calls=[("bash", {"command": "touch began"})]) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        worker.wait_for(Word.LEASED)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.exit() is Exit.STOPPED, worker.report()
        assert (service.state, service.stops()) == ("active", 0)
        assert not (box.workdir / "began").exists()
