"""A call that kills its worker is run twice and then answered with an error that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from image.session.claim import Exit, Word
from image.session.worker import call_notes
from image.session.worker.call_notes import MOST_DEATHS, NOTES_NAME, CallNotes
from image.session.worker.state_directory import StateDirectory
from tests.image.session.worker.harness import make_claim, sandbox
from tests.image.session.worker.service import running
from tests.image.session.worker.test_shell import bash, text

DEADLY = "echo ran >>runs; kill -9 $PPID; sleep 30"


def test_a_call_that_killed_two_workers_is_not_run_again_and_the_turn_goes_on(tmp_path: Path) -> None:
    with running(tool_calls=[bash(DEADLY), bash("echo went-on")]) as service, sandbox(tmp_path) as box:
        for _ in range(MOST_DEATHS):
            service.ack()
            killed = box.start(make_claim(service.url, box.workdir, session_key="k"))
            killed.process.wait(30)
            assert killed.process.returncode == -9, killed.report()
            service.requeue()
        service.ack()
        last = box.start(make_claim(service.url, box.workdir, session_key="k"))
        assert "died in call sevt_use0 (killed, time 2)" in last.wait_for(Word.READY).detail
        assert last.exit() is Exit.SERVED, last.report()
        assert (box.workdir / "runs").read_text() == "ran\n" * MOST_DEATHS
        first, second = service.results
        assert first["is_error"]
        assert "killed, killed" in text(first)
        assert text(second) == "went-on"


def test_a_worker_that_ends_in_order_leaves_no_death(tmp_path: Path) -> None:
    with running(tool_calls=[bash("true")]) as service, sandbox(tmp_path) as box:
        service.ack()
        assert box.start(make_claim(service.url, box.workdir)).exit() is Exit.SERVED
        assert CallNotes(StateDirectory(box.state), "key-of-a-session").last_death == ""


@pytest.mark.parametrize(
    ("change", "cause"),
    [({"boot": "another"}, "lost sandbox"), ({"out_of_memory": 1}, "out of memory"), ({}, "killed")],
)
def test_the_cause_is_told_from_what_changed_meanwhile(
    change: dict[str, object], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDirectory(tmp_path)
    before: dict[str, object] = {"boot": "one", "out_of_memory": 0}

    def surroundings(**values: object) -> None:
        made = call_notes._Surroundings(**values)  # type: ignore[arg-type]
        monkeypatch.setattr(call_notes._Surroundings, "now", classmethod(lambda cls: made))

    for _ in range(MOST_DEATHS):
        surroundings(**before)
        notes = CallNotes(state, "key")
        assert notes.refusal("sevt_1") is None
        notes.began("sevt_1")
        surroundings(**{**before, **change})
        CallNotes(state, "key")
    refusal = CallNotes(state, "key").refusal("sevt_1")
    assert refusal is not None
    assert f"({cause}, {cause})" in refusal
    assert CallNotes(state, "key").refusal("sevt_2") is None


@pytest.mark.parametrize("content", ["", "nonsense", "{}", '{"deaths": {"sevt_1": ["killed", "killed"]}}'])
def test_notes_that_the_worker_did_not_write_are_not_believed(content: str, tmp_path: Path) -> None:
    body = content.encode()
    for forged in (body, b"0" * 64 + b"\n" + body):
        (tmp_path / NOTES_NAME).write_bytes(forged)
        assert CallNotes(StateDirectory(tmp_path), "key").refusal("sevt_1") is None


def test_notes_stay_small_however_many_calls_kill_their_workers(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    for number in range(300):
        CallNotes(state, None).began(f"sevt_{number}")
    notes = CallNotes(state, None)
    assert (tmp_path / NOTES_NAME).stat().st_size < 10_000
    body = (tmp_path / NOTES_NAME).read_bytes().partition(b"\n")[2]
    assert "sevt_299" in json.loads(body)["deaths"]
    assert notes.refusal("sevt_299") is None


def test_notes_that_cannot_be_written_stop_no_call(tmp_path: Path) -> None:
    notes = CallNotes(StateDirectory(tmp_path / "state"), None)
    (tmp_path / "state").rename(tmp_path / "moved")
    (tmp_path / "moved").rmdir()
    notes.began("sevt_1")
    notes.ended()
