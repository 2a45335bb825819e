"""A race as a person sees it: what was written by whoever it may be reaches no terminal raw."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from infra.cli.fork.display import RaceDisplay, conclusion, one_line, promoted, summary
from shared.races import events
from shared.races.report import Artifact, BranchReport, PromotionReport, RaceReport

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31mred\r\u202eflip\x00\x7f [bold]markup[/bold]"


def branch(name: str = "a", index: int = 0, **fields: object) -> BranchReport:
    return BranchReport.model_validate({"name": name, "index": index, "status": "ok", **fields})


def report(*branches: BranchReport, **fields: object) -> RaceReport:
    base = {
        "race_id": "r" * 12,
        "winner": None,
        "branches": tuple(branches),
        "checkpoint": None,
        "reaped": (),
        "leftovers": (),
        "timeline": (),
        "seconds": 2.0,
    }
    return RaceReport.model_validate(base | fields)


def text_of(shown: object, width: int = 120) -> str:
    console = Console(file=io.StringIO(), force_terminal=False, width=width, highlight=False)
    console.print(shown)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def rows_of(shown: object) -> list[list[str]]:
    return [line.split() for line in text_of(shown).splitlines()]


def clock(at: list[float]) -> Callable[[], float]:
    return lambda: at[0]


def controls(text: str) -> list[str]:
    return [character for character in text if character != "\n" and not character.isprintable()]


def test_a_row_a_branch_with_state_time_score_and_last_line() -> None:
    at = [100.0]
    view = RaceDisplay(clock(at))
    view.tell(events.RaceBegan(race_id="r1", branches=("a", "b", "c"), at=0.0))
    at[0] = 101.0
    for name in ("a", "b"):
        view.tell(events.PhaseBegan(branch=name, phase="boot", at=1.0))
        view.tell(events.PhaseBegan(branch=name, phase="run", at=1.5))
    view.tell(events.OutputLine(branch="b", line="42 %", at=2.0))
    view.tell(events.BranchDecided(report=branch("a", score=0.5, stdout_tail="one\ntwo"), at=3.5))
    at[0] = 105.0
    assert rows_of(view.live()) == [
        ["branch", "state", "seconds", "score", "last", "line"],
        ["a", "ok", "2.5", "0.5", "two"],
        ["b", "running", "4.0", "42", "%"],
        ["c", "waiting"],
        ["racing,", "5.0", "s"],
    ]


def test_in_a_pipe_each_event_is_at_most_a_line() -> None:
    view = RaceDisplay()
    said = [
        view.tell(event)
        for event in (
            events.RaceBegan(race_id="r1", branches=("a", "b"), at=0.0),
            events.PhaseBegan(branch=None, phase="checkpoint", at=0.1),
            events.PhaseBegan(branch="a", phase="boot", at=0.2),
            events.PhaseBegan(branch="a", phase="files", at=0.3),
            events.OutputLine(branch="a", line="half", at=0.5),
            events.BranchDecided(report=branch(status="failed", reason="ended with exit code 3"), at=0.6),
            events.Promoted(promotion=PromotionReport(kind="snapshot", done=True, snapshot_id="s1"), at=0.7),
            events.Reported(report=report()),
        )
    ]
    assert [[line.text.strip() for line in lines] for lines in said] == [
        ["race r1: 2 branches"],
        ["0.10 s  taking the checkpoint"],
        ["0.20 s  a: starting"],
        [],
        ["0.50 s  a: half"],
        ["0.60 s  a: failed (ended with exit code 3)"],
        ["0.70 s  Promoted to a snapshot: s1"],
        [],
    ]
    assert view.report == report()


def test_the_winner_comes_first_then_who_was_scored_then_the_others() -> None:
    shown = report(
        branch("slow", 0, status="cancelled", reason="best was accepted"),
        branch("worse", 1, score=0.25, exit_code=0, run_seconds=1.0),
        branch("best", 2, score=1.0, exit_code=0, run_seconds=2.0),
        branch(
            "crash", 3, status="failed", reason="ended with exit code 3", stdout_tail="fine", stderr_tail="so\nboom"
        ),
        winner="best",
    )
    rows = rows_of(summary(shown, higher_is_better=True))[1:]
    assert [row[:3] for row in rows[:1]] == [["★", "best", "ok"]]
    assert [row[0] for row in rows[1:]] == ["worse", "slow", "crash"]
    assert "ended with exit code 3: boom" in text_of(summary(shown, higher_is_better=True))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"winner": "a", "speedup": 3.0, "reaped": ("x", "y")},
            ["a won; 2.0 s, 3 times", "2 sandboxes", "nothing is left"],
        ),
        ({"winner": "a", "speedup": 0.5}, ["a won; 2.0 s."]),
        ({}, ["Nobody won"]),
        ({"dry_run": True}, ["dry run"]),
        ({"deadline_passed": True}, ["deadline passed"]),
        ({"budget_spent": True}, ["max_sandbox_seconds are spent"]),
        ({"cancelled": True}, ["Nobody won", "was cancelled"]),
        ({"leftovers": ("box-1",)}, ["reconciler", "box-1"]),
        (
            {"promotion": PromotionReport(kind="workspace", done=False, reason="it changed", conflicts=("x",) * 9)},
            ["Not promoted", "it changed", "conflicts: x, x, x, x, x …"],
        ),
    ],
)
def test_the_conclusion_says(fields: dict[str, object], words: list[str]) -> None:
    said = "\n".join(line.text for line in conclusion(report(branch(), **fields)))
    assert [word for word in words if word not in said] == []


def test_a_promotion_in_a_line() -> None:
    done = PromotionReport(kind="workspace", done=True, added=1, changed=2, deleted=3)
    assert promoted(done) == "Promoted into the workspace: 1 added, 2 changed, 3 deleted."
    assert "keep-it" in promoted(PromotionReport(kind="keep", done=True, sandbox="keep-it"))


def test_nothing_that_controls_a_terminal_gets_through_from_anywhere() -> None:
    hostile = branch(
        HOSTILE,
        status="failed",
        reason=HOSTILE,
        stdout_tail=HOSTILE,
        stderr_tail=HOSTILE,
        artifacts=(Artifact(path=HOSTILE, size=1),),
    )
    promotion = PromotionReport(kind="workspace", done=False, reason=HOSTILE, conflicts=(HOSTILE,), failed=(HOSTILE,))
    full = report(hostile, promotion=promotion, leftovers=(HOSTILE,), winner=HOSTILE)
    view = RaceDisplay()
    lines = [
        *view.tell(events.RaceBegan(race_id=HOSTILE, branches=(HOSTILE,), at=0.0)),
        *view.tell(events.PhaseBegan(branch=HOSTILE, phase="boot", at=0.0)),
        *view.tell(events.OutputLine(branch=HOSTILE, line=HOSTILE, at=0.0)),
        *view.tell(events.BranchDecided(report=hostile, at=0.0)),
        *view.tell(events.Promoted(promotion=promotion, at=0.0)),
        *conclusion(full),
    ]
    shown = [line.text for line in lines] + [text_of(view.live()), text_of(summary(full, higher_is_better=True))]
    assert [text for text in shown if controls(text)] == []
    assert "[bold]markup[/bold]" in one_line(HOSTILE)  # nor is it taken for rich's own markup
    assert "[bold]" in shown[2]


@settings(max_examples=200)
@given(st.text(max_size=300))
def test_any_text_becomes_one_short_line(text: str) -> None:
    line = one_line(text)
    assert len(line) <= 160
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in line)
    assert not any(0xD800 <= ord(character) < 0xE000 or ord(character) in range(0x2028, 0x202F) for character in line)
