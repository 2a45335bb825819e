"""A root as the sandboxes' own: a session, a race with its promotion, and doctor's look from inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anthropic

from image.session.claim import AGENT_USER
from infra.cli.demos.race import REPOSITORY, WINNER, race_on
from infra.local.platform import Options, Platform
from infra.local.process import ServiceStartError
from tests.image_check.findings import RootFinding
from tests.image_check.steps import BuiltRoot
from tests.support.checkout import ROOT

_SECONDS: Final = 300.0
_WHO: Final = "id -un; python3 -c 'import sys; print(sys.version_info[:3])'"
_SEES: Final = "python3 -B test_median.py && echo the-test-passes"
_FOREIGN: Final = ("ANTHROPIC_", "TENSORLAKE_", "SANDBOX_", "HANDS_", "OFFLINE", "FUNCTIONS_", "WEBHOOK_")


def on_the_platform(built: BuiltRoot, place: Path) -> Iterator[RootFinding]:
    """A platform that does not start with this root is a finding."""
    try:
        with Platform(Options(image_root=built.root.directory, data_dir=place / "platform")) as platform:
            platform.serve_functions()
            yield from _used(platform, built, place)
    except (ServiceStartError, subprocess.TimeoutExpired) as error:
        yield RootFinding("the platform with this root", "starts and serves", str(error))


def _used(platform: Platform, built: BuiltRoot, place: Path) -> Iterator[RootFinding]:
    keys = platform.environ
    with anthropic.Anthropic(api_key=keys["ANTHROPIC_API_KEY"], base_url=keys["ANTHROPIC_BASE_URL"]) as api:
        session = api.beta.sessions.create(
            agent=keys["ANTHROPIC_AGENT_ID"], environment_id=keys["ANTHROPIC_ENVIRONMENT_ID"]
        ).id
    said = _turn(platform, session, "\n".join([f"$ {_WHO}", *REPOSITORY]))
    wanted = built.root.run(["/bin/bash", "-c", _WHO], env=built.environ, user=AGENT_USER, folder=built.folder)
    yield RootFinding("a sandbox's user and Python are the root's", " ".join(wanted.stdout.split()), " ".join(said[0]))
    race = place / "race.json"
    race.write_text(json.dumps(race_on(session)))
    report = json.loads(_hands(platform, "fork", str(race), "--json", "--url", platform.functions_url).stdout or "{}")
    promotion = report.get("promotion") or {}
    yield RootFinding("a race there, its winner", WINNER, str(report.get("winner")))
    yield RootFinding("  its promotion into the session", "True", str(promotion.get("done")))
    yield RootFinding("  and nothing is left of it", "[]", str(report.get("leftovers")))
    seen = _turn(platform, session, f"$ {_SEES}")
    yield RootFinding("  the session's next turn sees it", "the-test-passes", " ".join(seen[-1]))
    checked = json.loads(_hands(platform, "doctor", "--json").stdout)
    wrong = [f"{each['code']} {each['seen']}" for each in checked["findings"] if each["severity"] == "error"]
    yield RootFinding("what doctor finds wrong inside", "", "; ".join(wrong))


def _turn(platform: Platform, session: str, prompt: str) -> list[list[str]]:
    """The words of each tool's result."""
    done = _hands(platform, "session", "--json", "--session", session, prompt)
    results = []
    for line in done.stdout.splitlines():
        event: dict[str, Any] = json.loads(line)
        if event.get("type") == "user.tool_result":
            results.append(" ".join(block.get("text", "") for block in event.get("content") or ()).split())
    return results or [[done.stderr.strip()[-300:]]]


def _hands(platform: Platform, *args: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *args],
        cwd=ROOT,
        env={**environ, **platform.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
