"""The soak's one-minute version, and the proof that its report would tell."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from shared.ports import OpenCalls
from tests.faults import soak, soak_judge, soak_requests
from tests.faults.soak import SoakOptions
from tests.faults.soak_report import Played, Report
from tests.faults.soak_users import TURNS, User, play_all
from tests.faults.soak_weather import KINDS, Scene
from tests.faults.test_claims_under_faults import heal
from tests.support.footprint import Sample, children, growth, measure, watching
from tests.support.waiting import until
from tests.support.world import OfflineWorld, Place

MINUTE = SoakOptions(seconds=20.0, sessions=5, users=4, settle=120.0, forked=True)
"""Sized for two cores that others use too: a slow machine begins fewer sessions."""


@pytest.mark.timeout(360)
def test_four_copies_under_faults_for_a_minute_lose_double_and_leave_nothing() -> None:
    said: list[str] = []
    report = soak.soak(MINUTE, said.append)
    print(report.text())
    assert report.problems == []
    assert report.begun >= MINUTE.users
    assert report.turns == TURNS * report.begun
    assert {growth.name for growth in report.growths} == {"uvicorn", "gunicorn", "tick loop 1", "tick loop 2"}
    assert report.ticks["ticks"] > 10
    both = {name.split()[0] for name, count in report.faults.items() if count}
    assert both == {"claude", "tensorlake"}


def samples(values: Sequence[tuple[int, int]]) -> list[Sample]:
    return [Sample(float(second), rss * 1_000_000, files) for second, (rss, files) in enumerate(values)]


def test_what_grows_after_the_warm_up_counts_and_what_grew_before_does_not() -> None:
    leaking = growth("it", samples([(100 + second, 10 + second) for second in range(40)]), warm_up=10)
    assert leaking.rss == pytest.approx(20)
    assert leaking.files == pytest.approx(20)
    flat = growth("it", samples([(10 * second if second < 10 else 100, 10) for second in range(40)]), warm_up=10)
    assert (flat.rss, flat.files) == (0, 0)


def test_too_few_samples_are_no_proof_of_flatness() -> None:
    with pytest.raises(ValueError, match="too few"):
        growth("it", samples([(1, 1)] * 5), warm_up=0)


def test_a_process_is_measured_with_its_children_and_a_gone_one_is_nothing(tmp_path: Path) -> None:
    before = measure(os.getpid(), 0.0)
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        assert process.pid in children(os.getpid())
        with (tmp_path / "open").open("w"):
            assert measure(os.getpid(), 0.0).files > before.files
        with watching({"it": process.pid}, 0.02) as watch:
            while len(watch.samples["it"]) < 2:
                pass
        process.communicate()
    assert watch.samples["it"][0].rss > 0
    assert measure(process.pid, 0.0) == Sample(0.0, 0, 0)


def test_a_lost_turn_a_doubled_call_and_a_leak_are_told(world: OfflineWorld, place: Place) -> None:
    session = place.session("$ printf 'turn-1\\nturn-1\\nturn-2\\nturn-3\\n' >> /workspace/runs")
    heal(place, session)
    report = Report(wanted=1)
    played = [Played(session, said=3, interrupts=0, seconds=1.0)]
    soak_judge.count_calls(place, played, report)
    assert [problem.split(": ")[0] for problem in report.problems] == [session]

    once = Report(wanted=1)
    soak_judge.count_calls(place, [dataclasses.replace(played[0], interrupts=1)], once)
    assert once.problems == []

    grown = growth("it", samples([(second, 10) for second in range(40)]), warm_up=0)
    lost = Report(wanted=1, growths=[grown])
    soak_judge.judge(lost, played, played, place, users=1, copies=1)
    assert [problem.split(":")[0] for problem in lost.problems] == ["lost", "it"]
    assert place.sandbox(session) in "".join(soak_judge._left(place))


def test_a_call_whose_loss_the_agent_was_told_may_be_missing_in_bad_weather(place: Place) -> None:
    session = place.session("$ printf 'turn-1\\nturn-2\\n' >> /workspace/runs")
    heal(place, session)
    played = [Played(session, said=3, interrupts=0, seconds=1.0)]
    untold, told, calm = Report(wanted=1), Report(wanted=1), Report(wanted=1)
    soak_judge.count_calls(place, played, untold, weather=True)
    assert len(untold.problems) == 1

    until(lambda: place.item(session)["state"] == "stopped", "its worker stays")
    place.say(session, "$ echo turn-3 >> /workspace/runs")
    _give_up_call(place, session)
    soak_judge.count_calls(place, played, told, weather=True)
    assert (told.problems, told.told) == ([], 1)
    soak_judge.count_calls(place, played, calm)
    assert len(calm.problems) == 1


def _give_up_call(place: Place, session: str) -> None:
    """As a tick does for a call that nobody will answer."""

    async def given_up() -> bool:
        async with place.dispatcher() as dispatcher:
            calls = await dispatcher.queue.open_calls(session)
            if not isinstance(calls, OpenCalls) or not calls.ids:
                return False
            return await dispatcher.queue.give_up_calls(session, calls) is None

    until(lambda: asyncio.run(given_up()), "no call waits")


def test_an_ended_sandbox_and_a_credential_in_one_are_told(place: Place) -> None:
    key, rotated = place.environ["TENSORLAKE_API_KEY"], "sk-ant-oat01-revoked"
    lines = (f"printf {key[::-1]} | rev > /workspace/left", f"printf {rotated[::-1]} | rev > /workspace/old")
    session = place.session(f"$ {'; '.join(lines)}")
    heal(place, session)
    played = [Played(session, said=1, interrupts=0, seconds=1.0)]
    report = Report(wanted=1, rotated=[rotated])
    soak_judge.look_into_sandboxes(place, played, report)
    left, old = sorted(report.problems)
    assert "/workspace/left" in left and "/workspace/old" in old and report.looked > 1
    assert not {key, rotated} & set(left.split())

    (box,) = place.sandboxes()
    _terminate(place, box["id"])
    ended = Report(wanted=1)
    soak_judge.look_into_sandboxes(place, played, ended)
    assert len(ended.problems) == 1 and "ended before it was over" in ended.problems[0]


def _terminate(place: Place, sandbox_id: str) -> None:
    async def terminate() -> None:
        async with place.dispatcher() as dispatcher:
            await dispatcher.host.terminate(sandbox_id)

    asyncio.run(terminate())


def test_a_sandbox_that_outlives_its_session_is_told_and_one_that_cannot_be_counted_in_is_no_verdict(
    place: Place,
) -> None:
    session = place.session("$ true")
    heal(place, session)
    report = Report(wanted=1)
    soak_judge.overdue(place, {session: time.monotonic() - 100.0}, report, 1000.0)
    assert report.problems == []
    soak_judge.overdue(place, {session: time.monotonic() - 100.0}, report, 10.0)
    assert [place.sandbox(session) in problem for problem in report.problems] == [True]

    unknown = Played("sesn_01unknown", said=1, interrupts=0, seconds=1.0)
    left = iter([False, True])
    assert not soak_judge.count_in_weather(place, unknown, report, lambda: next(left))
    assert len(report.problems) == 1


def test_a_user_that_breaks_is_told_and_the_others_go_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = iter(range(5))

    def play(*_: object) -> Played:
        if (number := next(sessions)) == 0:
            raise RuntimeError("no answer")
        return Played(f"sesn_{number}", said=3, interrupts=0, seconds=1.0)

    monkeypatch.setattr(User, "play", play)
    problems: list[str] = []
    played = play_all(place, 5, 2, 600.0, 1.0, lambda line: None, problems)
    assert len(played) == 4
    assert len(problems) == 1 and "no answer" in problems[0]


def test_what_a_copy_once_had_and_too_busy_a_minute_are_told(place: Place) -> None:
    report = Report(wanted=0, peaks={"it": (1_000.0, 1_000), "other": (10.0, 10)}, busiest=10_000)
    soak_judge.judge(report, [], [], place, users=1, copies=1)
    assert [problem.partition(" ")[0] for problem in report.problems] == ["it:", "it:", "10000"]


def test_the_busiest_minute_has_the_requests_of_the_block(world: OfflineWorld) -> None:
    before, told = soak_requests.so_far(world), list[int]()
    with soak_requests.busiest_minute(world, told.append):
        world.api.beta.models.list()
        world.api.beta.models.list()
    assert told == [2] and soak_requests.so_far(world) == before + 2


def test_each_kind_of_weather_is_over_when_its_block_is_left(world: OfflineWorld, place: Place) -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as copy:
        scene = Scene(world, {"it": copy.pid}, random.Random(1), soak.LEASE)
        for kind in KINDS.values():
            with kind(scene):
                pass
        for admin in (world.claude_admin, world.tensorlake_admin):
            assert admin.get("faults")["data"] == []
        assert world.tensorlake_admin.get("settings")["follow_waits"] is False
        copy.communicate()
    assert copy.returncode == 0


def test_a_frozen_copy_stands_still_until_it_goes_on(world: OfflineWorld) -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as copy:
        with KINDS["frozen copy"](Scene(world, {"it": copy.pid}, random.Random(1), soak.LEASE)):
            until(lambda: _state(copy.pid) == "T", "it was not stopped")
        until(lambda: _state(copy.pid) != "T", "it does not go on")
        copy.communicate()


def _state(pid: int) -> str:
    """Its letter (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
