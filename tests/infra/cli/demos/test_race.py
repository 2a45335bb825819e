"""`make demo-race`, start to end: what it shows is what happened, and it says no more than that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.cli.demos.race import WINNER, race_on
from infra.cli.fork.request import Flags, read_request
from tests.support.demos import play_demo

SESSION = "sesn_0a1B2c3D"


def test_the_session_goes_on_with_the_fix_that_won(tmp_path: Path) -> None:
    page = tmp_path / "race.html"
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = play_demo("race", "--report", str(page), environ=environ)
    assert done.exit_code == 0, done.stdout + done.stderr
    before, _, rest = done.stdout.partition("> make fork: ")
    race, _, after = rest.partition("\n> ")
    assert "AssertionError" in before and "← the test passes" not in before
    assert f"{WINNER} won" in race and "Promoted into the workspace: 0 added, 1 changed, 0 deleted." in race
    assert "nothing is left" in race
    assert "← the test passes" in after and "Everything that was started has ended." in after
    assert WINNER in page.read_text(encoding="utf-8")


def test_its_request_is_a_file_that_fork_takes(tmp_path: Path) -> None:
    file = tmp_path / "race.json"
    file.write_text(json.dumps(race_on(SESSION)), encoding="utf-8")
    names = {branch.name for branch in read_request(str(file), Flags()).candidates()}
    assert names == {WINNER, "right-slow", "wrong", "crash", "hang"}


@pytest.mark.parametrize(("name", "score"), [(WINNER, 1.0), ("right-slow", 1.0), ("wrong", 4 / 6)])
def test_its_judge_tells_right_from_wrong(tmp_path: Path, name: str, score: float) -> None:
    race = race_on(SESSION)
    (code,) = (branch["files"]["candidate.py"] for branch in race["branches"] if branch["name"] == name)
    (tmp_path / "median.py").write_text(code, encoding="utf-8")
    (tmp_path / "judge.py").write_text(race["judge"]["files"]["judge.py"], encoding="utf-8")
    written = tmp_path / "score"
    subprocess.run(
        [sys.executable, "-I", "judge.py"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "SCORE_FILE": str(written)},
        check=True,
        timeout=60,
    )
    assert float(written.read_text(encoding="utf-8")) == pytest.approx(score)
