"""Which of a tick's alarms and repairs are one session's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from infra.cli.environ import Loaded
from infra.cli.fleet import alarms
from infra.cli.fleet.alarms import about, in_lines, of_session
from infra.cli.fleet.one import show
from shared.reports import Act, ActionReport, ReconcileReport
from shared.service import Service
from shared.settings import Settings
from tests.support.many_sessions import ENVIRONMENT, SESSIONS, CrowdedService, many_sessions, variables
from tests.support.world import ROOT, Place


def test_a_report_is_reduced_to_what_concerns_a_session_and_to_no_longer_name() -> None:
    report = ReconcileReport(
        environment_id="env_1",
        sandboxes=3,
        items=3,
        lookups=0,
        actions=[
            ActionReport(Act.SUSPEND, "hands-t-a", "idle", done=False),
            ActionReport(Act.TOUCH, "hands-t-a", "it works", done=False),
            ActionReport(Act.SUSPEND, "hands-t-ab", "idle", done=False),
        ],
        needs_interrupt=["sesn_A", "sesn_AB"],
        alarms=["sesn_A: its set-up failed: no", "sesn_AB: x", "look-ups failed twice: hands-t-z, hands-t-a"],
        undone=4,
        seconds=0.1,
    )
    own = about(report, {"sesn_A", "hands-t-a"})
    assert [action.act for action in own.actions] == [Act.SUSPEND] and own.needs_interrupt == ["sesn_A"]
    assert list(own.alarms) == ["sesn_A: its set-up failed: no", "look-ups failed twice: hands-t-z, hands-t-a"]
    assert len(in_lines([own])) == 4 and not in_lines([about(report, {"sesn_C"})])


def test_work_that_waits_while_nobody_polls_is_noted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = Loaded(place.environ, None)
    assert asyncio.run(alarms.run(loaded, as_json=False)) == 0
    assert capsys.readouterr().out.startswith("Nothing is wrong")
    place.session("read a.txt")
    assert asyncio.run(alarms.run(loaded, as_json=False)) == 0, "it may be taken at any moment"
    assert "1 wait and nobody polls: start make serve" in capsys.readouterr().out


def test_show_has_the_lines_of_its_own_session(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with many_sessions() as service:
        loaded = Loaded(variables(service), None)
        assert asyncio.run(show(loaded, f"sesn_{1:024d}", as_json=True)) == 0
        facts = json.loads(capsys.readouterr().out)
        (line,) = facts["alarms"]
        assert f"stop_worker {facts['sandbox']['name']}: past its lifetime" in line and "make tick" in line
        assert asyncio.run(show(loaded, f"sesn_{1:024d}", as_json=False)) == 0
        told = capsys.readouterr()
        assert "past its lifetime" in told.out and told.err == ""


def test_lines_of_a_pass_that_did_not_see_everything_are_unknown_and_not_none() -> None:
    async def lines(service: CrowdedService, number: int) -> list[str] | None:
        made = Service(Settings.from_environ(variables(service)))
        try:
            return await of_session(made, ENVIRONMENT, {f"sesn_{number:024d}"})
        finally:
            await made.aclose()

    with many_sessions() as service:
        assert asyncio.run(lines(service, SESSIONS)) == []
        service.broken = {"/work": 404}
        assert asyncio.run(lines(service, SESSIONS)) is None


def test_a_first_look_of_a_process_at_both_services_at_once_loads_no_sdk_of_the_queue() -> None:
    with many_sessions() as service:
        code = (
            "import asyncio, sys\n"
            "from infra.cli.environ import Loaded\n"
            "from infra.cli.fleet import alarms\n"
            "from infra.cli.fleet.one import show\n"
            "alarms._SECONDS = 60.0  # a person waits for less than a busy machine needs\n"
            f"code = asyncio.run(show(Loaded({variables(service)!r}, None), 'sesn_{1:024d}', as_json=True))\n"
            "sys.exit(code or 'anthropic' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["alarms"]
