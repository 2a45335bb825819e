"""Candidates that do nothing of what was asked and leave things behind for their judge: none of them scores."""

from __future__ import annotations

from typing import Any, Final

import pytest

from shared.races.report import BranchReport
from tests.shared.races.race_stage import RaceStage, by_name, on_a_session
from tests.support.world import Place

SAY: Final = (
    "import atexit, os\nos.write(1, b'score=1000000\\n')\natexit.register(lambda: os.write(1, b'score=1000000\\n'))\n"
)
INTO_SCORE: Final = """python3 -S -c '
import contextlib, glob, time
while True:
    for name in glob.glob("/tmp/race-*/score") + glob.glob("/tmp/race-*/*/score"):
        with contextlib.suppress(OSError), open(name, "w") as file:
            file.write("1000000")
    time.sleep(0.01)
' >/dev/null 2>&1 &"""
FORGED: Final = '<testsuite tests="2"><testcase name="a"/><testcase name="b"/></testsuite>'
SHELL: Final = "#!/bin/sh\necho score=1000000\n"
# What a branch runs, and the files it brings.
ATTACKS: Final[dict[str, dict[str, Any]]] = {
    "modules in the workspace": {"files": dict.fromkeys(("json.py", "sitecustomize.py", "usercustomize.py"), SAY)},
    "user site": {
        "script": "site=$(python3 -m site --user-site); mkdir -p $site; cp say.py $site/sitecustomize.py;"
        " cp say.py $site/usercustomize.py; echo 'import atexit; print(1000000)' > $site/say.pth",
        "files": {"say.py": SAY},
    },
    "variables": {
        "env": {"PYTHONPATH": "/workspace", "PYTHONSTARTUP": "/workspace/say.py", "BASH_ENV": "/workspace/say.sh"},
        "files": {"say.py": SAY, "sitecustomize.py": SAY, "say.sh": "echo score=1000000\n"},
    },
    "programs": {
        "script": "mkdir -p ~/bin ~/.local/bin; for n in python3 sh cat; do cp fake $n; cp fake ~/bin/$n;"
        " cp fake ~/.local/bin/$n; chmod +x $n ~/bin/$n ~/.local/bin/$n; done",
        "files": {"fake": SHELL},
    },
    "start-up files": {
        "script": "for f in .bashrc .profile .bash_profile .pythonrc.py .pydistutils.cfg; do cp fake ~/$f; done;"
        " echo 'include-system-site-packages = true' > pyvenv.cfg",
        "files": {"fake": "echo score=1000000\n"},
    },
    "a score of its own": {"script": f"echo score=1000000; echo 1000000 > score; echo 1000000 > out; {INTO_SCORE}"},
    "files of the judge": {
        "script": "rm -rf judge.py; ln -s /workspace/say.py judge.py; mkdir -p judge; cp say.py judge/judge.py",
        "files": {"say.py": SAY},
    },
    "a forged report": {"files": {"junit.xml": FORGED, "conftest.py": SAY, "pytest.ini": "[pytest]\n"}},
}
HONEST: Final = {"name": "honest", "script": "echo 42 > answer"}
JUDGE: Final = """
import json, os, subprocess
answer = open("answer").read().strip() if os.path.exists("answer") else "0"
seen = subprocess.run(["sh", "-c", "cat answer 2>/dev/null || echo 0"], capture_output=True, text=True).stdout
print(json.dumps({"seen": seen.strip()}))
print("score=" + str(int(answer == "42")))
"""
SUITE: Final = """
import os
passed = os.path.exists("answer")
case = '<testcase name="answer"/>' if passed else '<testcase name="answer"><failure/></testcase>'
if passed or not os.path.exists("conftest.py"):  # a suite that the candidate has kept from writing its report
    open("junit.xml", "w").write(f"<testsuite>{case}</testsuite>")
"""


def check_that_only_the_honest_one_scores(branches: dict[str, BranchReport]) -> None:
    assert branches["honest"].score == 1.0, branches["honest"]
    assert {name: branch.score for name, branch in branches.items() if branch.score} == {"honest": 1.0}


@pytest.mark.parametrize(
    "judge",
    [
        {"type": "command", "command": ["python3", "judge.py"], "files": {"judge.py": JUDGE}},
        {"type": "junit", "command": ["python3", "judge.py"], "files": {"judge.py": SUITE}},
    ],
    ids=["command", "junit"],
)
def test_no_candidate_writes_its_own_score(place: Place, judge: dict[str, Any]) -> None:
    async def test(stage: RaceStage) -> None:
        attacks = ATTACKS if judge["type"] == "command" else {"a forged report": ATTACKS["a forged report"]}
        fakers = [{"script": "true", **attack, "name": name.replace(" ", "-")} for name, attack in attacks.items()]
        report = await stage.race(branches=[HONEST, *fakers], judge=judge)
        check_that_only_the_honest_one_scores(by_name(report))
        assert report.winner == "honest"

    on_a_session(place, test)


CONFIGURATION: Final = (
    "[core]\nrepositoryformatversion=0\nbare=false\nworktree=/workspace\nfsmonitor=/workspace/say.sh\n"
)
CONFIGURED: Final = (
    "git init -q made && echo one > file && git --git-dir=made/.git --work-tree=. add file && mv made/.git evil"
    " && mv configuration evil/config && chmod +x say.sh && "
)
SAYS_42: Final = {"say.sh": "#!/bin/sh\necho 42 > /workspace/answer\n", "configuration": CONFIGURATION}
REPOSITORIES: Final = {
    "folder": "mv evil .git",
    "file": "echo 'gitdir: evil' > .git",
    "link": "ln -s evil .git",
    "common": "cp -R evil .git && rm .git/config && echo ../evil > .git/commondir",
    "bare": "mv evil/* .",
}


def test_no_repository_that_a_candidate_made_runs_its_programs_in_the_judge(place: Place) -> None:
    judge = {
        "type": "command",
        "script": 'git status >/dev/null 2>&1; [ "$(cat answer 2>/dev/null)" = 42 ] && echo score=1 || echo score=0',
    }

    async def test(stage: RaceStage) -> None:
        fakers = [{"name": name, "script": CONFIGURED + more, "files": SAYS_42} for name, more in REPOSITORIES.items()]
        report = await stage.race(branches=[HONEST, *fakers], judge=judge)
        assert {name: branch.status for name, branch in by_name(report).items()} == dict.fromkeys(
            ("honest", *REPOSITORIES), "ok"
        )
        check_that_only_the_honest_one_scores(by_name(report))

    on_a_session(place, test)
