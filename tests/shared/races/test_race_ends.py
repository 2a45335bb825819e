"""A race whose result is known returns at once; what it made ends behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

from shared import names
from shared.ports import Absent, CommandOutput, CreateOutcome, Doubtful, Refused, SandboxSpec, Snapshot, SnapshotKind
from shared.races.race import run_race
from shared.races.race_names import DEAD_MAN_SECONDS
from shared.races.report import RaceReport
from tests.shared.races.helpers import ENVIRONMENT, SETTINGS, SOURCE, asked
from tests.support.fake_host import FakeCall, FakeHost
from tests.support.virtual_time import run_virtual

SLOW: Final = 20.0
START: Final = 1_800_000_000.0


class Slow(FakeHost):
    """The calls named in `slow` take SLOW seconds: creates and ends of the branch with index 3, and of snapshots."""

    def __init__(self, slow: set[str], **kwargs: Any) -> None:
        super().__init__(latency=0.01, **kwargs)
        self.slow = slow

    def _is_slow(self, method: str, name: str | None) -> bool:
        parsed = names.parse(SETTINGS.prefix, name)
        return method in self.slow and isinstance(parsed, names.RaceSandbox) and parsed.index == 3

    async def create(self, spec: SandboxSpec) -> CreateOutcome:
        await asyncio.sleep(SLOW if self._is_slow("create", spec.name) else 0)
        return await super().create(spec)

    async def terminate(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        await asyncio.sleep(SLOW if self._is_slow("terminate", self.boxes[sandbox_id].record.name) else 0)
        return await super().terminate(sandbox_id)

    async def delete_snapshot(self, snapshot_id: str) -> Absent | Refused | Doubtful | None:
        await asyncio.sleep(SLOW if "delete_snapshot" in self.slow else 0)
        return await super().delete_snapshot(snapshot_id)

    async def snapshot(
        self, sandbox_id: str, kind: SnapshotKind = SnapshotKind.FILESYSTEM
    ) -> Snapshot | Absent | Refused | Doubtful:
        await asyncio.sleep(SLOW if "snapshot" in self.slow else 0)
        return await super().snapshot(sandbox_id, kind)


async def quick_first(call: FakeCall) -> CommandOutput:
    await asyncio.sleep(1.0 if call.env["BRANCH_INDEX"] == "0" else 300.0)
    return CommandOutput(0, "", "", timed_out=False)


def raced(
    host: FakeHost,
    look: Callable[[], None] = lambda: None,
    cancel_after: float | None = None,
    end_after: float | None = None,
    **fields: Any,
) -> tuple[RaceReport | None, float]:
    """The report (None where its caller hung up after `cancel_after`; after `end_after` it is asked to end), and the
    seconds until it was there. All ends are over then."""
    host.add(SOURCE)

    async def main(clock: Callable[[], float]) -> tuple[RaceReport | None, float]:
        ends: set[asyncio.Task[None]] = set()

        def in_background(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            ends.add(task := asyncio.create_task(work))
            return task

        asked_to_end = asyncio.Event()
        racing = asyncio.create_task(
            run_race(
                asked(**{"n": 4, "command": ["try"], **fields}),
                host=host,
                settings=SETTINGS,
                environment=ENVIRONMENT,
                clock=clock,
                now=lambda: START + clock(),
                in_background=in_background,
                cancelled=asked_to_end,
            )
        )
        if cancel_after is not None:
            await asyncio.sleep(cancel_after)
            racing.cancel()
        if end_after is not None:
            await asyncio.sleep(end_after)
            asked_to_end.set()
        await asyncio.wait({racing})
        took = clock() - (cancel_after or end_after or 0.0)
        look()
        await asyncio.wait(ends)
        return (None if racing.cancelled() else racing.result()), took

    return run_virtual(main)


@pytest.mark.parametrize("slow", [{"create"}, {"terminate"}, {"delete_snapshot"}, {"create", "delete_snapshot"}])
def test_an_accepted_branch_ends_the_race_at_once(slow: set[str]) -> None:
    host = Slow(slow, program=quick_first)
    report, took = raced(host, accept=1)
    assert report is not None and report.winner == "b0"
    assert took < 1.0 + 0.3 + 0.1
    assert report.ending and report.leftovers == ()
    assert (host.alive(), host.snapshots) == ([SOURCE], {})


@pytest.mark.parametrize("slow", [{"create"}, {"terminate"}, {"snapshot"}, {"create", "terminate", "delete_snapshot"}])
def test_a_deadline_is_one(slow: set[str]) -> None:
    host = Slow(slow, program=quick_first)
    report, took = raced(host, deadline=3.0, min_score=2)
    assert report is not None and report.deadline_passed
    assert 3.0 <= took < 4.0
    assert (host.alive(), host.snapshots) == ([SOURCE], {})


@pytest.mark.parametrize("slow", [{"create"}, {"terminate"}, {"snapshot"}, {"create", "terminate", "delete_snapshot"}])
def test_a_race_that_is_asked_to_end_reports_at_once_what_finished_and_promotes_nothing(slow: set[str]) -> None:
    host = Slow(slow, program=quick_first)
    report, took = raced(host, end_after=3.0, promote="snapshot")
    assert report is not None and report.cancelled and not report.deadline_passed
    assert (report.winner, report.promotion) == (None, None)
    begun = "snapshot" not in slow
    assert [branch.status for branch in report.branches][:2] == (["ok", "cancelled"] if begun else ["not_started"] * 2)
    assert report.branches[1].reason == "the race was cancelled"
    assert took < 1.0
    assert (host.alive(), host.snapshots) == ([SOURCE], {})


@pytest.mark.parametrize("slow", [{"create"}, {"terminate"}, {"snapshot"}])
def test_a_hang_up_ends_the_race_at_once(slow: set[str]) -> None:
    host = Slow(slow, program=quick_first)
    report, took = raced(host, cancel_after=2.0)
    assert report is None
    assert took < 0.3
    assert (host.alive(), host.snapshots) == ([SOURCE], {})


def test_the_promotion_begins_when_the_winner_is_known() -> None:
    host = Slow({"create", "terminate"}, program=quick_first)
    report, took = raced(host, accept=1, promote="keep", keep={"name": "mine"})
    assert report is not None and report.promotion is not None and report.promotion.done
    assert took < 1.5
    assert sorted(host.alive()) == sorted([SOURCE, "keep-mine"])


def test_a_snapshot_is_deleted_after_what_is_still_made_of_it() -> None:
    """Else a create that is under way would fail, or worse."""
    host = Slow({"create"}, program=quick_first)
    at_the_report: list[int] = []
    raced(host, lambda: at_the_report.append(len(host.snapshots)), accept=1)
    assert at_the_report == [1]
    assert host.snapshots == {}


def test_without_anybody_for_its_ends_a_race_waits_for_them() -> None:
    host = Slow({"terminate"}, program=quick_first)
    host.add(SOURCE)

    async def main(clock: Callable[[], float]) -> RaceReport:
        return await run_race(
            asked(n=4, command=["try"], accept=1), host=host, settings=SETTINGS, environment=ENVIRONMENT, clock=clock
        )

    report = run_virtual(main)
    assert report.ending == () and len(report.reaped) == 5
    assert (host.alive(), host.snapshots) == ([SOURCE], {})


def test_dead_man_times_are_short_and_renewed_while_the_race_lives() -> None:
    host = FakeHost(program=quick_first)
    left: list[float] = []
    born: set[str] = set()

    async def looking() -> None:
        for _ in range(50):
            await asyncio.sleep(5.0)
            here = asyncio.get_running_loop().time()
            for name in host.alive():
                parsed = names.parse(SETTINGS.prefix, name)
                if isinstance(parsed, names.RaceSandbox):
                    born.add(name)
                    left.append(parsed.dead_man - START - here)

    async def main(clock: Callable[[], float]) -> RaceReport:
        host.add(SOURCE)
        watching = asyncio.create_task(looking())
        try:
            return await run_race(
                asked(n=2, command=["try"], deadline=600.0),
                host=host,
                settings=SETTINGS,
                environment=ENVIRONMENT,
                clock=clock,
                now=lambda: START + clock(),
            )
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    report = run_virtual(main)
    assert report.winner == "b0" and host.alive() == [SOURCE]
    assert min(left) > DEAD_MAN_SECONDS / 2
    assert max(left) <= DEAD_MAN_SECONDS + 1
    assert len(born) > 3
    assert len(report.reaped) == 3 and report.leftovers == ()


def test_a_kept_name_is_not_renewed_away() -> None:
    host = FakeHost(program=quick_first, latency=20.0)
    report, _ = raced(host, n=1, promote="keep", keep={"name": "mine"}, deadline=500.0)
    assert report is not None and report.promotion is not None and report.promotion.done
    assert "keep-mine" in host.alive()
