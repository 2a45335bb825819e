"""What a candidate may try against its race: to be its own judge, to live on, to flood."""

from __future__ import annotations

import time
from typing import Final

import pytest

from tests.shared.races.race_stage import RaceStage, by_name, on_a_session
from tests.support.world import Place

AGAIN_AND_AGAIN: Final = """
import contextlib, time
while True:
    with contextlib.suppress(OSError), open("score.sh", "w") as file:
        file.write("echo 1000\\n")
    time.sleep(0.001)
"""


def test_a_candidate_cannot_replace_its_judge(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        cheat = (
            "echo 'echo 1000' > score.sh; chmod 444 score.sh; "
            f"python3 -S -c '{AGAIN_AND_AGAIN}' >/dev/null 2>&1 & "
            f"setsid python3 -S -c '{AGAIN_AND_AGAIN}' >/dev/null 2>&1 & true"
        )
        report = await stage.race(
            branches=[{"name": "cheat", "script": cheat}, {"name": "linked", "script": "ln -s /dev/null score.sh"}],
            judge={"type": "command", "command": ["sh", "score.sh"], "files": {"score.sh": "sleep 0.3; echo 1\n"}},
        )
        assert [branch.score for branch in report.branches] == [1.0, 1.0]

    on_a_session(place, test)


@pytest.mark.parametrize("detached", [True, False], ids=["detached", "forking"])
def test_a_candidate_that_runs_on_cannot_write_its_own_score(place: Place, detached: bool) -> None:
    """Neither one that leaves its session and its environment behind, nor one that is never long in one process."""
    if place.world.tensorlake_admin.get("isolation")["level"] == "plain":
        pytest.skip("a plain sandbox shares its user with the whole machine: there only marked processes are ended")
    program = (
        "import glob, os, sys, time\n"
        "end = time.time() + 20\n"
        "while time.time() < end:\n"
        "    if sys.argv[1] == 'fork' and os.fork():\n"
        "        os._exit(0)\n"
        "    for out in glob.glob('/tmp/race-*/out'):\n"
        "        with open(out, 'a') as file:\n"
        "            file.write('\\n999\\n')\n"
        "    time.sleep(0.002)\n"
    )
    way = "stay" if detached else "fork"
    start = f"setsid env -i PATH=$PATH python3 /tmp/cheat.py {way} >/dev/null 2>&1 </dev/null &"

    async def test(stage: RaceStage) -> None:
        report = await stage.race(
            branches=[
                {"name": "cheat", "script": f"cat > /tmp/cheat.py; {start} sleep 0.5", "stdin": program},
                {"name": "honest", "script": "true"},
            ],
            judge={"type": "command", "script": "sleep 0.3; echo 1", "files": {"s.py": "x"}},
        )
        assert [(branch.status, branch.score) for branch in report.branches] == [("ok", 1.0)] * 2, report
        assert "999" not in by_name(report)["cheat"].judge_tail

    on_a_session(place, test)


def test_what_a_branch_leaves_running_does_not_hold_it_up(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        began = time.monotonic()
        report = await stage.race(n=1, script="sleep 60 & echo done")
        assert report.branches[0].stdout_tail == "done"
        assert time.monotonic() - began < 50

    on_a_session(place, test)


def test_a_flood_of_output_comes_back_as_its_tail(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        report = await stage.race(n=1, script="seq 1 2000000; echo the end")
        assert report.branches[0].status == "ok"
        assert report.branches[0].stdout_tail.endswith("\n2000000\nthe end")
        assert len(report.branches[0].stdout_tail) == 4_000

    on_a_session(place, test)


def test_a_program_that_does_not_exist_and_one_that_kills_itself_have_failed(place: Place) -> None:
    async def test(stage: RaceStage) -> None:
        report = await stage.race(
            branches=[{"name": "none", "command": ["no-such-program"]}, {"name": "dead", "script": "kill -SEGV $$"}]
        )
        got = by_name(report)
        assert (got["none"].status, got["none"].exit_code) == ("failed", 127)
        assert (got["dead"].status, got["dead"].exit_code) == ("failed", 139)

    on_a_session(place, test)
