"""What `make drift` says of a trial."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.drift.__main__ import EnvironmentNotMade, here, plan
from tests.drift.report import Outcome, Trial, outcome_of, page
from tests.support.checkout import ROOT

JUNIT = b"""<testsuites><testsuite name="pytest">
<testcase classname="tests.a" name="test_good" />
<testcase classname="tests.a" name="test_bad"><failure message="no">assert 0</failure></testcase>
<testcase classname="tests.b" name="test_broken"><error message="no">fixture</error></testcase>
<testcase classname="tests.b" name="test_elsewhere"><skipped message="not here" /></testcase>
</testsuite></testsuites>"""


def test_an_outcome_has_what_differs_from_the_locks_and_what_failed() -> None:
    output = "RERUN tests/a.py::test_good\nRERUN tests/a.py::test_bad\n1 failed\n"
    locked, found = {"a": "2", "b": "1", "c": "1"}, {"a": "1", "b": "1", "d": "1"}
    outcome = outcome_of(Trial("oldest", "3.11"), locked, found, JUNIT, output)
    assert outcome == Outcome(
        Trial("oldest", "3.11"),
        {"a": ("2", "1")},
        passed=1,
        skipped=1,
        failed=("tests.a::test_bad: no", "tests.b::test_broken: no"),
        again=("tests/a.py::test_good",),
    )
    assert outcome.summary() == "1 passed, 1 skipped, 2 failed; tests.a::test_bad: no; tests.b::test_broken: no"
    said = page([outcome, Outcome(Trial("newest", "3.13"), {}, 4, 0, ())], absent=["3.14"])
    assert "| - | 3.14 | not here: not tried |" in said
    assert "| oldest | 3.11 | 1 | 1 | 1 | 2 |" in said and "| newest | 3.13 | 0 | 4 | 0 | 0 |" in said
    assert "- a 2 -> 1" in said and "- FAILED tests.b::test_broken: no" in said
    assert "- passed at its second try: tests/a.py::test_good" in said


def test_old_releases_are_tried_on_the_oldest_python_and_new_ones_on_each() -> None:
    assert list(map(str, plan(["3.11", "3.13"], None))) == [
        "newest releases, Python 3.11",
        "newest releases, Python 3.13",
        "oldest releases, Python 3.11",
    ]
    assert plan(["3.12"], "oldest") == [Trial("oldest", "3.12")]


def test_the_python_that_runs_is_found_and_one_that_is_not_there_is_said() -> None:
    own = "{}.{}".format(*sys.version_info[:2])
    assert here([own, "3.99"]) == [own]
    with pytest.raises(EnvironmentNotMade, match=r"3\.99"):
        here(["3.99"])
    done = subprocess.run(
        [sys.executable, "-m", "tests.drift", "--python", "3.99"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "no Python 3.99 is here" in done.stderr and "Traceback" not in done.stderr
