"""The command as people and programs meet it: output, exit code, checks that break."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from infra.cli.doctor import command, report, runner
from infra.cli.doctor.command import DoctorOptions
from infra.cli.doctor.findings import Finding, Say, Severity, error, exit_code, info, ok, warning
from infra.cli.doctor.runner import DoctorCheck
from infra.local import discovery
from tests.support.signing import KEY
from tests.support.world import Place

Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs the command in a folder of its own, and leaves this process's environment alone."""
    monkeypatch.setattr("infra.cli.environ.apply", lambda *_: None)

    def run(options: DoctorOptions, **environ: str) -> tuple[int, str]:
        code = command.run(environ, options, tmp_path)
        return code, capsys.readouterr().out

    return run


def test_with_nothing_configured_it_says_how_to_start(doctor: Doctor) -> None:
    code, out = doctor(DoctorOptions())
    assert code == 2
    assert "HANDS100" in out and "make up" in out and ".env" in out


def test_a_dotenv_file_that_cannot_be_read_is_a_finding(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("this is no assignment\n", encoding="utf-8")
    code, out = doctor(DoctorOptions())
    assert code == 2 and "HANDS101" in out


def test_the_offline_platform_is_examined_whole_with_a_probe(doctor: Doctor, place: Place, tmp_path: Path) -> None:
    roomy = {"RECLAIM_SECONDS": "90", "BIND_SECONDS": "30", "HANDOVER_SECONDS": "30", "STRANDED_SECONDS": "180"}
    roomy |= {"DRAIN_DEADLINE_SECONDS": "110"}
    variables = {**place.environ, **roomy, "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY}
    with discovery.announced(tmp_path, variables):
        code, out = doctor(DoctorOptions(json=True))
    told = json.loads(out)
    bad = [row for row in told["findings"] if row["severity"] in ("warning", "error")]
    assert bad == [] and code == 0
    codes = {row["code"] for row in told["findings"]}
    assert codes >= {"HANDS101", "HANDS201", "HANDS203", "HANDS301", "HANDS401", "HANDS603", "HANDS605", "HANDS702"}
    assert all(row["why"] and row["fix"] and row["seen"] and row["group"] for row in told["findings"])
    assert told["where"].startswith("the offline platform")
    assert place.sandboxes() == []


def test_no_probe_makes_no_sandbox_and_says_what_is_not_known(doctor: Doctor, place: Place, tmp_path: Path) -> None:
    before = len(place.world.tensorlake_admin.get("state")["sandboxes"])
    with discovery.announced(tmp_path, place.environ):
        _, out = doctor(DoctorOptions(probe=False))
    assert "no probe sandbox was made" in out
    assert len(place.world.tensorlake_admin.get("state")["sandboxes"]) == before


def test_a_check_that_breaks_or_hangs_is_a_finding_and_what_it_found_before_is_kept() -> None:
    async def breaks(say: Say) -> None:
        say(ok("HANDS201", "found before"))
        raise RuntimeError("with a secret in its text")

    async def hangs(say: Say) -> None:
        await asyncio.Event().wait()

    findings = asyncio.run(runner.run([DoctorCheck("one", 60, breaks), DoctorCheck("other", 0.01, hangs)], at_once=1))
    assert [each.code for each in findings] == ["HANDS001", "HANDS001", "HANDS201"]
    assert "RuntimeError" in findings[0].seen and "secret" not in repr(findings)
    assert "0.01 s" in findings[1].seen


def test_no_more_checks_run_at_once_than_allowed() -> None:
    running, most = 0, 0

    async def look(say: Say) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    asyncio.run(runner.run([DoctorCheck(str(number), 60, look) for number in range(9)], at_once=3))
    assert most == 3


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([ok("HANDS101", ""), info("HANDS105", "")], 0),
        ([warning("HANDS106", ""), ok("HANDS101", "")], 1),
        ([warning("HANDS106", ""), error("HANDS101", "")], 2),
    ],
)
def test_the_worst_finding_is_the_exit_code(findings: list[Finding], code: int) -> None:
    assert exit_code(findings) == code


def test_colour_on_a_terminal_and_none_in_a_pipe() -> None:
    findings = [error("HANDS101", "X is not set"), ok("HANDS201", "well")]
    shown = {}
    for terminal in (True, False):
        out = io.StringIO()
        report.show(findings, "here", Console(file=out, force_terminal=terminal, no_color=False, highlight=False))
        shown[terminal] = out.getvalue()
    assert "\x1b[" in shown[True] and "\x1b" not in shown[False]
    lines = shown[False].splitlines()
    assert "  ✗ HANDS101  a setting is missing or malformed" in lines
    assert "      seen  X is not set" in lines and any(line.startswith("      fix   ") for line in lines)
    assert lines[-1] == "1 error, 0 warnings, 1 ok."
    assert Severity.ERROR.word == "error"
