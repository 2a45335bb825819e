"""What a race does, on a host in memory whose programs are the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.session.claim import IDENTITY_FILE
from shared.egress import EgressPolicy
from shared.names import RaceSandbox, parse
from shared.ports import CommandOutput, SandboxStatus
from shared.races import errors
from shared.races.race_names import DEAD_MAN_SECONDS
from shared.races.report import BranchReport
from shared.races.scores import winner
from tests.shared.races.helpers import ENVIRONMENT, SETTINGS, SOURCE, asked, by_name, run
from tests.support.fake_host import FakeCall, FakeHost

Program = Callable[[FakeCall], Awaitable[CommandOutput]]


def scripted(**seconds_codes_scores: tuple[float, int, str]) -> Program:
    """Each branch by name: how long it runs, its exit code, and what the score command prints in its sandbox."""

    async def program(call: FakeCall) -> CommandOutput:
        seconds, code, score = seconds_codes_scores.get(call.env.get("BRANCH_NAME", ""), (0, 0, "1"))
        if call.argv[0] == "score":
            return CommandOutput(0, f"tried\nscore={score}", "", timed_out=False)
        await asyncio.sleep(seconds)
        return CommandOutput(code, f"out of {call.env.get('BRANCH_NAME')}", "said", timed_out=False)

    return program


def host_with_source(program: Program | None = None, latency: float = 0.05, quota: int | None = None) -> FakeHost:
    host = FakeHost(program=program or scripted(), latency=latency, quota=quota)
    host.add(SOURCE)
    return host


BY_SCORE = {"type": "command", "command": ["score"], "in": "branch"}


def branches(*names: str) -> list[dict[str, object]]:
    return [{"name": name, "command": ["try", name]} for name in names]


def test_the_best_score_wins_and_nothing_is_left() -> None:
    host = host_with_source(program=scripted(a=(1, 0, "0.2"), b=(2, 0, "0.9"), c=(3, 0, "0.5")))
    report = run(host, asked(branches=branches("a", "b", "c"), judge=BY_SCORE))
    assert report.winner == "b"
    assert [branch.status for branch in report.branches] == ["ok", "ok", "ok"]
    assert [branch.score for branch in report.branches] == [0.2, 0.9, 0.5]
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}
    assert len(report.reaped) == 4
    assert report.leftovers == ()
    assert report.checkpoint in report.reaped


def test_branches_run_side_by_side() -> None:
    host = host_with_source(program=scripted(**{f"b{i}": (10, 0, "1") for i in range(8)}))
    report = run(host, asked(n=8, command=["try", "{i}"]))
    assert report.seconds < 12
    assert sorted(call.argv for call in host.calls) == [("try", str(i)) for i in range(8)]


def test_max_parallel_bounds_the_sandboxes_that_exist_at_once() -> None:
    host = host_with_source(program=scripted(**{f"b{i}": (10, 0, "1") for i in range(7)}))
    report = run(host, asked(n=7, command=["try"], max_parallel=3))
    assert host.most_alive == 1 + 3
    assert {branch.status for branch in report.branches} == {"ok"}


def test_lower_is_better_when_asked() -> None:
    host = host_with_source(program=scripted(a=(1, 0, "12"), b=(1, 0, "-3"), c=(1, 0, "4")))
    report = run(host, asked(branches=branches("a", "b", "c"), judge=BY_SCORE, higher_is_better=False))
    assert report.winner == "b"


def test_an_accepted_branch_ends_the_race_early() -> None:
    host = host_with_source(program=scripted(slow=(500, 0, "1"), fast=(2, 0, "0.8"), poor=(1, 0, "0.1")))
    report = run(
        host, asked(branches=[*branches("slow", "fast", "poor")], judge=BY_SCORE, accept=0.8, branch_timeout=550)
    )
    assert report.winner == "fast"
    assert report.seconds < 5
    got = by_name(report)
    assert (got["slow"].status, got["slow"].reason) == ("cancelled", "fast was accepted")
    assert got["poor"].status == "ok"
    assert host.alive() == [SOURCE]


def test_what_waits_for_its_turn_when_the_race_ends_was_not_started() -> None:
    host = host_with_source(program=scripted(a=(1, 0, "1"), b=(1, 0, "1"), c=(1, 0, "1")))
    report = run(host, asked(branches=branches("a", "b", "c"), accept=1, max_parallel=1))
    assert [branch.status for branch in report.branches] == ["ok", "not_started", "not_started"]
    assert len(host.calls) == 1


def test_a_deadline_reports_what_finished() -> None:
    host = host_with_source(program=scripted(a=(1, 0, "1"), b=(500, 0, "1"), c=(1, 0, "1")))
    report = run(host, asked(branches=branches("a", "b", "c"), deadline=5, max_parallel=1))
    assert report.deadline_passed
    assert report.winner == "a"
    assert [branch.status for branch in report.branches] == ["ok", "cancelled", "not_started"]
    assert report.branches[1].reason == "the race's deadline passed"
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}


def test_a_race_ends_when_its_sandbox_seconds_are_spent_and_says_what_it_used() -> None:
    host = host_with_source(program=scripted(a=(1, 0, "1"), b=(500, 0, "1"), c=(500, 0, "1")))
    report = run(host, asked(branches=branches("a", "b", "c"), max_sandbox_seconds=20))
    assert report.budget_spent and not report.deadline_passed
    assert report.winner == "a"
    assert report.branches[1].reason == "its max_sandbox_seconds are spent"
    assert 20 <= report.sandbox_seconds < 20 + 3 * 1.0 + 3
    assert report.seconds < 15
    assert host.alive() == [SOURCE]


def test_a_race_that_keeps_within_its_sandbox_seconds_is_not_touched() -> None:
    host = host_with_source(program=scripted(a=(4, 0, "1"), b=(6, 0, "1")))
    report = run(host, asked(branches=branches("a", "b"), max_sandbox_seconds=20))
    assert not report.budget_spent and {branch.status for branch in report.branches} == {"ok"}
    assert 10 <= report.sandbox_seconds < 12


def test_a_deadline_may_pass_before_there_is_a_checkpoint() -> None:
    host = host_with_source(latency=3.0)
    report = run(host, asked(n=2, command=["try"], deadline=4))
    assert report.deadline_passed
    assert {branch.status for branch in report.branches} == {"not_started"}
    assert host.snapshots == {}


def test_a_branch_has_its_own_timeout() -> None:
    host = host_with_source(program=scripted(a=(20, 0, "1"), b=(20, 0, "1")))
    request = asked(branches=[{**branches("a")[0], "timeout": 30}, *branches("b")], branch_timeout=10)
    got = by_name(run(host, request))
    assert (got["a"].status, got["b"].status) == ("ok", "timed_out")
    assert got["b"].score is None
    assert got["b"].reason == "did not end within 10 s"


def test_a_failing_branch_is_a_result() -> None:
    host = host_with_source(program=scripted(a=(1, 3, "9"), b=(1, 0, "1")))
    report = run(host, asked(branches=branches("a", "b")))
    got = by_name(report)
    assert (got["a"].status, got["a"].score, got["a"].exit_code) == ("failed", 0.0, 3)
    assert got["a"].reason == "ended with exit code 3"
    assert (got["a"].stdout_tail, got["a"].stderr_tail) == ("out of a", "said")
    assert report.winner == "b"


def test_no_acceptable_branch_no_winner() -> None:
    host = host_with_source(program=scripted(a=(1, 0, "0.1"), b=(1, 2, "1"), c=(1, 0, "nan"), d=(1, 0, "none")))
    report = run(host, asked(branches=branches("a", "b", "c", "d"), judge=BY_SCORE, min_score=0.5))
    assert report.winner is None
    got = by_name(report)
    assert {branch.status for branch in report.branches} == {"failed"}
    assert got["a"].score == 0.1
    assert got["a"].reason == "score 0.1 does not reach min_score 0.5"
    assert got["c"].reason == "judge: the score is not a finite number"
    assert got["d"].reason == "judge: what was found is not a number"


def test_a_score_command_that_fails_is_the_branchs_failure() -> None:
    async def program(call: FakeCall) -> CommandOutput:
        if call.argv[0] == "score" and call.env["BRANCH_NAME"] == "a":
            return CommandOutput(1, "5", "no such module", timed_out=False)
        if call.argv[0] == "score" and call.env["BRANCH_NAME"] == "b":
            await asyncio.sleep(1000)
        return CommandOutput(0, "1", "", timed_out=False)

    host = host_with_source(program=program)
    report = run(host, asked(branches=branches("a", "b", "c"), judge={**BY_SCORE, "timeout": 7}))
    got = by_name(report)
    assert got["a"].reason == "judge: the score command ended with 1: no such module"
    assert got["b"].reason == "judge: the score command did not end within 7 s"
    assert report.winner == "c"


def test_a_branch_that_failed_is_not_scored() -> None:
    host = host_with_source(program=scripted(a=(1, 4, "9")))
    run(host, asked(branches=branches("a"), judge=BY_SCORE))
    assert [call.argv[0] for call in host.calls] == ["try"]


def test_the_judges_files_come_after_the_branch_ended() -> None:
    seen: list[tuple[str, int]] = []

    async def program(call: FakeCall) -> CommandOutput:
        box = next(box for box in host.boxes.values() if box.record.name == call.sandbox)
        seen.append((call.argv[0], sum(path.endswith(".tar") for path in box.files)))
        return CommandOutput(0, "1", "", timed_out=False)

    host = host_with_source(program=program)
    run(host, asked(branches=branches("a"), judge={**BY_SCORE, "files": {"score.py": "print(1)"}}))
    assert seen == [("try", 0), ("score", 1)]


def test_children_are_made_of_the_checkpoint_with_sizes_and_the_sources_egress() -> None:
    host = host_with_source()
    source = next(iter(host.boxes.values()))
    policy = EgressPolicy(allow=("pypi.org",))
    source.record = type(source.record)(
        **{f: getattr(source.record, f) for f in ("id", "name", "status")}, egress=policy
    )
    report = run(host, asked(n=2, command=["try"]))
    for index, spec in enumerate(sorted(host.specs, key=lambda spec: spec.name)):
        assert spec.snapshot_id == report.checkpoint
        assert (spec.cpus, spec.memory_mb, spec.disk_mb) == (ENVIRONMENT.cpus, ENVIRONMENT.memory_mb, 25_600)
        assert spec.egress == policy
        name = parse(SETTINGS.prefix, spec.name)
        assert isinstance(name, RaceSandbox)
        assert (name.index, name.race_id) == (index, report.race_id)
        assert name.dead_man == 1_800_000_000 + DEAD_MAN_SECONDS


def test_a_source_that_does_not_say_its_policy_gives_children_the_environments() -> None:
    host = host_with_source()
    run(host, asked(n=1, command=["try"]))
    assert host.specs[0].egress == ENVIRONMENT.egress != EgressPolicy()


def test_a_child_does_not_say_that_it_is_its_session() -> None:
    seen: list[bytes] = []

    async def program(call: FakeCall) -> CommandOutput:
        box = next(box for box in host.boxes.values() if box.record.name == call.sandbox)
        seen.append(box.files[IDENTITY_FILE])
        return CommandOutput(0, "", "", timed_out=False)

    host = host_with_source(program=program)
    source = next(iter(host.boxes.values()))
    source.files[IDENTITY_FILE] = b"sesn_0a1B2c3D"
    report = run(host, asked(n=2, command=["try"]))
    assert seen == [f"race {report.race_id}\n".encode()] * 2
    assert source.files[IDENTITY_FILE] == b"sesn_0a1B2c3D"


def test_the_base_of_a_setup_does_not_say_that_it_is_the_session_either() -> None:
    seen: list[bytes] = []

    async def program(call: FakeCall) -> CommandOutput:
        box = next(box for box in host.boxes.values() if box.record.name == call.sandbox)
        seen.append(box.files[IDENTITY_FILE])
        return CommandOutput(0, "", "", timed_out=False)

    host = host_with_source(program=program)
    host.boxes["id1"].files[IDENTITY_FILE] = b"sesn_0a1B2c3D"
    report = run(host, asked(setup="make", n=1, command=["try"]))
    assert seen == [f"race {report.race_id}\n".encode()] * 2


def test_a_sandbox_that_says_killed_for_out_of_time_is_understood() -> None:
    async def program(call: FakeCall) -> CommandOutput:
        await asyncio.sleep(9.99 if call.env["BRANCH_NAME"] == "late" else 5)
        return CommandOutput(-9, "", "", timed_out=False)

    report = run(host_with_source(program=program), asked(branches=branches("late", "killed"), branch_timeout=10))
    got = by_name(report)
    assert got["late"].status == "timed_out"
    assert (got["killed"].status, got["killed"].exit_code) == ("failed", -9)


def test_programs_run_as_the_agents_user_in_the_working_directory() -> None:
    host = host_with_source()
    run(host, asked(n=1, script="echo {i}", env={"MODE": "x"}, setup="make", judge=BY_SCORE))
    assert {(call.user, call.working_dir) for call in host.calls} == {(SETTINGS.sandbox_user, SETTINGS.workdir)}
    setup, branch, score = host.calls
    assert setup.argv == ("sh", "-c", "make")
    assert branch.argv == ("sh", "-c", "echo 0")
    assert branch.env == {"MODE": "x", "BRANCH_INDEX": "0", "BRANCH_NAME": "b0", "RACE_ID": branch.env["RACE_ID"]}
    assert score.argv == ("score",)


def test_a_setup_runs_once_in_a_base_that_is_gone_before_the_branches_begin() -> None:
    host = FakeHost()
    report = run(host, asked(source={"image": "agent-cli"}, setup="pip install .", n=3, command=["try"]))
    base, *resources = host.specs
    assert (base.image, base.snapshot_id) == ("agent-cli", None)
    assert {(spec.image, spec.snapshot_id) for spec in resources} == {(None, report.checkpoint)}
    assert [call.argv[:2] for call in host.calls].count(("sh", "-c")) == 1
    assert host.most_alive == 3
    assert host.alive() == []
    assert host.snapshots == {}


def test_a_setup_never_runs_in_the_sessions_own_sandbox() -> None:
    host = host_with_source()
    run(host, asked(setup="rm -rf .", n=1, command=["try"]))
    assert SOURCE not in {call.sandbox for call in host.calls}
    assert host.alive() == [SOURCE]
    assert host.snapshots == {}


def test_a_setup_that_fails_is_an_error_with_its_output() -> None:
    async def program(call: FakeCall) -> CommandOutput:
        return CommandOutput(7, "", "no matching distribution", timed_out=False)

    host = FakeHost(program=program)
    with pytest.raises(errors.SetupFailed, match="exit code 7: no matching distribution"):
        run(host, asked(source={"image": "agent-cli"}, setup="pip install .", n=3, command=["try"]))
    assert host.alive() == []


def test_an_image_without_a_setup_needs_no_checkpoint() -> None:
    host = FakeHost()
    report = run(host, asked(source={"image": "agent-cli"}, n=2, command=["try"]))
    assert report.checkpoint is None
    assert {spec.image for spec in host.specs} == {"agent-cli"}


def test_a_given_snapshot_is_used_and_not_deleted() -> None:
    host = FakeHost()
    host.snapshots["mine"] = {}
    report = run(host, asked(source={"snapshot_id": "mine"}, n=2, command=["try"]))
    assert report.winner == "b0"
    assert list(host.snapshots) == ["mine"]


def test_an_unknown_snapshot_is_no_source() -> None:
    with pytest.raises(errors.SourceAbsent):
        run(FakeHost(), asked(source={"snapshot_id": "mine"}, n=2, command=["try"]))


def test_a_session_without_a_sandbox_is_no_source() -> None:
    with pytest.raises(errors.SourceAbsent):
        run(FakeHost(), asked(n=2, command=["try"]))


def test_a_sleeping_source_is_woken() -> None:
    host = FakeHost()
    host.add(SOURCE, SandboxStatus.SUSPENDED)
    assert run(host, asked(n=1, command=["try"])).winner == "b0"
    assert host.boxes["id1"].record.status is SandboxStatus.RUNNING


def test_a_source_that_never_comes_to_run_is_not_ready() -> None:
    host = FakeHost()
    host.add(SOURCE, SandboxStatus.PENDING)
    with pytest.raises(errors.SourceNotReady):
        run(host, asked(n=1, command=["try"]))


def test_a_dry_run_makes_nothing_and_still_misses_a_source() -> None:
    host = host_with_source()
    report = run(host, asked(n=2, command=["try"], dry_run=True))
    assert report.dry_run
    assert {branch.status for branch in report.branches} == {"not_started"}
    assert host.specs == []
    assert host.boxes["id1"].record.status is SandboxStatus.RUNNING
    with pytest.raises(errors.SourceAbsent):
        run(FakeHost(), asked(n=2, command=["try"], dry_run=True))


def test_a_quota_of_two_still_runs_eight_branches() -> None:
    host = host_with_source(scripted(**{f"b{i}": (5, 0, "1") for i in range(8)}), quota=3)
    report = run(host, asked(n=8, command=["try"]))
    assert {branch.status for branch in report.branches} == {"ok"}
    assert host.alive() == [SOURCE]


def test_with_no_room_at_all_each_branch_says_so() -> None:
    host = host_with_source(quota=1)
    report = run(host, asked(n=3, command=["try"]))
    assert [branch.reason for branch in report.branches] == ["the sandbox could not be made: HTTP 402"] * 3
    assert report.reaped == (report.checkpoint,)


def test_the_timeline_has_every_phase_of_every_branch() -> None:
    host = host_with_source(program=scripted(a=(1, 0, "1"), b=(2, 0, "2")))
    report = run(host, asked(branches=branches("a", "b"), judge=BY_SCORE))
    assert [span.phase for span in report.timeline if span.branch == "b"] == ["boot", "files", "run", "judge", "reap"]
    assert [span.phase for span in report.timeline if span.branch is None] == ["source", "checkpoint"]
    assert all(0 <= span.start <= span.end <= report.seconds for span in report.timeline)
    spent = {span.phase: span.end - span.start for span in report.timeline if span.branch == "b"}
    assert spent["run"] == pytest.approx(2.05, abs=0.02)


def test_limits_of_the_settings_hold() -> None:
    for fields, field in (
        ({"deadline": 601}, "deadline"),
        ({"max_parallel": 17}, "max_parallel"),
    ):
        with pytest.raises(errors.BadRace) as caught:
            run(host_with_source(), asked(n=1, command=["try"], **fields))
        assert caught.value.field == field


finished = st.builds(
    BranchReport,
    name=st.just("x"),
    index=st.integers(0, 63),
    status=st.sampled_from(["ok", "ok", "failed", "timed_out", "cancelled", "not_started"]),
    score=st.none() | st.sampled_from([-1.0, 0.0, 0.5, 1.0]),
    run_seconds=st.sampled_from([0.5, 1.0, 2.0]),
)


@given(st.lists(finished, max_size=8, unique_by=lambda branch: branch.index), st.booleans())
def test_the_winner_is_the_models(reports: list[BranchReport], higher: bool) -> None:
    best = None
    for report in sorted(reports, key=lambda report: report.index):
        if report.status != "ok" or report.score is None:
            continue
        if best is None or best.score is None or best.run_seconds is None or report.run_seconds is None:
            best = report
            continue
        gain = (report.score - best.score) * (1 if higher else -1)
        if gain > 0 or (gain == 0 and report.run_seconds < best.run_seconds):
            best = report
    assert winner(reports, higher_is_better=higher) == best
    assert winner(reversed(reports), higher_is_better=higher) == best
