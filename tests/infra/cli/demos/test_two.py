"""`make demo-two`, start to end: each environment has its own, and the trouble of one is not the other's."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.support.demos import play_demo

_DONE = re.compile(r"^  (web|docs) +(sesn_\w+)  done in [\d.]+ s   (web|docs): set up for (web|docs)$", re.MULTILINE)


def test_i9_one_environments_trouble_stays_its_own(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "COLUMNS": "200"}
    done = play_demo("two", environ=environ)
    assert done.exit_code == 0, done.stdout + done.stderr
    opening, both, revoked, renewed, hanging, well, ps = re.split(
        r"^(?:A session in each|The key of docs|docs gets|Each call|The queue of docs|> make ps).*$",
        done.stdout,
        flags=re.MULTILINE,
    )
    environments = re.findall(r"^  (?:web|docs) +(env_\w+) ", opening, re.MULTILINE)
    assert len(set(environments)) == 2
    assert "image agent-cli, may reach pypi.org" in opening and "image agent-cli-docs" in opening
    served = [[found[0] for found in _DONE.findall(part)] for part in (both, revoked, renewed, hanging, well)]
    assert sorted(served.pop(0)) == ["docs", "web"]
    assert served == [["web"], ["docs"], ["web"], ["docs"]]  # in trouble it waits, and then it is served
    assert all(name == variable == written for name, _, variable, written in _DONE.findall(done.stdout))
    sessions = {session for _, session, _, _ in _DONE.findall(done.stdout)}
    assert len(sessions) == 6 and all(session in ps for session in sessions)
    assert all(ps.count(environment) == 3 for environment in environments)
    assert "Everything that was started has ended." in ps
