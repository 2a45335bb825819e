"""The winner's work is kept where the caller wants it, and whatever becomes of that, nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from shared.names import PRISTINE, KeptSnapshotSandbox, RaceSandbox, parse
from shared.ports import CommandOutput, SandboxStatus
from shared.races import events
from shared.races.errors import BadRace, SourceUnknown
from shared.races.report import RaceReport
from shared.races.shell import SetAside, TookEffect
from shared.races.workspace_promotion import PromotionRefused, WorkspacePromotion
from shared.settings import Settings
from tests.shared.races.helpers import ENVIRON, SETTINGS, SOURCE, asked, run
from tests.support.fake_host import FakeCall, FakeFault, FakeHost, Method

KEEP = {"promote": "keep", "keep": {"name": "best", "timeout": 4_000}}
WAYS: tuple[dict[str, Any], ...] = ({"promote": "workspace"}, {"promote": "snapshot"}, KEEP)
BY_SCORE = {"type": "command", "command": ["score"], "in": "branch"}


async def by_index(call: FakeCall) -> CommandOutput:
    """Branch i runs i + 1 seconds and scores i."""
    index = call.env["BRANCH_INDEX"]
    if call.argv[0] == "try":
        await asyncio.sleep(int(index) + 1)
    return CommandOutput(0, index, "", timed_out=False)


Promote = Callable[..., Awaitable[WorkspacePromotion]]


@pytest.fixture
def promoted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the race asks of a workspace promotion, which succeeds after a second."""
    calls: list[dict[str, Any]] = []

    async def promote(**asked: Any) -> WorkspacePromotion:
        alive = [await asked["host"].find(asked[role].id) for role in ("base", "winner", "source")]
        calls.append({**asked, "statuses": [each.status for each in alive], "alive": asked["host"].alive()})
        await asyncio.sleep(1)
        return WorkspacePromotion(added=1, edited=2, deleted=3, conflicts=("decided",))

    monkeypatch.setattr("shared.races.leader.promote_workspace", promote)
    return calls


def instead(monkeypatch: pytest.MonkeyPatch, promote: Promote) -> None:
    monkeypatch.setattr("shared.races.leader.promote_workspace", promote)


def a_host(meet: Callable[[Method, str], FakeFault | None] = lambda method, what: None, **more: Any) -> FakeHost:
    host = FakeHost(program=by_index, meet=meet, **more)
    host.add(SOURCE)
    return host


def a_race(host: FakeHost, **fields: Any) -> RaceReport:
    return run(host, asked(**{"n": 4, "command": ["try"], "judge": BY_SCORE, **fields}))


def test_a_workspace_is_promoted_from_the_winner_beside_a_pristine_child(
    promoted: list[dict[str, Any]],
) -> None:
    host = a_host()
    report = a_race(host, promote="workspace", on_conflict="theirs")
    (call,) = promoted
    assert call["on_conflict"] == "theirs"
    assert call["source"].name == SOURCE
    base, winner = (parse(SETTINGS.prefix, call[role].name) for role in ("base", "winner"))
    assert isinstance(base, RaceSandbox)
    assert isinstance(winner, RaceSandbox)
    assert (base.index, winner.index) == (PRISTINE, 3)
    assert call["statuses"] == [SandboxStatus.RUNNING] * 3
    assert sorted(call["alive"]) == sorted([SOURCE, call["base"].name, call["winner"].name])
    assert report.promotion is not None
    assert report.promotion.model_dump(exclude_defaults=True) == {
        "kind": "workspace", "done": True, "conflicts": ("decided",), "added": 1, "changed": 2, "deleted": 3,
    }  # fmt: skip
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}
    assert report.leftovers == ()


def test_the_pristine_child_is_made_of_the_checkpoint_and_says_that_it_is_a_races(promoted: list[Any]) -> None:
    host = a_host()
    report = a_race(host, promote="workspace")
    (spec,) = [spec for spec in host.specs if spec.name == promoted[0]["base"].name]
    assert spec.snapshot_id == report.checkpoint
    box = host.boxes[promoted[0]["base"].id]
    assert b"race " in next(iter(box.files.values()))


@pytest.mark.parametrize("way", WAYS)
def test_losers_are_ended_as_soon_as_they_are_beaten(way: dict[str, Any], promoted: list[Any]) -> None:
    host = a_host()
    report = a_race(host, **way, max_parallel=1)
    assert report.winner == "b3"
    assert host.most_alive == 1 + (3 if way["promote"] == "workspace" else 2)  # the source, the best, one at work
    reaps = {span.branch: span.start for span in report.timeline if span.phase == "reap" and span.branch}
    began = {span.branch: span.start for span in report.timeline if span.phase == "run"}
    assert reaps["b0"] < began["b2"]
    assert list(reaps)[:3] == ["b0", "b1", "b2"]


def test_an_accepted_branch_is_promoted_at_once(promoted: list[Any]) -> None:
    host = a_host()
    report = a_race(host, promote="workspace", accept=1)
    assert report.winner == "b1"
    assert report.seconds < 6
    assert report.promotion is not None
    assert report.promotion.done
    assert host.alive() == [SOURCE]


def test_a_source_that_fell_asleep_is_woken_for_its_promotion(promoted: list[Any]) -> None:
    host = a_host()

    async def program(call: FakeCall) -> CommandOutput:
        source = host.boxes["id1"]
        source.record = replace(source.record, status=SandboxStatus.SUSPENDED)
        return CommandOutput(0, "1", "", timed_out=False)

    host._program = program
    report = a_race(host, promote="workspace")
    assert promoted[0]["source"].status is SandboxStatus.RUNNING
    assert report.promotion is not None
    assert report.promotion.done


def test_a_winner_may_be_kept_as_a_snapshot() -> None:
    host = a_host()
    report = a_race(host, promote="snapshot")
    assert report.promotion is not None
    assert report.promotion.done
    assert list(host.snapshots) == [report.promotion.snapshot_id]
    assert report.promotion.snapshot_id != report.checkpoint
    box = host.boxes[host._taken_of[report.promotion.snapshot_id or ""]]
    assert isinstance(parse(SETTINGS.prefix, box.spec.name), RaceSandbox)
    # The reconciler deletes snapshots of what has a race's name.
    kept = parse(SETTINGS.prefix, box.record.name)
    assert isinstance(kept, KeptSnapshotSandbox)
    assert kept.race_id == report.race_id
    assert host.alive() == [SOURCE]
    assert report.promotion.snapshot_id not in report.reaped


def test_a_winner_may_live_on_under_a_name_and_time_out_of_the_callers() -> None:
    host = a_host()
    report = a_race(host, **KEEP)
    assert sorted(host.alive()) == [SOURCE, "keep-best"]
    assert report.promotion is not None
    assert (report.promotion.done, report.promotion.sandbox) == (True, "keep-best")
    kept = host.boxes[report.promotion.sandbox_id or ""]
    assert kept.spec.timeout_seconds is not None
    assert kept.spec.timeout_seconds >= 4_000
    assert kept.spec.name not in report.reaped
    assert report.leftovers == ()
    assert host.snapshots == {}


def test_a_name_that_somebody_has_is_refused_before_anything_is_made() -> None:
    host = a_host()
    host.add("keep-best")
    with pytest.raises(BadRace) as caught:
        a_race(host, **KEEP)
    assert caught.value.field == "keep.name"
    assert host.specs == []


def test_a_name_of_which_nobody_knows_is_no_free_one() -> None:
    def meet(method: Method, what: str) -> FakeFault | None:
        return FakeFault.LOST_BEFORE if (method, what) == ("find", "keep-best") else None

    with pytest.raises(SourceUnknown, match="the name to keep"):
        a_race(a_host(meet), **KEEP)


def test_a_name_that_is_taken_during_the_race_costs_the_sandbox_and_not_the_report() -> None:
    host = a_host()

    async def program(call: FakeCall) -> CommandOutput:
        if "keep-best" not in host.alive():
            host.add("keep-best")
        return CommandOutput(0, "1", "", timed_out=False)

    host._program = program
    report = a_race(host, **KEEP)
    assert report.winner == "b0"
    assert report.promotion is not None
    assert (report.promotion.done, report.promotion.reason) == (
        False,
        "the name was taken during the race; it was ended",
    )
    assert sorted(host.alive()) == [SOURCE, "keep-best"]


@pytest.mark.parametrize("fault", [FakeFault.LOST_AFTER, FakeFault.LOST_BEFORE])
def test_a_rename_whose_answer_is_lost_is_looked_up(fault: FakeFault) -> None:
    met: list[str] = []

    def meet(method: Method, what: str) -> FakeFault | None:
        if method == "rename" and not met:
            met.append(what)
            return fault
        return None

    host = a_host(meet)
    report = a_race(host, **KEEP)
    assert report.promotion is not None
    assert report.promotion.done
    assert sorted(host.alive()) == [SOURCE, "keep-best"]


@pytest.mark.parametrize("way", [KEEP, {"promote": "snapshot"}])
@pytest.mark.parametrize("fault", [FakeFault.REFUSED, FakeFault.LOST_BEFORE])
def test_a_sandbox_that_cannot_be_renamed_is_ended(fault: FakeFault, way: dict[str, Any]) -> None:
    host = a_host(lambda method, what: fault if method == "rename" else None)
    report = a_race(host, **way)
    assert host.snapshots == {}
    assert report.winner == "b3"
    assert report.promotion is not None
    assert not report.promotion.done
    assert "renamed" in (report.promotion.reason or "")
    assert host.alive() == [SOURCE]


def test_a_snapshot_that_cannot_be_taken_costs_the_promotion_alone() -> None:
    host = a_host(lambda method, what: FakeFault.REFUSED if method == "snapshot" and what != "id1" else None)
    report = a_race(host, promote="snapshot")
    assert report.winner == "b3"
    assert report.promotion is not None
    assert (report.promotion.done, report.promotion.snapshot_id) == (False, None)
    assert "cannot be checkpointed" in (report.promotion.reason or "")
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}


async def refused(**asked: Any) -> WorkspacePromotion:
    raise PromotionRefused("two files changed in the source", ("a.txt", "b/c.txt"))


async def broken(**asked: Any) -> WorkspacePromotion:
    raise ZeroDivisionError


async def endless(**asked: Any) -> WorkspacePromotion:
    await asyncio.sleep(1e6)
    raise AssertionError("it was not ended")


async def partial(**asked: Any) -> WorkspacePromotion:
    return WorkspacePromotion(edited=1, overtaken=("a",), failed=("b: no space",))


@pytest.mark.parametrize(
    ("promote", "reason"),
    [
        (refused, "two files changed in the source"),
        (broken, "failed (ZeroDivisionError)"),
        (endless, "did not end within 60 s; a part of it may have been done"),
        (partial, "only a part could be promoted: see overtaken and failed"),
    ],
)
def test_a_promotion_that_fails_leaves_the_winner_and_the_report(
    promote: Promote, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead(monkeypatch, promote)
    host = a_host()
    report = a_race(host, promote="workspace")
    assert report.winner == "b3"
    assert report.promotion is not None
    assert (report.promotion.done, report.promotion.reason) == (False, reason)
    assert report.promotion.conflicts == (("a.txt", "b/c.txt") if promote is refused else ())
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}


def test_a_source_that_is_gone_by_then_is_said(promoted: list[Any]) -> None:
    host = a_host()

    async def program(call: FakeCall) -> CommandOutput:
        await host.terminate("id1")
        return CommandOutput(0, "1", "", timed_out=False)

    host._program = program
    report = a_race(host, promote="workspace")
    assert promoted == []
    assert report.winner == "b0"
    assert report.promotion is not None
    assert not report.promotion.done
    assert host.alive() == []


def test_without_a_winner_there_is_nothing_to_promote(promoted: list[Any]) -> None:
    host = a_host()
    report = a_race(host, promote="workspace", min_score=100)
    assert (report.winner, report.promotion, promoted) == (None, None, [])
    assert host.alive() == [SOURCE]


def test_a_winner_is_promoted_although_the_deadline_passed(promoted: list[Any]) -> None:
    host = a_host()
    report = a_race(host, promote="workspace", deadline=2.7)
    assert report.deadline_passed
    assert report.winner == "b1"
    assert report.promotion is not None
    assert report.promotion.done
    assert host.alive() == [SOURCE]


@pytest.mark.parametrize("quota", [2, 3])
@pytest.mark.parametrize("way", WAYS)
def test_with_little_room_a_held_winner_stands_in_nobodys_way_for_ever(
    way: dict[str, Any], quota: int, promoted: list[Any]
) -> None:
    host = a_host(quota=quota)
    report = a_race(host, **way, n=8)
    assert not report.deadline_passed
    assert report.winner is not None
    kept = ["keep-best"] if way is KEEP else []
    assert sorted(host.alive()) == [SOURCE, *kept]
    if quota == 3:  # the source, the best so far, and one at work
        assert [branch.status for branch in report.branches] == ["ok"] * 8
        assert report.promotion is not None
        assert report.promotion.done == (way["promote"] != "workspace" or quota > 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tenths", range(20, 82, 3))
def test_a_caller_that_goes_away_leaves_nothing_of_a_promotion(
    way: dict[str, Any], tenths: int, promoted: list[Any]
) -> None:
    host = a_host(latency=0.4)
    request = asked(n=4, command=["try"], judge=BY_SCORE, **way)
    with pytest.raises(asyncio.CancelledError):
        run(host, request, cancel_after=tenths / 10)
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}


def test_a_judges_files_are_taken_out_of_what_is_promoted(promoted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def set_aside(self: object, sandbox_id: str, paths: Any) -> SetAside:
        done.append(f"aside {' '.join(paths)}")
        return SetAside("/tmp/aside")

    async def put_back(self: object, sandbox_id: str, paths: Any, aside: SetAside) -> TookEffect:
        done.append(f"back {' '.join(paths)} {aside.folder}")
        return TookEffect()

    monkeypatch.setattr("shared.races.shell.SandboxShell.set_aside", set_aside)
    monkeypatch.setattr("shared.races.shell.SandboxShell.put_back", put_back)
    judge = {**BY_SCORE, "files": {"score.py": "", "lib/x.py": ""}}
    a_race(a_host(), promote="none", judge=judge, n=1)
    assert done == []
    a_race(a_host(), promote="workspace", judge=judge, n=1)
    assert done == ["aside score.py lib/x.py", "back score.py lib/x.py /tmp/aside"]


# ------------------------------------------------------------------------------------------- events, budgets, sources


def test_each_event_comes_in_its_time(promoted: list[Any]) -> None:
    told: list[events.Event] = []
    host = a_host()
    request = asked(n=4, command=["try"], judge=BY_SCORE, promote="workspace", accept=1)
    report = run(host, request, on_event=told.append)
    kinds = [event.event for event in told]
    assert (kinds[0], kinds[-1]) == ("race", "report")
    assert [kinds.count(kind) for kind in ("race", "branch", "promotion", "report", "error")] == [1, 4, 1, 1, 0]
    assert told[-1] == events.Reported(report=report)
    times = [event.at for event in told if not isinstance(event, events.Reported | events.RaceFailed)]
    assert times == sorted(times)
    decided = {event.report.name: event.at for event in told if isinstance(event, events.BranchDecided)}
    assert decided["b0"] < decided["b1"] <= decided["b2"]
    assert all(events.from_line(events.to_line(event)) == event for event in told)


def test_the_last_line_of_a_running_branch_is_told_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["", "compiling", "compiling", "x" * 300, "x" * 300])

    async def last_line(self: object, sandbox_id: str, mark: str) -> str:
        return next(lines, "the end")

    monkeypatch.setattr("shared.races.shell.SandboxShell.last_line", last_line)
    told: list[events.Event] = []
    host = a_host()
    request = asked(branches=[{"name": "slow", "command": ["try"]}])

    async def program(call: FakeCall) -> CommandOutput:
        await asyncio.sleep(5.5)
        return CommandOutput(0, "", "", timed_out=False)

    host._program = program
    run(host, request, on_event=told.append)
    assert [event.line for event in told if isinstance(event, events.OutputLine)] == ["compiling", "x" * 200]
    assert list(lines) == []


def test_nobody_looks_at_the_output_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    async def last_line(self: object, sandbox_id: str, mark: str) -> str:
        raise AssertionError("nobody asked")

    monkeypatch.setattr("shared.races.shell.SandboxShell.last_line", last_line)
    assert a_race(a_host()).winner == "b3"


def test_a_reports_output_is_shared_evenly_among_the_branches() -> None:
    settings = Settings.from_environ({**ENVIRON, "RACE_OUTPUT_BYTES": "400"})

    async def program(call: FakeCall) -> CommandOutput:
        return CommandOutput(0, "grün" * 1_000 + "\ud800", "err" * 1_000, timed_out=False)

    host = FakeHost(program=program)
    host.add(SOURCE)
    report = run(host, asked(n=4, command=["try"]), settings=settings)
    for branch in report.branches:
        assert 35 <= len(branch.stdout_tail.encode()) <= 40
        assert branch.stderr_tail == ("err" * 14)[-40:]
    assert RaceReport.model_validate_json(report.model_dump_json()) == report


def test_the_speed_up_is_that_over_one_after_the_other() -> None:
    host = FakeHost(program=by_index, latency=0.01)
    host.add(SOURCE)
    report = a_race(host, judge={"type": "exit_code"}, n=8)
    assert report.speedup == pytest.approx(sum(range(1, 9)) / 8, rel=0.1)
    assert a_race(a_host(), dry_run=True).speedup is None


def test_a_sandbox_is_a_source_by_its_id_or_its_name() -> None:
    for said in ("id1", SOURCE):
        host = a_host()
        report = a_race(host, source={"sandbox_id": said})
        assert report.winner == "b3"
        assert host.alive() == [SOURCE]


@pytest.mark.parametrize("server", ["id1", "the-server"])
@pytest.mark.parametrize("said", ["id1", "the-server"])
def test_the_servers_own_sandbox_is_no_source(server: str, said: str) -> None:
    host = FakeHost()
    host.add("the-server")
    settings = Settings.from_environ({**ENVIRON, "SERVER_SANDBOX": server})
    with pytest.raises(BadRace) as caught:
        run(host, asked(n=1, command=["try"], source={"sandbox_id": said}), settings=settings)
    assert caught.value.field == "source.sandbox_id"
    assert host.specs == []
    assert host.snapshots == {}
