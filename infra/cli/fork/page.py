"""A race's report as one page of HTML that needs nothing else: no script, no font, no image, no network.

Whatever a branch wrote may stand in it, so every text is escaped, and the page's own policy allows the one style sheet
by its digest and nothing more: not even what slipped through could run, load or send anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Final

from infra.cli.fork.display import plain, promoted, said, why
from shared.races.report import Artifact, BranchReport, Phase, RaceReport, Span
from shared.races.request import RaceRequest
from shared.races.scores import rank

STYLE: Final = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
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
    "judge": "judge",
    "artifacts": "artifacts",
    "promote": "promotion",
    "reap": "end",
}


def render(report: RaceReport, request: RaceRequest | None = None) -> str:
    """The page. The request says what was asked, where it is known."""
    higher = request.higher_is_better if request is not None else True
    branches = _in_order(report, higher_is_better=higher)
    body = "\n".join(
        [*_head(report, request), *_timeline(report, branches), *_scores(report, branches), *_details(report, branches)]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>Race {_text(report.race_id)}: {_text(report.winner or 'no winner')}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _in_order(report: RaceReport, *, higher_is_better: bool) -> list[BranchReport]:
    def place(branch: BranchReport) -> tuple[bool, bool, tuple[float, float, int]]:
        able = branch.status == "ok"
        order = rank(branch, higher_is_better=higher_is_better) if able else (0.0, 0.0, branch.index)
        return branch.name != report.winner, not able, order

    return sorted(report.branches, key=place)


def _head(report: RaceReport, request: RaceRequest | None) -> Iterator[str]:
    result = f"<strong>{_text(report.winner)}</strong> won" if report.winner is not None else "Nobody won"
    yield f"<header>\n<h1>{result}</h1>"
    if report.dry_run:
        yield "<p>A dry run: nothing was begun.</p>"
    if report.deadline_passed:
        yield '<p class="wrong">The race&rsquo;s deadline passed: what finished by then was judged.</p>'
    if report.promotion is not None:
        yield f"<p{'' if report.promotion.done else _CLASS_WRONG}>{_text(promoted(report.promotion))}</p>"
        for word in ("conflicts", "overtaken", "failed", "skipped"):
            paths: tuple[str, ...] = getattr(report.promotion, word)
            if paths:
                yield f"<p>{word}: {_codes(paths)}</p>"
    yield "</header>\n<dl>"
    facts = {
        "race": _text(report.race_id),
        "took": f"{report.seconds:.1f} s",
        "speed-up": f"{report.speedup:g} &times;" if report.speedup is not None else "&ndash;",
        "branches": str(len(report.branches)),
        "source": _text(_source(request)) if request is not None else "",
        "judge": _text(_judge(request)) if request is not None else "",
        "checkpoint": _text(report.checkpoint or ""),
        "ended": f"{len(report.reaped)} sandboxes and checkpoints",
    }
    for name, value in facts.items():
        if value:
            yield f"<div><dt>{name}</dt><dd>{value}</dd></div>"
    yield "</dl>"
    if report.leftovers:
        yield f'<p class="wrong">Not known to have ended, and left to the reconciler: {_codes(report.leftovers)}</p>'


_CLASS_WRONG: Final = ' class="wrong"'


def _source(request: RaceRequest) -> str:
    given = request.source.model_dump(exclude_none=True)
    return ", ".join(f"{name.removesuffix('_id')} {value}" for name, value in given.items())


def _judge(request: RaceRequest) -> str:
    better = "higher" if request.higher_is_better else "lower"
    accept = f", {request.accept:g} ends the race" if request.accept is not None else ""
    least = f", at least {request.min_score:g}" if request.min_score is not None else ""
    kind = request.judge.type.replace("_", " ")
    return kind if request.judge.type == "exit_code" else f"{kind}, {better} is better{least}{accept}"


# -------------------------------------------------------------------------------------------------------- the timeline


def _timeline(report: RaceReport, branches: Iterable[BranchReport]) -> Iterator[str]:
    if not report.timeline:
        return
    end = max(report.seconds, *(span.end for span in report.timeline), 0.001)
    phases = [phase for phase in _SHOWN if any(span.phase == phase for span in report.timeline)]
    yield '<section>\n<h2>Timeline</h2>\n<ul class="legend">'
    for phase in phases:
        yield f'<li><svg viewBox="0 0 10 10" aria-hidden="true">{_rect(phase, 0, 10, 10)}</svg>{_SHOWN[phase]}</li>'
    yield '</ul>\n<ol class="bars">'
    whole = [span for span in report.timeline if span.branch is None]
    if whole:
        yield _bar("the race", "race", whole, end)
    for branch in branches:
        spans = [span for span in report.timeline if span.branch == branch.name]
        yield _bar(branch.name, "winner" if branch.name == report.winner else "", spans, end)
    yield f'</ol>\n<p class="axis"><span>0 s</span><span>{end / 2:.1f} s</span><span>{end:.1f} s</span></p>\n</section>'


def _bar(name: str, kind: str, spans: list[Span], end: float) -> str:
    said_aloud = (
        ", ".join(f"{_SHOWN[span.phase]} {span.start:.2f} to {span.end:.2f} s" for span in spans) or "not begun"
    )
    drawn = "".join(
        _rect(span.phase, _WIDTH * span.start / end, max(_LEAST, _WIDTH * (span.end - span.start) / end), 16)
        for span in spans
    )
    picture = (
        f'<svg viewBox="0 0 {_WIDTH} 16" preserveAspectRatio="none" role="img">'
        f"<title>{_text(name)}: {said_aloud}</title>{drawn}</svg>"
    )
    return f'<li class="{kind}"><span class="name">{_text(name)}</span>{picture}</li>'


def _rect(phase: Phase, x: float, width: float, height: int) -> str:
    return f'<rect class="{phase}" x="{x:.1f}" y="0" width="{width:.1f}" height="{height}"/>'


# ---------------------------------------------------------------------------------------------------------- the scores


def _scores(report: RaceReport, branches: Iterable[BranchReport]) -> Iterator[str]:
    yield '<section>\n<h2>Scores</h2>\n<div class="scroll"><table>\n<thead><tr><th>branch</th><th>state</th>'
    yield "<th>score</th><th>exit</th><th>boot s</th><th>run s</th><th>judge s</th></tr></thead>\n<tbody>"
    for branch in branches:
        won = branch.name == report.winner
        cells = (
            "" if branch.score is None else f"{branch.score:g}",
            "" if branch.exit_code is None else str(branch.exit_code),
            *(_seconds(each) for each in (branch.boot_seconds, branch.run_seconds, branch.judge_seconds)),
        )
        yield (
            f'<tr class="{"winner" if won else ""}"><th scope="row">{"&#9733; " if won else ""}{_text(branch.name)}'
            f'</th><td><span class="state {branch.status}">{said(branch.status)}</span></td>'
            + "".join(f'<td class="number">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    yield "</tbody></table></div>\n</section>"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# --------------------------------------------------------------------------------------------------------- each branch


def _details(report: RaceReport, branches: Iterable[BranchReport]) -> Iterator[str]:
    yield "<section>\n<h2>Branches</h2>"
    for branch in branches:
        opened = " open" if branch.name == report.winner else ""
        yield (
            f'<details{opened}><summary><span class="name">{_text(branch.name)}</span> '
            f'<span class="state {branch.status}">{said(branch.status)}</span> '
            f'<span class="hint">{_text(why(branch))}</span></summary>'
        )
        if branch.reason:
            yield f"<p>{_text(branch.reason)}</p>"
        tails = {
            "standard output": branch.stdout_tail,
            "standard error": branch.stderr_tail,
            "judge": branch.judge_tail,
        }
        for title, tail in tails.items():
            if tail.strip():
                yield f"<h3>{title}, the end of it</h3>\n<pre>{_text(tail)}</pre>"
        if not any(tail.strip() for tail in tails.values()):
            yield '<p class="quiet">It wrote nothing.</p>'
        yield from _artifacts(branch)
        yield "</details>"
    yield "</section>"


def _artifacts(branch: BranchReport) -> Iterator[str]:
    if branch.artifacts:
        yield '<h3>artifacts</h3>\n<ul class="artifacts">'
        yield from (f"<li>{_artifact(each)}</li>" for each in branch.artifacts)
        yield "</ul>"
    if branch.artifacts_reason:
        yield f'<p class="quiet">{_text(branch.artifacts_reason)}</p>'


def _artifact(artifact: Artifact) -> str:
    where = "in the report" if artifact.base64 is not None else artifact.truncated or "not in the report"
    return f'<code>{_text(artifact.path)}</code> <span class="quiet">{artifact.size:,} bytes, {_text(where)}</span>'


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(f"<code>{_text(text)}</code>" for text in texts)


def _text(value: str) -> str:
    """Fit for a text and for an attribute in double quotes."""
    return escape(plain(value), quote=True)
