"""Memory checkpoints and live copies: only where no worker lives in the source, and as clean as any other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from image.session.claim import IDENTITY_FILE
from shared.claims.worker_process import WORKER_NAMES
from shared.names import RaceSandbox, parse
from shared.ports import Absent, CommandOutput, Doubtful, ProcessState, SnapshotKind
from shared.races.errors import BadRace, SourceNotReady, SourceUnknown
from shared.races.report import RaceReport
from tests.shared.races.helpers import SETTINGS, SOURCE, asked, by_name, run
from tests.support.fake_host import FakeCall, FakeFault, FakeHost, Method

KINDS = (FakeFault.REFUSED, FakeFault.LOST_BEFORE, FakeFault.LOST_AFTER)


async def by_index(call: FakeCall) -> CommandOutput:
    await asyncio.sleep(1 + int(call.env["BRANCH_INDEX"]))
    return CommandOutput(0, "", "", timed_out=False)


class CheckpointHost(FakeHost):
    """A host in whose source certain processes live."""

    def __init__(self, processes: Sequence[ProcessState] | Absent | Doubtful = (), **more: Any) -> None:
        super().__init__(program=by_index, **more)
        self.processes = processes
        self.add(SOURCE).files[IDENTITY_FILE] = b"sesn_0a1B2c3D"

    async def process_names(self, sandbox_id: str) -> Sequence[ProcessState] | Absent | Doubtful:
        return self.processes


def a_race(host: FakeHost, kind: str, **fields: Any) -> RaceReport:
    return run(host, asked(**{"n": 4, "command": ["try"], "checkpoint": kind, **fields}))


def check_nothing_is_left(host: FakeHost) -> None:
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}


def test_a_memory_checkpoint_keeps_the_sizes_of_its_source() -> None:
    host = CheckpointHost()
    report = a_race(host, "memory")
    assert {branch.status for branch in report.branches} == {"ok"}
    assert host.kinds[report.checkpoint or ""] is SnapshotKind.MEMORY
    for spec in host.specs:
        assert (spec.snapshot_id, spec.image) == (report.checkpoint, None)
        assert (spec.cpus, spec.memory_mb, spec.disk_mb) == (None, None, None)
    check_nothing_is_left(host)


def test_live_copies_are_made_in_one_call_and_named_like_any_child() -> None:
    copied: list[Sequence[str]] = []

    class Counting(CheckpointHost):
        async def copy(self, sandbox_id: str, names: Sequence[str]) -> Any:
            copied.append(names)
            return await super().copy(sandbox_id, names)

    host = Counting()
    report = a_race(host, "live")
    assert {branch.status for branch in report.branches} == {"ok"}
    assert report.checkpoint is None
    (names,) = copied
    parsed = [parse(SETTINGS.prefix, name) for name in names]
    assert [name.index for name in parsed if isinstance(name, RaceSandbox)] == [0, 1, 2, 3]
    assert sorted(report.reaped) == sorted(names)
    assert host.specs == []
    check_nothing_is_left(host)


@pytest.mark.parametrize("kind", ["memory", "live"])
def test_no_child_says_that_it_is_its_session(kind: str) -> None:
    seen: list[bytes] = []

    async def program(call: FakeCall) -> CommandOutput:
        box = next(box for box in host.boxes.values() if box.record.name == call.sandbox)
        seen.append(box.files[IDENTITY_FILE])
        return CommandOutput(0, "", "", timed_out=False)

    host = CheckpointHost()
    host._program = program
    report = a_race(host, kind, n=2)
    assert seen == [f"race {report.race_id}\n".encode()] * 2
    assert host.boxes["id1"].files[IDENTITY_FILE] == b"sesn_0a1B2c3D"


@pytest.mark.parametrize("kind", ["memory", "live"])
def test_a_living_worker_is_not_cloned(kind: str) -> None:
    host = CheckpointHost([ProcessState(f"{WORKER_NAMES}1", running=True)])
    with pytest.raises(SourceNotReady, match="a worker lives in"):
        a_race(host, kind)
    check_nothing_is_left(host)
    assert a_race(host, "filesystem").winner == "b0"
    assert a_race(CheckpointHost([ProcessState(f"{WORKER_NAMES}1", running=False)]), kind).winner == "b0"


@pytest.mark.parametrize("kind", ["memory", "live"])
def test_a_source_of_which_nobody_knows_whether_a_worker_lives_in_it_is_not_cloned(kind: str) -> None:
    host = CheckpointHost(Doubtful("dropped"))
    with pytest.raises(SourceUnknown, match="it is not known whether a worker"):
        a_race(host, kind)
    check_nothing_is_left(host)


def test_live_copies_are_bounded_like_all_that_is_made_at_once() -> None:
    with pytest.raises(BadRace) as caught:
        a_race(CheckpointHost(), "live", max_parallel=3)
    assert caught.value.field == "checkpoint"


def test_a_copy_that_could_not_be_made_costs_its_branch_alone() -> None:
    host = CheckpointHost(quota=3)
    got = by_name(a_race(host, "live"))
    assert [got[f"b{i}"].status for i in range(4)] == ["ok", "ok", "failed", "failed"]
    assert got["b2"].reason == "the copy could not be made: the copy is failed: no_capacity"
    check_nothing_is_left(host)


def test_an_accepted_branch_ends_all_copies() -> None:
    host = CheckpointHost()
    report = a_race(host, "live", accept=1)
    assert [branch.status for branch in report.branches] == ["ok", "cancelled", "cancelled", "cancelled"]
    assert len(report.reaped) == 4
    check_nothing_is_left(host)


@pytest.mark.parametrize("fault", KINDS)
def test_a_copy_call_that_fails_leaves_nothing_that_has_a_name(fault: FakeFault) -> None:
    def meet(method: Method, what: str) -> FakeFault | None:
        return fault if method == "copy" else None

    host = CheckpointHost(meet=meet)
    with pytest.raises((SourceNotReady, SourceUnknown)):
        a_race(host, "live")
    check_nothing_is_left(host)


@pytest.mark.parametrize("kind", ["memory", "live"])
@pytest.mark.parametrize("tenths", range(1, 60, 4))
def test_a_caller_that_goes_away_leaves_nothing(kind: str, tenths: int) -> None:
    host = CheckpointHost(latency=0.4)
    with pytest.raises(asyncio.CancelledError):
        run(host, asked(n=4, command=["try"], checkpoint=kind), cancel_after=tenths / 10)
    check_nothing_is_left(host)


@pytest.mark.parametrize("way", [{"promote": "snapshot"}, {"promote": "none"}])
def test_a_copy_may_win_like_any_child(way: dict[str, Any]) -> None:
    host = CheckpointHost()
    report = a_race(host, "live", **way)
    kept = {report.promotion.snapshot_id} if report.promotion is not None else set()
    assert set(host.snapshots) == kept
    assert host.alive() == [SOURCE]
