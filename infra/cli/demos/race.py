"""`make demo-race`: a session's repository has a failing test; five fixes race in copies of its sandbox, the first that
passes ends the race, its work is put into the session's workspace, and the session's next turn sees the test pass.

Everything is on this machine and ends with it. Exit code 0 only when all of that was seen to happen.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any, Final

from infra.cli.demos.play import DemoFailed, play
from infra.cli.demos.screens import Watcher
from infra.cli.environ import Loaded
from infra.cli.session.command import open_client, watch
from infra.cli.session.follow import Finish
from infra.cli.session.render import Line, LineStyle
from infra.cli.session.screen import Screen
from infra.local.platform import Isolation, Platform

_LONGEST_TURN: Final = 60.0
_PASSED: Final = "the test passes"
_TEST: Final = f"$ python3 -B test_median.py && echo {_PASSED}"

# What the brain is told; \n stands for a new line (infra/local/claude/grammar.py). -B: no byte code in the workspace.
REPOSITORY: Final = (
    r"write median.py: def median(numbers):\n    return sorted(numbers)[len(numbers) // 2]\n",
    r"write test_median.py: from median import median\n\nassert median([3, 1, 2]) == 2\n"
    r"assert median([4, 1, 3, 2]) == 2.5, 'the middle of four is between two'\n",
    _TEST,
)
_FIX: Final = """
def median(numbers):
    ordered, half = sorted(numbers), len(numbers) // 2
    return (ordered[half] + ordered[-half - 1]) / 2
"""
_WRONG: Final = """
def median(numbers):
    return sum(numbers) / len(numbers)
"""
# It knows cases that no candidate has seen. It is written when a candidate has ended, and -I keeps the candidate's
# modules from standing in for Python's.
_JUDGE: Final = """
import json, os, subprocess, sys

ASK = 'import json, runpy, sys; print(json.dumps(runpy.run_path("median.py")["median"](json.loads(sys.argv[1]))))'

def median(numbers):
    # In a process of its own: whatever the candidate prints, patches or ends there, the score is counted here.
    command = [sys.executable, "-I", "-B", "-c", ASK, json.dumps(numbers)]
    try:
        return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout)
    except (ValueError, subprocess.TimeoutExpired):
        return None

cases = [([3, 1, 2], 2), ([4, 1, 3, 2], 2.5), ([7], 7), ([9, 1], 5), ([1, 1, 9], 1), ([-5, 0, 5, 90], 2.5)]
right = sum(median(numbers) == middle for numbers, middle in cases)
with open(os.environ["SCORE_FILE"], "w") as file:
    file.write(str(right / len(cases)))
"""
WINNER: Final = "right-fast"


def race_on(session_id: str) -> dict[str, Any]:
    """The request, as a file for `make fork` would hold it."""

    def candidate(name: str, script: str, code: str = _FIX) -> dict[str, Any]:
        return {"name": name, "script": script, "files": {"candidate.py": code}}

    return {
        "source": {"session_id": session_id},
        "branches": [
            candidate("right-slow", "sleep 40; mv candidate.py median.py"),
            candidate("wrong", "mv candidate.py median.py", _WRONG),
            candidate("crash", "python3 -B candidate.py", "raise SystemExit('this fix does not even start')\n"),
            candidate("hang", "while true; do echo still thinking; sleep 1; done"),
            candidate(WINNER, "sleep 2; mv candidate.py median.py; python3 -B test_median.py && echo passed"),
        ],
        "judge": {"type": "command", "script": "python3 -B -I judge.py", "files": {"judge.py": _JUDGE}},
        "accept": 1,
        "promote": "workspace",
        "deadline": 120,
    }


def run(isolation: Isolation, page: Path | None = None) -> int:
    """The exit code. `page`: where the race's report goes as HTML."""
    # Good seconds of imports, while the services start.
    threading.Thread(target=__import__, args=("infra.cli.fork.command",), daemon=True).start()
    began = time.monotonic()

    def act(platform: Platform) -> str:
        platform.serve_functions()
        print("Offline, on this machine only. The brain is a script, not a model.\n", flush=True)
        asyncio.run(_play(platform, page))
        return (
            "Shown: five fixes raced from one state of a session's sandbox, the first right one ended the race, and "
            f"the session went on with it; {time.monotonic() - began:.1f} s."
        )

    return play(isolation, act)


async def _play(platform: Platform, page: Path | None) -> None:
    loaded = Loaded(platform.environ, None)
    async with open_client(loaded) as client:
        session = await client.beta.sessions.create(
            agent=platform.environ["ANTHROPIC_AGENT_ID"], environment_id=platform.environ["ANTHROPIC_ENVIRONMENT_ID"]
        )

        async def turn(prompt: str) -> list[str]:
            screen = Watcher()
            screen.say(Line("> " + prompt.replace("\n", "\n> "), LineStyle.QUIET))
            try:
                async with asyncio.timeout(_LONGEST_TURN):
                    finish = await watch(client, session.id, prompt, screen, offline=True)
            except TimeoutError:
                raise DemoFailed(f"a turn did not end within {_LONGEST_TURN:g} s") from None
            if finish is not Finish.DONE:
                raise DemoFailed("a turn did not end well")
            return screen.results

        Screen().say(Line(f"session {session.id}", LineStyle.STRONG))
        if any(_is_pass(result) for result in await turn("\n".join(REPOSITORY))):
            raise DemoFailed("the test should have failed before the race")
        before = _boxes(platform)
        await _race(loaded, race_on(session.id), page)
        if _boxes(platform) != before:
            raise DemoFailed("the race left sandboxes or snapshots behind")
        if not any(_is_pass(result) for result in await turn(_TEST)):
            raise DemoFailed("the session's next turn did not see the fix")


async def _race(loaded: Loaded, asked: dict[str, Any], page: Path | None) -> None:
    from infra.cli.fork.command import EXIT_INTERRUPTED, ForkOptions, RaceConsole, console_for_people
    from infra.cli.fork.command import run as race
    from shared.races.request import RaceRequest

    screen = Screen()
    screen.say(Line(f"\n> make fork: {', '.join(each['name'] for each in asked['branches'])}", LineStyle.QUIET))
    request = RaceRequest.model_validate_json(json.dumps(asked))
    console = RaceConsole(console_for_people())
    code = await race(loaded, request, ForkOptions(page=page), console)
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    report = console.display.report
    if report is None or report.winner != WINNER:
        raise DemoFailed("the race was not won by the fast right fix")
    if report.promotion is None or not report.promotion.done or report.leftovers:
        raise DemoFailed("the winner's work did not reach the workspace, or something was left over")
    unended = {branch.name for branch in report.branches if branch.status == "cancelled"}
    if not {"right-slow", "hang"} <= unended:
        raise DemoFailed("the first right fix should have ended the race")
    screen.say(Line(""))


def _is_pass(result: str) -> bool:
    return _PASSED in result.splitlines()


def _boxes(platform: Platform) -> list[tuple[str, str]]:
    """The sandboxes and snapshots that there are."""
    state = platform.tensorlake.get("state")
    boxes = [("sandbox", str(box["id"])) for box in state["sandboxes"] if box["status"] != "terminated"]
    snapshots = [("snapshot", str(row["id"])) for row in state["snapshots"] if row["status"] != "deleted"]
    return sorted(boxes + snapshots)
