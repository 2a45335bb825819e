"""One pass of the reconciler when services are slow or there is more to do than a pass may do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared import names
from shared.ports import (
    Absent,
    Doubtful,
    ItemState,
    ListedItem,
    Listing,
    OpenCalls,
    SandboxRecord,
    SandboxStatus,
    SessionRecord,
    SessionStatus,
)
from shared.reconcile.reconciler import Reconciler
from shared.reports import Act, ReconcileReport
from shared.settings import Settings

NOW = datetime(2026, 10, 20, 9, 0, tzinfo=UTC)
ENVIRON = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
    "RECONCILE_SECONDS": "0.6",
    "END_GRACE_SECONDS": "10",
}
TAG = names.environment_tag("env_1")


class Services:
    """Both services: what they list, and which of their calls never answer. What was done to sandboxes is in `done`."""

    def __init__(
        self, boxes: Sequence[SandboxRecord], items: Sequence[ListedItem] = (), hangs: Sequence[str] = ()
    ) -> None:
        self._boxes = {box.id: box for box in boxes}
        self._items = items
        self._hangs = hangs
        self.done: list[tuple[str, str]] = []

    async def _reach(self, method: str) -> None:
        await asyncio.sleep(3600 if method in self._hangs else 0)

    async def list_sandboxes(self) -> Listing[SandboxRecord]:
        await self._reach("list_sandboxes")
        return Listing(list(self._boxes.values()), complete=True)

    async def list_snapshots(self) -> Listing[Any] | Doubtful:
        await self._reach("list_snapshots")
        return Doubtful("HTTP 500") if "list_snapshots fails" in self._hangs else Listing((), complete=True)

    async def list_items(self, pages: int, back_to: datetime | None = None) -> Listing[ListedItem]:
        return Listing(self._items, complete=True)

    async def session(self, session_id: str) -> SessionRecord:
        await self._reach(f"session {session_id}")
        return SessionRecord(session_id, SessionStatus.IDLE, False, NOW - timedelta(minutes=5))

    async def open_calls(self, session_id: str) -> OpenCalls:
        return OpenCalls()

    async def find(self, name_or_id: str) -> SandboxRecord | Absent:
        for box in self._boxes.values():
            if name_or_id in (box.id, box.name):
                return box
        return Absent()

    async def process_names(self, sandbox_id: str) -> Sequence[Any]:
        return ()

    def __getattr__(self, method: str) -> Any:
        async def act(target: str, *_: object) -> None:
            await self._reach(f"{method} {target}")
            self.done.append((method, target))

        return act


def box(number: int, status: SandboxStatus = SandboxStatus.RUNNING, name: str = "") -> SandboxRecord:
    name = name or names.sandbox_name("hands", "env_1", f"sesn_{number}")
    return SandboxRecord(f"box{number}", name, status, NOW - timedelta(hours=1), timeout_seconds=3600)


def active(number: int) -> ListedItem:
    beat = NOW - timedelta(seconds=10)
    return ListedItem(f"work{number}", "session", f"sesn_{number}", ItemState.ACTIVE, beat, beat, beat)


def marked(number: int) -> SandboxRecord:
    return box(number, name=f"gone-{names.to_base36(int(NOW.timestamp()) - 99).rjust(7, '0')}-{TAG}-s{number}zz")


def reconciled(services: Services, **environ: str) -> ReconcileReport:
    settings = Settings.from_environ(ENVIRON | environ)
    host: Any = services
    work = Reconciler(settings, settings.environments["env_1"], host, host, now=lambda: NOW)
    return asyncio.run(work.reconcile())


def acts(report: ReconcileReport) -> list[tuple[Act, str]]:
    return [(action.act, action.target) for action in report.actions if action.done]


@pytest.mark.parametrize("hangs", ["list_snapshots", "list_sandboxes", "session sesn_2"])
def test_i1_a_sleeper_with_work_is_resumed_whatever_other_call_never_answers(hangs: str) -> None:
    sleeper = box(1, SandboxStatus.SUSPENDED)
    services = Services([sleeper, box(2)], [active(1)], hangs=[hangs])
    report = reconciled(services)
    assert acts(report)[0] == (Act.RESUME, sleeper.name)
    assert services.done[0] == ("resume", "box1")
    assert report.alarms
    assert (report.sandboxes is None) == (hangs == "list_sandboxes")


def test_a_snapshot_list_that_fails_is_told() -> None:
    report = reconciled(Services([box(1)], hangs=["list_snapshots fails"]))
    assert any("snapshots could not be listed: HTTP 500" in alarm for alarm in report.alarms)


def test_a_repair_that_hangs_is_named_and_keeps_no_other_one_waiting() -> None:
    services = Services([marked(1), marked(2), marked(3)], hangs=["terminate box2"])
    report = reconciled(services)
    assert sorted(target for _, target in acts(report)) == sorted(str(each.name) for each in (marked(1), marked(3)))
    (failed,) = [action for action in report.actions if not action.done]
    assert (failed.target, failed.problem) == (marked(2).name, "no answer within 0.15 s")
    assert report.undone == 0 and report.seconds < 0.6, "each repair has a few seconds of its own"


@pytest.mark.parametrize(("sandboxes", "ended"), [(5, 3), (14, 3), (15, 3), (40, 8)])
def test_i5_at_most_three_or_a_fifth_of_the_sandboxes_end_in_one_pass(sandboxes: int, ended: int) -> None:
    report = reconciled(Services([marked(number) for number in range(sandboxes)]), RECONCILE_SECONDS="40")
    assert [act for act, _ in acts(report)] == [Act.END_MARKED] * ended
    assert report.undone == sandboxes - ended
    assert any(f"{sandboxes - ended} repair(s) wait" in alarm for alarm in report.alarms)


def test_i4_a_sandbox_that_failed_is_ended() -> None:
    services = Services([box(1, SandboxStatus.FAILED)], [active(1)])
    assert [act for act, _ in acts(reconciled(services))] == [Act.END_FAILED]
    assert services.done == [("terminate", "box1")]


def test_i7_touches_are_staggered_and_bounded() -> None:
    boxes, items = [box(number) for number in range(600)], [active(number) for number in range(600)]
    due = [act for act, _ in acts(reconciled(Services(boxes, items), RECONCILE_SECONDS="40", RECONCILE_TOUCHES="500"))]
    assert 20 < due.count(Act.TOUCH) < 200, "each in turn: three times in an hour, seen by ticks a minute apart"
    capped = reconciled(Services(boxes, items), RECONCILE_SECONDS="40", RECONCILE_TOUCHES="7")
    assert [act for act, _ in acts(capped)] == [Act.TOUCH] * 7
    assert capped.undone == due.count(Act.TOUCH) - 7
