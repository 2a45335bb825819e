"""What a dispatcher makes of a worker's words: an ack must never leave an item with nobody behind it
(docs/architecture.md#i1)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from image.session import claim as wire
from image.session.archive import build_archive, digest
from shared.claims.handover import NotReady, Ready, hand_over
from shared.deadline import Deadline
from shared.ports import LARGEST_OUTPUT, Doubtful, ProcessState, WorkItem
from tests.support.fake_host import FakeHost

DIGEST = digest(build_archive())
ITEM = WorkItem("work_1", "env_1", "session", "sesn_1", datetime(2026, 1, 1, tzinfo=UTC), "secret")
CLAIM = wire.Claim("work_1", "env_1", "sesn_1", "secret", "http://127.0.0.1:9", DIGEST)


def said(word: wire.Word, *, on_behalf: bool = False, detail: str = "") -> str:
    notice = wire.Notice(word, "work_1", wire.PROTOCOL_VERSION, DIGEST, "2.12.0", 1, detail, on_behalf)
    return notice.to_json()


class Told(FakeHost):
    """Answers looks at a worker from a script; its last line repeats."""

    def __init__(self, outputs: Sequence[list[str] | Doubtful], exit_code: int | None, running: bool) -> None:
        super().__init__()
        self._outputs = list(outputs)
        self._state = (exit_code, running)

    async def start(self, sandbox_id: str, process: Any) -> None:
        return None

    async def process_output(self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT) -> list[str] | Doubtful:
        return self._outputs.pop(0) if len(self._outputs) > 1 else self._outputs[0]

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState:
        return ProcessState(name, self._state[1], self._state[0])


def outcome(host: Told) -> Ready | NotReady:
    return asyncio.run(hand_over(host, "box", ITEM, CLAIM, user=None, deadline=Deadline.after(2.0)))


def test_a_ready_of_a_running_worker_is_ready() -> None:
    assert outcome(Told([[said(wire.Word.READY)]], None, True)) == Ready("2.12.0")


def test_i1_a_ready_that_is_read_after_the_workers_death_is_not_ready() -> None:
    doubt = Doubtful("HTTP 500")
    assert isinstance(outcome(Told([doubt, doubt, [said(wire.Word.READY)]], None, False)), NotReady)


@pytest.mark.parametrize("exit_name", ["REFUSED", "STOPPED", "LEASE_LOST"])
def test_i1_a_ready_that_is_followed_by_an_end_is_not_ready(exit_name: str) -> None:
    lines = [said(wire.Word.READY), said(wire.Word.ENDED, detail=exit_name)]
    assert isinstance(outcome(Told([lines], 15, False)), NotReady)


def test_a_ready_on_behalf_of_the_locks_holder_counts_although_its_speaker_has_left() -> None:
    lines = [said(wire.Word.READY, on_behalf=True), said(wire.Word.ENDED, detail="PASSED_ON")]
    assert outcome(Told([lines], int(wire.Exit.PASSED_ON), False)) == Ready("2.12.0")


def test_what_a_program_prints_besides_is_no_notice() -> None:
    host = Told([["ready", '{"hands": "no"}', "", said(wire.Word.READY)]], None, True)
    assert outcome(host) == Ready("2.12.0")
