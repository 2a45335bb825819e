"""What a dispatcher makes of a worker's words: an ack must never leave an item with nobody behind it
(docs/architecture.md#i1)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from image.session import claim as wire
from image.session.archive import build_archive, digest
from shared.claims.earlier_workers import Hopeless
from shared.claims.handover import LookedTooLong, Outcome, hand_over
from shared.claims.worker_notices import NotReady, Ready
from shared.claims.worker_process import attempt_name, attempt_prefix
from shared.deadline import Deadline
from shared.ports import (
    LARGEST_OUTPUT,
    Absent,
    Doubtful,
    OutputEnded,
    ProcessSpec,
    ProcessState,
    Refused,
    WorkItem,
)
from tests.support.fake_host import FakeHost

DIGEST = digest(build_archive())
SDK = "1.2.3"
ITEM = WorkItem("work_1", "env_1", "session", "sesn_1", datetime(2026, 1, 1, tzinfo=UTC), "the-items-own-secret")
CLAIM = wire.Claim(
    "work_1", "env_1", "sesn_1", "the-items-own-secret", "http://127.0.0.1:9", DIGEST, nonce="of-this-item"
)


def said(word: wire.Word, *, on_behalf: bool = False, detail: str = "", nonce: str = "of-this-item") -> str:
    notice = wire.Notice(word, "work_1", wire.PROTOCOL_VERSION, DIGEST, SDK, 1, detail, on_behalf, nonce)
    return notice.to_json()


class Told(FakeHost):
    """Answers looks at a worker from a script; its last line repeats."""

    def __init__(self, outputs: Sequence[list[str] | Doubtful], exit_code: int | None, running: bool) -> None:
        super().__init__()
        self._outputs = list(outputs)
        self._state = (exit_code, running)

    async def start(self, sandbox_id: str, process: Any) -> None:
        return None

    async def process_output(
        self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> list[str] | Doubtful:
        return self._outputs.pop(0) if len(self._outputs) > 1 else self._outputs[0]

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState:
        return ProcessState(name, self._state[1], self._state[0])


def outcome(host: Told) -> Outcome:
    return asyncio.run(hand_over(host, "box", ITEM, CLAIM, user=None, deadline=Deadline.after(2.0)))


def test_a_ready_of_a_running_worker_is_ready() -> None:
    assert outcome(Told([[said(wire.Word.READY)]], None, True)) == Ready(SDK)


@pytest.mark.parametrize("nonce", ["", "of-another-item", "\u00e9"])
def test_a_ready_that_somebody_else_says_is_none(nonce: str) -> None:
    assert isinstance(outcome(Told([[said(wire.Word.READY, nonce=nonce)]], None, True)), NotReady)


def test_what_a_worker_says_with_its_ready_is_kept() -> None:
    told = Told([[said(wire.Word.READY, detail="the last worker died")]], None, True)
    assert outcome(told) == Ready(SDK, "the last worker died")


def test_i1_a_ready_that_is_read_after_the_workers_death_is_not_ready() -> None:
    doubt = Doubtful("HTTP 500")
    assert isinstance(outcome(Told([doubt, doubt, [said(wire.Word.READY)]], None, False)), NotReady)


@pytest.mark.parametrize("exit_name", ["REFUSED", "STOPPED", "LEASE_LOST"])
def test_i1_a_ready_that_is_followed_by_an_end_is_not_ready(exit_name: str) -> None:
    lines = [said(wire.Word.READY), said(wire.Word.ENDED, detail=exit_name)]
    assert isinstance(outcome(Told([lines], 15, False)), NotReady)


def test_a_ready_on_behalf_of_the_locks_holder_counts_although_its_speaker_has_left() -> None:
    lines = [said(wire.Word.READY, on_behalf=True), said(wire.Word.ENDED, detail="PASSED_ON")]
    assert outcome(Told([lines], int(wire.Exit.PASSED_ON), False)) == Ready(SDK)


def test_what_a_program_prints_besides_is_no_notice() -> None:
    host = Told([["ready", '{"hands": "no"}', "", said(wire.Word.READY)]], None, True)
    assert outcome(host) == Ready(SDK)


class Remembering(FakeHost):
    """A sandbox that remembers these processes, and what each has said; a new one says nothing."""

    def __init__(self, known: Sequence[ProcessState], said: Sequence[str] = ()) -> None:
        super().__init__()
        self.known = list(known)
        self.said = list(said)
        self.started: list[str] = []

    async def start(self, sandbox_id: str, process: Any) -> None:
        self.started.append(process.name)
        return

    async def process_names(self, sandbox_id: str) -> list[ProcessState]:
        return self.known

    async def process_output(
        self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> list[str]:
        return [] if name in self.started else self.said

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState:
        return ProcessState(name, running=True)


def earlier(*, running: bool, exit_code: int | None = None, number: int = 1) -> ProcessState:
    return ProcessState(f"{attempt_prefix(ITEM)}{number:08x}", running, exit_code)


def handed_over(host: FakeHost, *, seconds: float = 2.0, look_first: bool = True) -> Outcome:
    deadline = Deadline.after(seconds)
    return asyncio.run(
        hand_over(host, "box", ITEM, CLAIM, user=None, deadline=deadline, look_first=look_first, deaths=3)
    )


def test_an_earlier_worker_that_is_ready_is_used_and_no_other_is_started() -> None:
    host = Remembering([earlier(running=True)], [said(wire.Word.READY)])
    assert handed_over(host) == Ready(SDK)
    assert host.started == []


def test_an_earlier_worker_that_became_ready_is_used_when_the_new_ones_time_is_up() -> None:
    host = Remembering([earlier(running=True)], [said(wire.Word.READY)])
    assert handed_over(host, seconds=0.3, look_first=False) == Ready(SDK)
    assert len(host.started) == 1


class LookedAtSlowly(Remembering):
    """A look at its processes takes four seconds."""

    waited = 0.0

    async def process_names(self, sandbox_id: str) -> list[ProcessState]:
        self.waited += 4.0
        return self.known


def test_i2_no_worker_is_started_after_a_look_in_which_the_sandbox_may_have_been_marked() -> None:
    host = LookedAtSlowly([earlier(running=False, exit_code=1)])
    deadline = Deadline(60.0, lambda: host.waited)
    outcome = asyncio.run(hand_over(host, "box", ITEM, CLAIM, user=None, deadline=deadline, look_first=True))
    assert outcome == LookedTooLong()
    assert host.started == []


def test_i1_an_earlier_worker_that_has_its_lease_already_waits_for_no_ack() -> None:
    host = Remembering([earlier(running=True)], [said(wire.Word.READY), said(wire.Word.LEASED)])
    assert isinstance(handed_over(host, seconds=0.3), NotReady)


@pytest.mark.parametrize("exit_code", [None, 137, 1, wire.Exit.FAILED, wire.Exit.BAD_CLAIM])
def test_workers_that_die_unordered_make_an_item_hopeless_after_so_many(exit_code: int | None) -> None:
    dead = [earlier(running=False, exit_code=exit_code, number=number) for number in range(3)]
    outcome = handed_over(Remembering(dead))
    assert isinstance(outcome, Hopeless) and len(outcome.deaths) == 3
    assert isinstance(handed_over(Remembering(dead[:2]), seconds=0.3), NotReady)


class Quoted(Remembering):
    """Each process has said something of its own."""

    def __init__(self, *workers: tuple[int | None, Sequence[str]]) -> None:
        known = [earlier(running=False, exit_code=end, number=number) for number, (end, _) in enumerate(workers)]
        super().__init__(known)
        self.outputs = {process.name: lines for process, (_, lines) in zip(known, workers, strict=True)}

    async def process_output(
        self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> list[str]:
        return list(self.outputs.get(name, ()))


FIRST = [said(wire.Word.READY), said(wire.Word.LEASED)]
AFTER_A_CALL = [said(wire.Word.READY, detail=f"{wire.LAST_DEATH}call_1 (killed, time 1)"), said(wire.Word.LEASED)]


def test_deaths_in_calls_make_no_item_hopeless_since_each_call_has_a_bound_of_its_own() -> None:
    in_calls = Quoted((None, FIRST), *[(None, AFTER_A_CALL)] * 5)
    assert isinstance(handed_over(in_calls, seconds=0.3), NotReady)
    assert len(in_calls.started) == 1


def test_deaths_without_a_call_in_hand_count_beside_those_in_calls() -> None:
    outcome = handed_over(Quoted((None, FIRST), (None, AFTER_A_CALL), (1, []), (1, [])))
    assert isinstance(outcome, Hopeless) and outcome.deaths == ("killed by a signal", "failed", "failed")


def test_the_latest_worker_with_a_lease_may_have_died_in_a_call_of_which_the_next_one_tells() -> None:
    assert isinstance(handed_over(Quoted(*[(None, FIRST)] * 3), seconds=0.3), NotReady)
    assert isinstance(handed_over(Quoted(*[(None, FIRST)] * 4)), Hopeless)


def test_ends_that_were_ordered_and_waits_for_a_lock_are_no_deaths() -> None:
    ends = [wire.Exit.STOPPED, wire.Exit.LIFETIME, wire.Exit.LOCKED_OUT, wire.Exit.LEASE_LOST, wire.Exit.NEVER_ACKED]
    ended = [earlier(running=False, exit_code=end, number=number) for number, end in enumerate(ends)]
    assert isinstance(handed_over(Remembering(ended), seconds=0.3), NotReady)


def test_i5_an_item_with_a_living_worker_is_never_hopeless() -> None:
    dead = [earlier(running=False, number=number) for number in range(9)]
    host = Remembering([*dead, earlier(running=True, number=9)], [said(wire.Word.READY), said(wire.Word.LEASED)])
    assert isinstance(handed_over(host, seconds=0.3), NotReady)


class Overdue(FakeHost):
    """Two workers of the item: one was started long ago and has never been ready, a new one is ready at once. `then` is
    what the old one has said, and whether it runs, once it was asked to give up."""

    def __init__(self, age: float, then: tuple[Sequence[str] | Doubtful, bool], *, said: Sequence[str] = ()) -> None:
        super().__init__()
        self.old = attempt_name(ITEM, NOW - age)
        self.said: Sequence[str] | Doubtful = said
        self.running = True
        self.then = then
        self.signals: list[tuple[str, int]] = []
        self.started: list[str] = []

    async def start(self, sandbox_id: str, process: Any) -> None:
        self.started.append(process.name)

    async def process_names(self, sandbox_id: str) -> list[ProcessState]:
        return [ProcessState(self.old, self.running)]

    async def process_output(
        self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> Sequence[str] | Doubtful:
        return [said(wire.Word.READY)] if name in self.started else self.said

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState:
        return ProcessState(name, running=name in self.started or self.running)

    async def signal(self, sandbox_id: str, name: str, number: int) -> None:
        self.signals.append((name, number))
        if number == wire.GIVE_UP_SIGNAL:
            self.said, self.running = self.then
        else:
            self.running = False


NOW = 1_900_000_000.0
OVERDUE = CLAIM.start_limit + 16
YOUNG = CLAIM.start_limit + 14


def offered_again(host: FakeHost) -> Outcome:
    deadline = Deadline.after(30.0)
    return asyncio.run(hand_over(host, "box", ITEM, CLAIM, user=None, deadline=deadline, look_first=True, now=NOW))


def test_a_worker_that_is_overdue_is_asked_to_give_up_and_when_it_has_ended_another_one_is_started() -> None:
    host = Overdue(OVERDUE, ([], False))
    assert offered_again(host) == Ready(SDK)
    assert host.signals == [(host.old, wire.GIVE_UP_SIGNAL)] and len(host.started) == 1


def test_one_that_stands_still_does_not_answer_and_is_killed() -> None:
    host = Overdue(OVERDUE, ([said(wire.Word.WAITING)], True))
    assert offered_again(host) == Ready(SDK)
    assert host.signals == [(host.old, wire.GIVE_UP_SIGNAL), (host.old, signal.SIGKILL)]


def test_i1_one_that_becomes_ready_at_that_moment_is_used_and_lives() -> None:
    host = Overdue(OVERDUE, ([said(wire.Word.READY)], True))
    assert offered_again(host) == Ready(SDK)
    assert host.signals == [(host.old, wire.GIVE_UP_SIGNAL)] and host.started == []


@pytest.mark.parametrize(
    "said_then",
    [[said(wire.Word.READY), said(wire.Word.LEASED)], Doubtful("HTTP 502")],
    ids=["it has its lease", "its words cannot be had"],
)
def test_i1_one_that_may_have_started_is_never_killed(said_then: Sequence[str] | Doubtful) -> None:
    host = Overdue(OVERDUE, (said_then, True))
    offered_again(host)
    assert host.signals == [(host.old, wire.GIVE_UP_SIGNAL)] and host.running


@pytest.mark.parametrize(
    ("age", "words"),
    [(YOUNG, []), (OVERDUE, [said(wire.Word.READY), said(wire.Word.LEASED)]), (OVERDUE, Doubtful("HTTP 502"))],
    ids=["it may still start", "it has started", "its words cannot be had"],
)
def test_a_worker_that_is_not_known_to_be_overdue_is_left_alone(age: float, words: Any) -> None:
    host = Overdue(age, ([], True), said=words)
    offered_again(host)
    assert host.signals == []


def test_a_worker_of_a_bundle_that_knew_no_such_signal_is_left_alone() -> None:
    host = Overdue(OVERDUE, ([], True))
    host.old = f"{attempt_prefix(ITEM)}{1:08x}"
    offered_again(host)
    assert host.signals == []


def test_another_items_dead_workers_count_for_nothing() -> None:
    others = [ProcessState(f"hands-000000000000-{number:08x}", running=False) for number in range(9)]
    assert isinstance(handed_over(Remembering(others), seconds=0.3), NotReady)


def test_a_failure_quotes_the_workers_last_line_cut_printable_and_without_the_claims_secrets() -> None:
    loud = CLAIM.secret + " \x1b[31mModuleNotFoundError: No module named 'x'" + "y" * 999
    outcome = handed_over(Told([[loud]], exit_code=1, running=False), look_first=False)
    assert isinstance(outcome, NotReady) and "ModuleNotFoundError" in outcome.reason
    assert CLAIM.secret not in outcome.reason and "\x1b" not in outcome.reason and len(outcome.reason) < 400


class Users(FakeHost):
    """Answers each start by the user that the process is to run as."""

    def __init__(self, as_root: Refused | Doubtful | wire.Exit | None) -> None:
        super().__init__()
        self._as_root = as_root
        self.asked: list[tuple[str | None, str | None]] = []
        self._ended: wire.Exit | None = None

    async def start(self, sandbox_id: str, process: ProcessSpec) -> Refused | Doubtful | None:
        self.asked.append((process.user, process.env.get(wire.USER_VARIABLE)))
        self._ended = self._as_root if process.user == "root" and isinstance(self._as_root, wire.Exit) else None
        return self._as_root if process.user == "root" and isinstance(self._as_root, Refused | Doubtful) else None

    async def process_output(
        self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> list[str]:
        return [] if self._ended else [said(wire.Word.READY)]

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState | Absent:
        if isinstance(self._as_root, Doubtful) and len(self.asked) == 1:
            return Absent()
        return ProcessState(name, self._ended is None, self._ended)


ROOT, PLAIN = ("root", "agent"), ("agent", "agent")


@pytest.mark.parametrize(
    ("as_root", "asked"),
    [
        (None, [ROOT]),
        (Refused(400, "no process may be root here"), [ROOT, PLAIN]),
        (Doubtful("HTTP 500"), [ROOT, PLAIN]),
        (wire.Exit.NO_USER, [ROOT, PLAIN]),
    ],
    ids=["root", "refused", "in doubt", "no such user"],
)
def test_a_worker_starts_as_root_and_where_it_may_not_as_the_agents_user(
    as_root: Refused | Doubtful | wire.Exit | None, asked: list[tuple[str, str]]
) -> None:
    host = Users(as_root)
    told = asyncio.run(hand_over(host, "box", ITEM, CLAIM, user="agent", deadline=Deadline.after(60.0)))
    assert told == Ready(SDK)
    assert host.asked == asked


def test_where_no_user_is_set_a_worker_starts_as_the_images_own() -> None:
    host = Users(None)
    assert asyncio.run(hand_over(host, "box", ITEM, CLAIM, user=None, deadline=Deadline.after(60.0))) == Ready(SDK)
    assert host.asked == [(None, None)]


class Streaming(Remembering):
    """A new worker's output comes as a stream; a line may be an exit code, with which the process is over then."""

    def __init__(self, *lines: str | int | Doubtful) -> None:
        super().__init__([])
        self._lines = lines
        self._over: int | None = None

    async def follow_output(
        self, sandbox_id: str, name: str, *, silence: float, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> AsyncGenerator[str | OutputEnded | Absent | Doubtful, None]:
        for line in self._lines:
            if isinstance(line, int):
                self._over = line
                yield OutputEnded()
                return
            yield line
        await asyncio.Event().wait()

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState:
        return ProcessState(name, self._over is None, self._over)


def test_a_ready_is_heard_as_it_is_said_and_nothing_is_looked_at_twice() -> None:
    host = Streaming("loading", said(wire.Word.WAITING), said(wire.Word.READY))
    assert handed_over(host, look_first=False) == Ready("1.2.3")
    assert len(host.started) == 1


def test_i1_a_ready_in_the_last_breath_of_a_worker_is_not_ready() -> None:
    ended = said(wire.Word.ENDED, detail="refused: the credential")
    assert isinstance(handed_over(Streaming(said(wire.Word.READY), ended), look_first=False), NotReady)
    died = handed_over(Streaming(said(wire.Word.READY), 1), look_first=False)
    assert isinstance(died, NotReady) and "died after its ready" in died.reason
    passed_on = Streaming(said(wire.Word.READY, on_behalf=True), wire.Exit.PASSED_ON)
    assert handed_over(passed_on, look_first=False) == Ready("1.2.3")


def test_a_worker_that_says_nothing_and_dies_is_a_failure_with_its_end_at_once() -> None:
    outcome = handed_over(Streaming("Traceback: no module", 1), look_first=False, seconds=30.0)
    assert isinstance(outcome, NotReady) and "no module" in outcome.reason and "failed" in outcome.reason


def test_where_the_stream_breaks_the_output_is_looked_at_instead() -> None:
    host = Streaming(Doubtful("no event stream"))
    host.said = [said(wire.Word.READY)]
    host.known = []

    async def looked_at(sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False) -> list[str]:
        return [said(wire.Word.READY)]

    host.process_output = looked_at  # type: ignore[method-assign]  # what a new worker has said
    assert handed_over(host, look_first=False) == Ready("1.2.3")


def test_a_silent_worker_is_waited_for_until_the_hand_overs_time_is_up() -> None:
    outcome = handed_over(Streaming(said(wire.Word.WAITING, detail="no way to the API")), look_first=False, seconds=0.3)
    assert isinstance(outcome, NotReady) and "no way to the API" in outcome.reason
