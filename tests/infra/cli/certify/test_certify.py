"""certify against the offline platform. All knobs against all checks: `make certify-proof` (proof.py)."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import AsyncMock

import pytest

from infra.cli import certified as reports
from infra.cli.certify import command, process_checks, report
from infra.cli.certify.check import CheckResult, ServiceCheck
from infra.cli.certify.ground import Ground, lifecycle_base
from infra.cli.certify.limit_checks import Counts, counted
from infra.cli.certify.observation import NotTried, Observed
from infra.cli.doctor.certification import check_certification
from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.findings import Finding
from infra.local.certification import behaviour_in
from infra.local.claude.knobs import Knobs
from infra.local.platform import Options, Platform
from infra.local.process import ServiceStartError
from infra.local.tensorlake.settings import TensorlakeSettings
from shared.errors import SettingsError
from shared.ports import CommandOutput
from shared.settings import Settings
from tests.infra.cli.certify.broken import QUEUE, SANDBOX, certified, not_holding
from tests.infra.cli.certify.grounds import ground_of
from tests.support.preloaded import forked_service
from tests.support.world import API_KEY, OfflineWorld

EVERYBODYS = "/usr/bin/python3"
QUICK = (
    *("queue.fence", "queue.refusal-state", "queue.lease", "queue.ttl-bounds", "queue.reclaim", "queue.lapsed-pending"),
    *("queue.startup-lease", "queue.requeue-fields", "queue.stream-names", "queue.beat-before-ack"),
    *("queue.second-ack", "queue.stopped-ack", "queue.ack-unclaimed", "queue.second-stop", "queue.poll-order"),
    *("queue.list-order", "queue.list-stopped", "queue.deleted-session", "queue.archived-session"),
    *("queue.api-key-polls", "queue.api-key-serves", "queue.token-scope", "queue.refused-keys", "queue.foreign-key"),
    *("queue.date", "queue.oldest-version", "queue.page-limits", "queue.counted-calls"),
)
"""What needs no turn of the model and waits for nothing, and can be broken all at once."""


def test_certify_names_the_assumptions_that_are_broken_and_tells_the_platform_to_behave_so(
    world: OfflineWorld, ground_place: dict[str, str]
) -> None:
    assert not_holding(certified(ground_place, *QUICK, "sandbox.sleeper-url", "sandbox.resume-moves")) == {}
    whole = world.claude_admin.get("settings")
    world.claude_admin.patch("settings", {knob: value for check, knob, value in QUEUE if check in QUICK})
    broken = certified(ground_place, *QUICK)
    assert set(not_holding(broken)) == set(QUICK)
    told = {name: value for each in broken.values() for name, value in each.observed.behaviour.items()}
    world.claude_admin.patch("settings", whole)
    world.claude_admin.patch("settings", {name.removeprefix("claude."): value for name, value in told.items()})
    again = certified(ground_place, *QUICK)
    seen = {name: each.observed.verdict for name, each in again.items()}
    assert seen == {name: each.observed.verdict for name, each in broken.items()}


def test_every_check_has_a_knob_that_breaks_it_and_every_behaviour_is_one() -> None:
    assert {row[0] for row in (*QUEUE, *SANDBOX)} == {check.id for check in command.CHECKS}
    told = reports.last_certification()
    assert told is not None and told["not_made"] == []
    assert {row["id"]: row["assumed"] for row in told["checks"]} == {each.id: each.assumed for each in command.CHECKS}
    for file in reports.FOLDER.glob("*.json"):
        claude, tensorlake = behaviour_in(file)
        Knobs.model_validate(claude)
        TensorlakeSettings.model_validate(tensorlake)


def test_what_is_no_certification_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("{}")
    with pytest.raises(ServiceStartError, match=r"report\.json is no certification"):
        behaviour_in(file)


def test_the_offline_platform_behaves_as_a_certification_says(tmp_path: Path) -> None:
    behaviour = {
        "claude": {"list_order": "oldest_first", "second_ack_status": 409},
        "tensorlake": {"resume_moves": True},
    }
    file = tmp_path / "report.json"
    file.write_text(json.dumps({"behaviour": behaviour}))
    options = Options(certification=file, claude={"second_ack_status": 200}, build_image=False)
    with Platform(options, forked_service) as platform:
        results = certified(platform.environ, "queue.list-order", "queue.second-ack")
        assert platform.tensorlake.get("settings")["resume_moves"] is True
    assert not_holding(results) == {"queue.list-order": "oldest first"}


def test_a_check_that_is_cancelled_leaves_no_session(world: OfflineWorld, ground_place: dict[str, str]) -> None:
    made: list[str] = []

    async def hang(ground: Ground) -> Observed:
        made.append(str((await ground.claimed())["data"]["id"]))
        await asyncio.Event().wait()
        raise AssertionError

    async def cancel() -> None:
        check = ServiceCheck("test.hang", "", "", "", hang)
        task = asyncio.ensure_future(command.certify(ground_of(ground_place), [check]))
        while not made:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert made[0] not in {session["id"] for session in world.claude_admin.get("state")["sessions"]}


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path(EVERYBODYS).exists(), reason="only root starts as root, with what others may read"
)
def test_what_starts_as_root_becomes_the_agents_user_for_good_or_the_check_says_so(
    ground_place: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Host:
        """Runs on this machine, as root, what a sandbox would run."""

        async def run(self, sandbox: str, command: str, args: list[str], **_: object) -> CommandOutput:
            done = subprocess.run([EVERYBODYS, *args], capture_output=True, text=True, check=False)
            return CommandOutput(done.returncode, done.stdout, done.stderr, timed_out=False)

    async def seen(user: str) -> Observed:
        async with ground_of({**ground_place, "SANDBOX_USER": user}) as ground:
            monkeypatch.setattr(Ground, "host", Host())
            monkeypatch.setattr(Ground, "shared", AsyncMock(return_value=SimpleNamespace(id="any")))
            return await process_checks.root_start(ground)

    good = asyncio.run(seen("nobody"))
    assert (good.holds, good.seen) == (True, f"taken; began as user 0, is {pwd.getpwnam('nobody').pw_uid} for good")
    bad = asyncio.run(seen("nobody-of-that-name"))
    assert (bad.holds, bad.seen) == (False, "taken, and it could not become the agent's user (exit status 1)")


def test_a_start_as_root_that_is_taken_and_ignored_differs(world: OfflineWorld, ground_place: dict[str, str]) -> None:
    check = "sandbox.root-start"
    offline = certified(ground_place, check)[check].observed  # the offline platform says that it has one user
    assert offline.holds is None and not offline.here
    world.tensorlake_admin.patch("settings", {"root_ignored": True})
    try:
        observed = certified(ground_place, check)[check].observed
    finally:
        world.tensorlake_admin.patch("settings", {"root_ignored": False})
    assert (observed.holds, observed.behaviour) == (False, {"tensorlake.root_ignored": True})
    assert observed.seen == "taken, and ignored: began as user 1000"


def test_an_egress_list_is_tried_from_inside(world: OfflineWorld, ground_place: dict[str, str]) -> None:
    if not world.tensorlake.ready["isolation"]["isolated"]:
        pytest.skip("a sandbox without isolation has no names of its own")
    checks = ("sandbox.wildcards", "sandbox.egress-holds")
    before = world.tensorlake_admin.get("settings")
    try:
        assert not_holding(certified(ground_place, *checks)) == {}
        world.tensorlake_admin.patch("settings", {"wildcards_open": "everything"})
        assert list(not_holding(certified(ground_place, *checks))) == ["sandbox.wildcards"]
        world.tensorlake_admin.patch("settings", {**before, "max_sandboxes": 0})
        full = certified(ground_place, *checks)
    finally:
        world.tensorlake_admin.patch("settings", before)
    assert [result.observed.holds for result in full.values()] == [None, None]  # no room is no refusal of a list


def test_who_works_on_the_environment_already_is_left_alone(world: OfflineWorld, ground_place: dict[str, str]) -> None:
    environment_id = ground_place["ANTHROPIC_ENVIRONMENT_ID"]
    session = world.api.beta.sessions.create(agent=world.agent_id, environment_id=environment_id)
    results = certified(ground_place, "queue.second-ack")
    assert "other sessions wait" in not_holding(results)["queue.second-ack"]
    items = world.claude_admin.get("state")["items"]
    assert [item["handouts"] for item in items if item["data"]["id"] == session.id] == [0]


def test_a_broken_check_and_a_late_one_are_not_known_and_tell_no_secret(ground_place: dict[str, str]) -> None:
    async def quotes_a_key(ground: Ground) -> Observed:
        raise NotTried(f"the service said {API_KEY}")

    async def breaks(ground: Ground) -> Observed:
        raise RuntimeError(API_KEY)

    async def is_late(ground: Ground) -> Observed:
        await asyncio.Event().wait()
        raise AssertionError

    async def fails_to_clean(ground: Ground) -> Observed:
        async def fail() -> None:
            raise NotTried("")

        ground.owe("something", fail)
        return Observed(True, "")

    looks = (quotes_a_key, breaks, is_late, fails_to_clean)
    checks = [ServiceCheck(f"test.{look.__name__}", "", "", "", look, seconds=0.1) for look in looks]
    results, left = asyncio.run(command.certify(ground_of(ground_place), checks))
    assert [result.observed.holds for result in results] == [None, None, None, True]
    assert API_KEY not in repr([result.observed for result in results])
    assert left == ["something (NotTried)"]


def test_a_report_is_named_by_place_and_version_and_read_by_doctor(tmp_path: Path) -> None:
    check = ServiceCheck("queue.x", "docs/wire/anthropic.md#13-unknowns", "a | b", "all changes", look=_never)
    differs = CheckResult(check, Observed(False, "HTTP 409", {"claude.second_ack_status": 409}), 1.0)
    at = datetime(2026, 11, 28, 9, 30, tzinfo=UTC)

    def written(where: str) -> Path:
        version = reports.own_version()
        data = report.as_data([differs], where=where, version=version, code=reports.own_code(), at=at)
        return report.write(data, [check], tmp_path)[1]

    offline = written(reports.OFFLINE)
    assert offline.name == f"the-offline-platform-{reports.own_version()}.json"
    assert json.loads(offline.read_text())["behaviour"]["claude"] == {"second_ack_status": 409}
    page = offline.with_suffix(".md").read_text()
    assert "a \\| b | HTTP 409 | **differs**" in page
    assert "- `queue.x`: all changes." in page
    assert "never against real services" in _doctor_says(tmp_path)
    written("the real services")
    seen = "certified against the real services at 2026-11-28T09:30:00+00:00, 1 check: 1 differ: queue.x"
    assert f"this code (version {reports.own_version()}) was {seen}" in _doctor_says(tmp_path)
    assert "was never certified" in _doctor_says(tmp_path / "none")


def test_parts_add_up_to_one_report_and_a_check_made_again_replaces_what_it_said(tmp_path: Path) -> None:
    known = [
        ServiceCheck(name, "docs/wire/x.md#1", "assumed", "otherwise", _never) for name in ("a.1", "a.2", "b.1", "b.2")
    ]

    def run(day: int, *seen: tuple[int, bool | None], checks: list[ServiceCheck] = known) -> dict[str, object]:
        results = [
            CheckResult(checks[number], Observed(holds, f"on day {day}", {f"claude.knob_{number}": holds}), 1.0)
            for number, holds in seen
        ]
        at = datetime(2026, 11, day, tzinfo=UTC)
        data = report.as_data(results, where=reports.OFFLINE, version="1", code="c", at=at)
        whole: dict[str, object] = json.loads(report.write(data, checks, tmp_path)[1].read_text())
        return whole

    assert run(1, (2, True), (0, True))["not_made"] == ["a.2", "b.2"]
    whole = run(2, (1, True), (2, False))
    assert [file.name for file in sorted(tmp_path.iterdir())] == [
        "the-offline-platform-1.json",
        "the-offline-platform-1.md",
    ]
    rows = whole["checks"]
    assert isinstance(rows, list)
    assert [(row["id"], row["verdict"], row["seen"]) for row in rows] == [
        ("a.1", "holds", "on day 1"),
        ("a.2", "holds", "on day 2"),
        ("b.1", "differs", "on day 2"),
    ]
    assert whole["behaviour"] == {"claude": {"knob_0": True, "knob_1": True, "knob_2": False}, "tensorlake": {}}
    assert whole["not_made"] == ["b.2"] and whole["seconds"] == 3.0 and str(whole["at"]).startswith("2026-11-02")
    assert run(2, (0, None), (1, None))["checks"] == rows  # somebody polled the environment, say: nothing was seen
    page = (tmp_path / "the-offline-platform-1.md").read_text()
    assert "Holds: 2, differs: 1." in page and "## Not made yet\n\n- `b.2`\n" in page
    other = [replace(known[0], assumed="something else"), *known[1:3]]
    assert [row["id"] for row in run(3, (1, True), checks=other)["checks"]] == ["a.2", "b.1"]  # type: ignore[attr-defined]
    (tmp_path / "the-offline-platform-1.json").write_text("no JSON")
    assert run(4, (0, True))["not_made"] == ["a.2", "b.1", "b.2"]


def test_doctor_tells_this_code_from_an_earlier_state_of_its_version_and_a_part_from_all(tmp_path: Path) -> None:
    known = [ServiceCheck(name, "docs/wire/x.md#1", "assumed", "otherwise", _never) for name in ("a.1", "a.2", "b.1")]
    version, code = reports.own_version(), reports.own_code()

    def run(code: str, made: int, wanted: int) -> tuple[str, set[str]]:
        """Of the first `wanted` checks so many were made; what doctor says then, and what the rest is."""
        results = [CheckResult(check, Observed(True, ""), 1.0) for check in known[:made]]
        at = datetime(2026, 11, 28, tzinfo=UTC)
        where = "the real services"
        data = report.as_data(results, where=where, version=version, code=code, at=at, wanted=known[:wanted])
        report.write(data, known, tmp_path)
        return _doctor_says(tmp_path), report.rest(known, where, version, reports.own_code(), tmp_path)

    says, rest = run("an earlier one", 3, 3)
    assert says.startswith(
        f"an earlier state of version {version} was certified against the real services at 2026-11-28"
    )
    assert "3 checks: nothing differs; make certify CERTIFY=--rest" in says and rest == {"a.1", "a.2", "b.1"}
    says, rest = run(code, 2, 2)
    assert says.startswith(f"this code (version {version}) was in part certified")
    assert "2 of 3 checks: nothing differs; make certify CERTIFY=--rest" in says and rest == {"b.1"}
    assert "| 2026-11-28, earlier code |" in (tmp_path / f"the-real-services-{version}.md").read_text()
    says, rest = run(code, 3, 3)
    assert says.startswith(f"this code (version {version}) was certified") and says.endswith(
        "3 checks: nothing differs"
    )
    assert rest == set()
    says, rest = run(code, 1, 3)  # interrupted: the earlier rows of the other two stay
    assert "in part" in says and "1 of 3 checks" in says and rest == {"a.2", "b.1"}
    assert "in part" in run(code, 1, 1)[0] and run(code, 3, 3)[1] == set()


def test_doctor_says_how_many_checks_could_not_be_made(tmp_path: Path) -> None:
    checks = [ServiceCheck(name, "docs/wire/x.md#1", "assumed", "otherwise", _never) for name in ("a.1", "a.2")]
    results = [CheckResult(checks[0], Observed(True, ""), 1.0), CheckResult(checks[1], Observed(None, "why"), 1.0)]
    data = report.as_data(
        results,
        where="the real services",
        version=reports.own_version(),
        code=reports.own_code(),
        at=datetime(2026, 11, 28, tzinfo=UTC),
    )
    report.write(data, checks, tmp_path)
    assert _doctor_says(tmp_path).endswith("2 checks: nothing differs, 1 could not be made")


def test_a_quota_is_met_only_where_somebody_names_it(world: OfflineWorld, ground_place: dict[str, str]) -> None:
    assert "sandbox.quota" not in {check.id for check in command.chosen([])}
    with pytest.raises(SettingsError, match="give --quota, too"):
        command.chosen(["sandbox.quota"])
    with pytest.raises(SettingsError, match="--quota 1000: give 1 to 20"):
        command.chosen([], 1000)
    results = certified(ground_place, "sandbox.quota", quota=1)  # the platform has room for any number
    assert not_holding(results)["sandbox.quota"] == "2 sandboxes ran at once: the quota is larger than --quota 1"


def answer(left: int | None, most: int | None = 50) -> dict[str, str]:
    """An answer's headers, which tell so much of a limit."""
    told = {"limit": most, "remaining": left}
    return {
        f"anthropic-ratelimit-{what}-{name}": str(value + (what == "tokens"))
        for name, value in told.items()
        for what in ("requests", "tokens")
        if value is not None
    }


@pytest.mark.parametrize(
    ("first", "second", "seen"),
    [
        (answer(50), answer(49), Counts.YES),
        (answer(30), answer(29, None), Counts.YES),
        (answer(50), answer(50), Counts.NO),
        ({"request-id": "req_1"}, {"content-type": "application/json"}, Counts.NO),
        (answer(49), answer(49), Counts.UNCLEAR),  # what an earlier call used up, or what a call used that came back
        (answer(48), answer(50), Counts.UNCLEAR),
        (answer(None), answer(None), Counts.UNCLEAR),
        ({"ratelimit": '"default";r=50;t=30'}, {"ratelimit": '"default";r=49;t=30'}, Counts.UNCLEAR),
    ],
)
def test_a_call_counts_where_its_second_answer_tells_of_less_than_its_first(
    first: dict[str, str], second: dict[str, str], seen: Counts
) -> None:
    assert counted(first, second) is seen


def test_where_no_answer_tells_of_limits_it_is_not_known_which_calls_count(
    world: OfflineWorld, ground_place: dict[str, str]
) -> None:
    world.claude_admin.patch("settings", {"limits_told": False})
    results = certified(ground_place, "queue.counted-calls")
    assert results["queue.counted-calls"].observed.holds is None
    world.claude_admin.patch("settings", {"limits_told": True, "counted_calls": ["GET /work/poll"]})
    assert not_holding(certified(ground_place, "queue.counted-calls")) == {
        "queue.counted-calls": "count: GET /work/poll"
    }


def test_certify_tells_how_long_a_start_up_lease_is(world: OfflineWorld, ground_place: dict[str, str]) -> None:
    world.claude_admin.patch("settings", {"startup_lease": 62.0})
    observed = certified(ground_place, "queue.startup-lease")["queue.startup-lease"].observed
    assert observed.holds is False and 62.0 <= observed.behaviour["claude.startup_lease"] < 75.0


def test_an_environment_that_a_killed_certify_left_is_ended_by_the_next_one(
    world: OfflineWorld, ground_place: dict[str, str]
) -> None:
    def left(**metadata: str) -> str:
        made = world.api.beta.environments.create(name="x", config={"type": "self_hosted"}, metadata=metadata)
        return made.id

    over, other = left(certify_until="1"), left(certify_until=f"{time.time() + 3600:.0f}")
    world.api.beta.sessions.create(agent=world.agent_id, environment_id=over)
    assert not_holding(certified(ground_place, "queue.foreign-key")) == {}
    state = world.claude_admin.get("state")
    there = {each["id"] for each in state["environments"]}
    assert over not in there and other in there
    assert over not in {session["environment_id"] for session in state["sessions"]}


def test_only_takes_beginnings_and_refuses_what_names_no_check() -> None:
    assert {check.id for check in command.chosen(["queue.list"])} == {"queue.list-order", "queue.list-stopped"}
    with pytest.raises(SettingsError, match=r"--only quue: no check .* queue\.counted-calls"):
        command.chosen(["quue"])


def test_the_lifecycle_plane_is_where_the_sdk_finds_it() -> None:
    assert lifecycle_base("https://api.tensorlake.ai") == "https://sandbox.tensorlake.ai"
    assert lifecycle_base("http://127.0.0.1:8701/") == "http://127.0.0.1:8701/v1/namespaces/default"


async def _never(ground: Ground) -> Observed:
    raise AssertionError


def _doctor_says(folder: Path) -> str:
    environ = {
        "ANTHROPIC_ENVIRONMENT_ID": "env_1",
        "ANTHROPIC_ENVIRONMENT_KEY": "sk-ant-oat01-x",
        "TENSORLAKE_API_KEY": "tl-x",
    }
    context = DoctorContext(environ, Settings.from_environ(environ), offline=False, certified=folder)
    findings: list[Finding] = []
    asyncio.run(check_certification(context, findings.append))
    return findings[0].seen
