"""From every state of a session's sandbox a way leads to one that can serve, and nobody waits for somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from shared import names
from shared.claims.binding import Binding, Bound, Unbound
from shared.claims.capacity import Capacity
from shared.deadline import Deadline
from shared.ports import (
    Absent,
    Created,
    CreateOutcome,
    Doubtful,
    FindOutcome,
    NameTaken,
    NoCapacity,
    Refused,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
)
from tests.support.fake_host import FakeHost
from tests.support.virtual_time import run_virtual

NAME: Final = names.sandbox_name("hands", "env_1", "sesn_0123456789AbCdEf")
NOW: Final = datetime(2026, 1, 2, tzinfo=UTC)
BIND: Final = 45.0


class NamedSandboxes(FakeHost):
    """Counts what it is asked, and lets a sandbox that was ended keep its name for `forgets` seconds."""

    def __init__(self, clock: Callable[[], float], forgets: float = 0.0) -> None:
        super().__init__(latency=0.02)
        self._clock = clock
        self._forgets = forgets
        self._ghosts: dict[str, tuple[SandboxRecord, float]] = {}
        self.asked: list[str] = []
        self.no_room_until = 0.0
        self.resumes: Absent | Refused | Doubtful | None = None
        self.create_takes = 0.0

    def _ghost(self, name: str) -> SandboxRecord | None:
        record, until = self._ghosts.get(name, (None, 0.0))
        return record if self._clock() < until else None

    async def create(self, spec: SandboxSpec) -> CreateOutcome:
        self.asked.append("create")
        if self._ghost(spec.name) is not None:
            return NameTaken()
        outcome = await super().create(spec)
        await asyncio.sleep(self.create_takes)
        if isinstance(outcome, Created) and self._clock() < self.no_room_until:
            del self.boxes[outcome.sandbox.id]
            return NoCapacity(429, "HTTP 429: quota")
        return outcome

    async def find(self, name_or_id: str) -> FindOutcome:
        self.asked.append("find")
        return self._ghost(name_or_id) or await super().find(name_or_id)

    async def resume(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        self.asked.append("resume")
        return self.resumes if self.resumes is not None else await super().resume(sandbox_id)

    async def terminate(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        record = replace(self.boxes[sandbox_id].record, status=SandboxStatus.RUNNING)
        self._ghosts[record.name or ""] = (record, self._clock() + self._forgets)
        return await super().terminate(sandbox_id)


def binding(host: NamedSandboxes, clock: Callable[[], float], **more: object) -> Binding:
    wanted = {
        "prefix": "hands",
        "resume_suspended": True,
        "capacity": Capacity("env_1", clock),
        "now": lambda: NOW,
        "since": NOW,
    }
    return Binding(host, SandboxSpec(NAME), **(wanted | more))  # type: ignore[arg-type]  # one of each kind


def test_a_sandbox_that_refuses_each_resume_is_kept_under_another_name_and_replaced() -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        lost = host.add(NAME, SandboxStatus.SUSPENDED).record
        host.resumes = Refused(400, "HTTP 400: its snapshot is lost")
        bound = await binding(host, clock).bind(Deadline.after(BIND, clock))
        assert isinstance(bound, Bound) and bound.made and bound.sandbox.id != lost.id
        assert lost.id in bound.replaces and "its snapshot is lost" in bound.replaces
        kept = host.boxes[lost.id].record
        assert kept.status is SandboxStatus.SUSPENDED and (kept.name or "").startswith(names.KEEP)
        assert (kept.name or "") in bound.replaces
        assert names.parse("hands", kept.name) == names.KeptSandbox()
        assert 3 <= host.asked.count("resume") <= 6

    run_virtual(play)


@pytest.mark.parametrize("bind", [8.0, BIND])
def test_a_sleeper_that_no_resume_finds_is_kept_under_another_name_and_replaced(bind: float) -> None:
    """Its snapshot is gone, and the service's list says yet that it sleeps."""

    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        lost = host.add(NAME, SandboxStatus.SUSPENDED).record
        host.resumes = Absent()
        bound = await binding(host, clock).bind(Deadline.after(bind, clock))
        assert isinstance(bound, Bound) and bound.made and lost.id in bound.replaces
        assert (host.boxes[lost.id].record.name or "").startswith(names.KEEP)
        assert host.asked.count("resume") == 2 and clock() > 3.0, "not while it may just have ended"

    run_virtual(play)


@pytest.mark.parametrize("marked", [False, True])
def test_i2_a_sandbox_that_took_long_to_make_is_used_only_where_it_still_has_its_name(marked: bool) -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        host.create_takes = 12.0
        asked = asyncio.ensure_future(binding(host, clock).bind(Deadline.after(BIND, clock)))
        await asyncio.sleep(6.0)
        (box,) = host.boxes.values()
        if marked:
            assert await host.rename(box.record.id, names.gone_name(NAME, "hands", int(clock()))) is None
        bound = await asked
        assert isinstance(bound, Unbound if marked else Bound), bound
        assert isinstance(bound, Unbound) or bound.made
        assert len(host.boxes) == 1, "another one is made for a session that has ended, perhaps"
        assert host.asked == ["create", "find"]

    run_virtual(play)


@pytest.mark.parametrize("outcome", [Doubtful("HTTP 503"), Refused(409, "HTTP 409: suspending")])
def test_a_resume_that_is_in_doubt_or_in_conflict_costs_nobody_his_sandbox(outcome: Refused | Doubtful) -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        mine = host.add(NAME, SandboxStatus.SUSPENDED).record
        host.resumes = outcome
        bound = await binding(host, clock).bind(Deadline.after(BIND, clock))
        assert isinstance(bound, Unbound) and outcome.reason.split(":")[0] in bound.reason + outcome.reason
        assert host.boxes[mine.id].record == mine

    run_virtual(play)


@pytest.mark.parametrize("bind", [8.0, BIND, 120.0])
def test_the_refusals_are_spread_over_the_time_to_bind_and_fit_into_it(bind: float) -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        host.add(NAME, SandboxStatus.SUSPENDED)
        host.resumes = Refused(400, "HTTP 400")
        assert isinstance(await binding(host, clock).bind(Deadline.after(bind, clock)), Bound)
        assert bind / 5 < clock() < bind

    run_virtual(play)


@pytest.mark.parametrize("age, told", [(timedelta(hours=1), True), (timedelta(seconds=-5), False)])
def test_a_failed_sandbox_is_replaced_and_told_of_only_where_the_session_had_used_it(
    age: timedelta, told: bool
) -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        box = host.add(NAME, SandboxStatus.FAILED)
        box.record = replace(box.record, created_at=NOW - age)
        bound = await binding(host, clock).bind(Deadline.after(BIND, clock))
        assert isinstance(bound, Bound) and bound.sandbox.id != box.record.id
        assert bool(bound.replaces) is told

    run_virtual(play)


@pytest.mark.parametrize("forgets", [0.3, 1.0, 2.5])
def test_what_was_just_ended_is_not_taken_for_alive_while_its_name_is_not_free(forgets: float) -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock, forgets)
        old = host.add(NAME, SandboxStatus.SUSPENDED).record
        bound = await binding(host, clock, resume_suspended=False).bind(Deadline.after(BIND, clock))
        assert isinstance(bound, Bound) and bound.made and bound.sandbox.id != old.id
        assert clock() < forgets + 5.0

    run_virtual(play)


@pytest.mark.parametrize("ghost", [1.0, 2.0])
def test_a_sandbox_that_answered_that_it_is_gone_is_not_believed_alive_for_some_seconds(ghost: float) -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock, ghost)
        old = host.add(NAME).record
        one = binding(host, clock)
        assert await one.bind(Deadline.after(BIND, clock)) == Bound(old)
        await host.terminate(old.id)
        one.lost(old.id, clock)
        bound = await one.bind(Deadline.after(BIND, clock))
        assert isinstance(bound, Bound) and bound.sandbox.id != old.id

    run_virtual(play)


def test_a_look_that_still_says_so_after_that_is_believed() -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        mine = host.add(NAME).record
        one = binding(host, clock)
        one.lost(mine.id, clock)
        assert await one.bind(Deadline.after(BIND, clock)) == Bound(mine)
        assert clock() > 2.0

    run_virtual(play)


def test_a_session_with_a_sandbox_does_not_wait_for_room() -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        host.no_room_until = 1000.0
        room = Capacity("env_1", clock)
        room.lacks("HTTP 429: quota")
        mine = host.add(NAME).record
        assert await binding(host, clock, capacity=room).bind(Deadline.after(BIND, clock)) == Bound(mine)
        assert clock() < 1.0 and host.asked == ["find"]

    run_virtual(play)


def test_without_room_the_service_is_asked_ever_more_rarely_and_the_item_gives_its_slot_up() -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        host.no_room_until = 1000.0
        freed: list[float] = []
        one = binding(host, clock, free_slot=lambda: freed.append(clock()))
        bound = await one.bind(Deadline.after(BIND, clock))
        assert isinstance(bound, Unbound) and bound.no_capacity and "quota" in bound.reason
        assert host.asked.count("create") <= 7
        assert freed and freed[0] < 1.0

    run_virtual(play)


def test_room_that_comes_in_time_is_taken() -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        host.no_room_until = 10.0
        bound = await binding(host, clock).bind(Deadline.after(BIND, clock))
        assert isinstance(bound, Bound) and bound.made
        assert clock() < 30.0

    run_virtual(play)


def test_a_quota_that_lets_nothing_wake_up_is_no_reason_to_set_a_sandbox_aside() -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = NamedSandboxes(clock)
        mine = host.add(NAME, SandboxStatus.SUSPENDED).record
        host.resumes = NoCapacity(403, "HTTP 403: limit of running sandboxes")
        bound = await binding(host, clock).bind(Deadline.after(BIND, clock))
        assert isinstance(bound, Unbound) and bound.no_capacity
        assert host.boxes[mine.id].record == mine
        assert host.asked.count("resume") <= 14

    run_virtual(play)
