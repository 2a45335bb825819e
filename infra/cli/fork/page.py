"""A race's report as one page of HTML that needs nothing else: no script, no font, no image, no network.

Whatever a branch wrote may stand in it. The template (page.html.j2) escapes every value, `_printable` takes terminal
sequences out of every text before that, and the page's own policy allows the one style sheet by its digest and nothing
more: not even what slipped through could run, load or send anything (tests/infra/cli/fork/test_page.py).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from infra.cli.fork.display import plain, promoted, said, why
from shared.races.report import BranchReport, Phase, RaceReport, RaceSpan
from shared.races.request import RaceRequest
from shared.races.scores import rank

_HERE: Final = Path(__file__).parent
STYLE: Final = (_HERE / "page.css").read_text(encoding="utf-8")
_DIGEST: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY: Final = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"
_WIDTH: Final = 1_000  # units of a bar's drawing, whatever its width on the screen
_LEAST: Final = 3.0
_SHOWN: Final[dict[Phase, str]] = {
    "source": "source",
    "setup": "set-up",
    "checkpoint": "checkpoint",
    "boot": "boot",
    "files": "files",
    "run": "run",
    "diff": "diff",
    "judge": "judge",
    "artifacts": "artifacts",
    "promote": "promotion",
    "reap": "end",
}


@dataclass(frozen=True, slots=True)
class _Part:
    """One phase in a bar, in the drawing's units."""

    phase: Phase
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class _Bar:
    name: str
    kind: str
    said_aloud: str
    parts: tuple[_Part, ...]


def render(report: RaceReport, request: RaceRequest | None = None, *, back: str = "") -> str:
    """The page. The request says what was asked, where it is known; `back` is a link to where it was opened."""
    branches = _in_order(report, higher_is_better=request.higher_is_better if request is not None else True)
    end = max(report.seconds, *(span.end for span in report.timeline), 0.001) if report.timeline else 0.0
    return _environment().get_template("page.html.j2").render(
        report=report,
        back=back,
        branches=branches,
        policy=POLICY,
        style=Markup(STYLE),  # noqa: S704  # our own file; an escaped style sheet would not match its digest
        promotion=promoted(report.promotion) if report.promotion is not None else "",
        facts=list(_facts(report, request)),
        legend=[(phase, _SHOWN[phase]) for phase in _SHOWN if any(span.phase == phase for span in report.timeline)],
        bars=list(_bars(report, branches, end)),
        end=end,
        width=_WIDTH,
        cells=_cells,
        tails=_tails,
        said=said,
        why=why,
    )  # fmt: skip


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _printable(value: Any) -> Any:
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _in_order(report: RaceReport, *, higher_is_better: bool) -> list[BranchReport]:
    def place(branch: BranchReport) -> tuple[bool, bool, tuple[float, float, int]]:
        able = branch.status == "ok"
        order = rank(branch, higher_is_better=higher_is_better) if able else (0.0, 0.0, branch.index)
        return branch.name != report.winner, not able, order

    return sorted(report.branches, key=place)


def _facts(report: RaceReport, request: RaceRequest | None) -> Iterator[tuple[str, str]]:
    yield "race", report.race_id
    yield "took", f"{report.seconds:.1f} s"
    yield "sandbox seconds", f"{report.sandbox_seconds:.1f}"
    yield "speed-up", f"{report.speedup:g} ×" if report.speedup is not None else "–"
    yield "branches", str(len(report.branches))
    if request is not None:
        yield "source", _source(request)
        yield "judge", _judge(request)
    if report.checkpoint:
        yield "checkpoint", report.checkpoint
    yield "ended", f"{len(report.reaped)} sandboxes and checkpoints"


def _source(request: RaceRequest) -> str:
    given = request.source.model_dump(exclude_none=True)
    return ", ".join(f"{name.removesuffix('_id')} {value}" for name, value in given.items())


def _judge(request: RaceRequest) -> str:
    better = "higher" if request.higher_is_better else "lower"
    accept = f", {request.accept:g} ends the race" if request.accept is not None else ""
    least = f", at least {request.min_score:g}" if request.min_score is not None else ""
    kinds = [step.judge.type.replace("_", " ") for step in request.panel]
    kind = ", ".join(kinds)
    return kind if kinds == ["exit code"] else f"{kind}, {better} is better{least}{accept}"


def _bars(report: RaceReport, branches: list[BranchReport], end: float) -> Iterator[_Bar]:
    if not report.timeline:
        return
    whole = [span for span in report.timeline if span.branch is None]
    if whole:
        yield _bar("the race", "race", whole, end)
    for branch in branches:
        spans = [span for span in report.timeline if span.branch == branch.name]
        yield _bar(branch.name, "winner" if branch.name == report.winner else "", spans, end)


def _bar(name: str, kind: str, spans: list[RaceSpan], end: float) -> _Bar:
    aloud = ", ".join(f"{_SHOWN[span.phase]} {span.start:.2f} to {span.end:.2f} s" for span in spans) or "not begun"
    parts = (
        _Part(span.phase, _WIDTH * span.start / end, max(_LEAST, _WIDTH * (span.end - span.start) / end))
        for span in spans
    )
    return _Bar(name, kind, aloud, tuple(parts))


def _cells(branch: BranchReport) -> tuple[str, ...]:
    return (
        "" if branch.score is None else f"{branch.score:g}",
        "" if branch.exit_code is None else str(branch.exit_code),
        *(_seconds(each) for each in (branch.boot_seconds, branch.run_seconds, branch.judge_seconds)),
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _tails(branch: BranchReport) -> list[tuple[str, str]]:
    """Title and text of each output that has one."""
    outputs = (
        ("standard output", branch.stdout_tail),
        ("standard error", branch.stderr_tail),
        ("judge", branch.judge_tail),
    )
    return [(title, tail) for title, tail in outputs if tail.strip()]
