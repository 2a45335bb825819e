"""A run that a signal ends early, and what the next one does about a run that was killed."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.cli.certify import left_behind, pool_checks, runs
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried
from infra.cli.doctor.context import DoctorContext
from shared.settings import Settings
from tests.infra.cli.certify.grounds import ground_of
from tests.support.admin import fault
from tests.support.command_line import CommandLine, command_line
from tests.support.waiting import PATIENCE, until
from tests.support.world import OfflineWorld

HOUR = 3600.0


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("checkout"), served=False) as running:
        yield running


@pytest.fixture
def shell(checkout: CommandLine) -> CommandLine:
    """A checkout without a report."""
    shutil.rmtree(checkout.checkout / "docs", ignore_errors=True)
    return checkout


def living(shell: CommandLine) -> list[Mapping[str, Any]]:
    boxes = shell.platform.tensorlake.get("state")["sandboxes"]
    return [box for box in boxes if box["status"] != "terminated"]


def snapshots(shell: CommandLine) -> list[Any]:
    return list(shell.platform.tensorlake.get("state")["snapshots"])


def report_of(shell: CommandLine) -> Mapping[str, Any]:
    (file,) = (shell.checkout / "docs" / "certified").glob("*.json")
    report: Mapping[str, Any] = json.loads(file.read_text())
    return report


def stopped_in_the_middle(shell: CommandLine, *numbers: int) -> subprocess.CompletedProcess[str]:
    """One check is made, and the next one waits for its sandbox to fall asleep."""
    slow = {"method": "POST", "path": "/suspend$", "action": "delay", "seconds": 60}
    only = ("--only", "queue.secret", "--only", "sandbox.sleeper-url")
    with fault(shell.platform.tensorlake, slow), shell.start("certify", *only) as process:
        until(lambda: [box for box in living(shell) if box["status"] == "running"], "no sandbox came")
        assert process.stderr is not None
        for number in numbers[:-1]:
            process.send_signal(number)
            assert "again leaves at once" in process.stderr.readline()
        process.send_signal(numbers[-1])
        out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess([], process.returncode, out, err)


def test_ctrl_c_ends_a_run_in_order_and_what_was_seen_is_reported(shell: CommandLine) -> None:
    done = stopped_in_the_middle(shell, signal.SIGINT)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "queue.secret" in done.stdout and "sandbox.sleeper-url" not in done.stdout
    assert living(shell) == [] and shell.sessions() == []
    report = report_of(shell)
    assert [row["id"] for row in report["checks"]] == ["queue.secret"]
    assert report["unfinished"] == ["sandbox.sleeper-url"] and report["left_over"] == []
    assert '1 of 2 checks are made.\nThe others: make certify CERTIFY="--rest"' in done.stderr
    assert not list((shell.checkout / ".hands" / "certify").iterdir())


def test_sigterm_ends_it_so_too_and_the_next_run_makes_the_rest(shell: CommandLine) -> None:
    done = stopped_in_the_middle(shell, signal.SIGTERM)
    assert done.returncode == 143 and "Traceback" not in done.stderr, done.stderr
    assert living(shell) == [] and shell.sessions() == []
    only = ("--only", "queue.secret", "--only", "sandbox.sleeper-url")
    done = shell.run("certify", "--rest", *only)
    assert done.returncode == 0, done.stderr
    assert "queue.secret" not in done.stdout and "sandbox.sleeper-url" in done.stdout
    report = report_of(shell)
    assert [row["id"] for row in report["checks"]] == ["queue.secret", "sandbox.sleeper-url"]
    assert report["unfinished"] == []


def test_what_was_seen_is_reported_though_nobody_reads_the_output(shell: CommandLine) -> None:
    with shell.start("certify", "--only", "queue.secret") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stderr.read()
    assert process.returncode != 0
    assert [row["id"] for row in report_of(shell)["checks"]] == ["queue.secret"] and shell.sessions() == []


def test_what_a_run_leaves_that_did_not_end_in_order_is_ended_by_the_next_one(shell: CommandLine) -> None:
    with fault(shell.platform.tensorlake, {"method": "DELETE", "action": "delay", "seconds": 60}):
        done = stopped_in_the_middle(shell, signal.SIGINT, signal.SIGINT)
    assert done.returncode == 130, done.stderr
    (left,) = living(shell)
    assert f"Left over: perhaps {left['name']}" in done.stderr and "Traceback" not in done.stderr
    assert report_of(shell)["left_over"] == [f"perhaps {left['name']}"]

    slow = {"method": "GET", "path": "/snapshots$", "action": "delay", "seconds": 60, "skip": 1}
    with fault(shell.platform.tensorlake, slow), shell.start("certify", "--only", "sandbox.snapshot-listing") as run:
        until(lambda: snapshots(shell), "no snapshot was taken")
        run.kill()
        _, err = run.communicate()
    assert f"An earlier certify left these, and they are ended: {left['name']}." in err
    (another,) = living(shell)
    assert another["id"] != left["id"]

    assert shell.run("certify", "--only", "queue.secret").returncode == 0
    assert living(shell) == [] and snapshots(shell) == []


def test_who_lives_is_known_by_the_lock_and_elsewhere_by_the_dead_man_time(tmp_path: Path) -> None:
    run, now = runs.new_run(), time.time()
    assert runs.is_run(run) and runs.new_run() != run
    assert not runs.is_dead(run, now + 1, now, tmp_path) and runs.is_dead(run, now, now, tmp_path)
    with runs.living(run, tmp_path):
        assert not runs.is_dead(run, now - HOUR, now, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / run).touch()  # as a killed one leaves it
    assert runs.is_dead(run, now + HOUR, now, tmp_path)
    (tmp_path / "other").touch()
    for no_run in ("../" + tmp_path.name + "/" + run, "other", ""):
        assert not runs.is_dead(no_run, now + 1, now, tmp_path)


def test_a_living_run_keeps_what_it_made_though_its_time_is_over(ground_place: dict[str, str], tmp_path: Path) -> None:
    context = DoctorContext(ground_place, Settings.from_environ(ground_place), True, now=lambda: time.time() + HOUR)

    async def play() -> None:
        one = ground_of(ground_place, tmp_path)
        async with one:
            session, sandbox = await one.session(), await one.sandbox()
            with runs.living(one.run, tmp_path):
                async with Ground(context, runs_folder=tmp_path) as other:
                    assert await left_behind.end_earlier(other) == []
            async with ground_of(ground_place, tmp_path) as elsewhere:
                assert await left_behind.end_earlier(elsewhere) == []
            async with Ground(context, runs_folder=tmp_path) as later:
                assert await left_behind.end_earlier(later) == [session, sandbox.name]
                assert later.left_over == []

    asyncio.run(play())


def test_sessions_that_are_no_runs_of_certify_stay(world: OfflineWorld, ground_place: dict[str, str]) -> None:
    environment_id = ground_place["ANTHROPIC_ENVIRONMENT_ID"]
    now = time.time()

    def left(**metadata: str) -> str:
        made = world.api.beta.sessions.create(
            agent=world.agent_id, environment_id=environment_id, title="certify", metadata=metadata
        )
        return made.id

    over = left(certify_until=f"{now - 1:.0f}")
    others = {left(certify_until=f"{now + HOUR:.0f}"), left(certify_until="soon"), left()}

    async def play() -> None:
        async with ground_of(ground_place) as ground:
            assert await left_behind.end_earlier(ground) == [over]
            with pytest.raises(NotTried, match="other sessions wait"):
                await ground.session()

    asyncio.run(play())
    assert others <= {session["id"] for session in world.claude_admin.get("state")["sessions"]}


def test_a_pool_that_a_killed_run_left_is_ended_and_no_other(ground_place: dict[str, str]) -> None:
    async def play() -> None:
        async with ground_of(ground_place) as ground:

            async def made(seconds: int) -> str:
                wanted = {"image": ground.environment.image, "timeout_secs": seconds, "max_containers": 1}
                size = {"cpus": 1.0, "memory_mb": 1024, "disk_mb": 10_240}
                answer = await ground.lifecycle("POST", "/sandbox-pools", {**wanted, "resources": size})
                return f"/sandbox-pools/{answer.json()['pool_id']}"

            async def status(path: str) -> int:
                return (await ground.lifecycle("GET", path)).status_code

            other, left = await made(600), await made(pool_checks.POOL_SECONDS)
            claim = (await ground.lifecycle("POST", f"{left}/sandboxes", {})).json()["sandbox_id"]
            assert await left_behind.end_earlier(ground) == [left]
            assert (await status(left), await status(other)) == (404, 200)
            assert (await ground.lifecycle("GET", f"/sandboxes/{claim}")).json()["status"] == "terminated"
            await ground.lifecycle("DELETE", other)

    asyncio.run(play())
