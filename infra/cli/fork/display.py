"""What a person sees of a race: its events in, the state of each branch and lines of text out.

Names, reasons and above all output may come from anywhere: no control character reaches a terminal (`one_line`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from infra.cli.session.render import Line, LineStyle, clean
from shared.deadline import Clock
from shared.races import events
from shared.races.report import BranchReport, BranchStatus, Phase, PromotionReport, RaceReport
from shared.races.scores import rank

_LINE_CHARACTERS: Final = 160
# They turn the order of what stands beside them: a row could pretend to be another.
_DIRECTIONS: Final = re.compile(r"[\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

DOING: Final[dict[Phase, str]] = {
    "source": "looking for the source",
    "setup": "setting up",
    "checkpoint": "taking the checkpoint",
    "boot": "starting",
    "files": "writing files",
    "run": "running",
    "diff": "comparing",
    "judge": "judging",
    "artifacts": "collecting",
    "reap": "ending",
    "promote": "promoting",
}
_LOOKS: Final[dict[BranchStatus, str]] = {
    "ok": "green",
    "failed": "red",
    "timed_out": "yellow",
    "cancelled": "dim",
    "not_started": "dim",
}


@dataclass(slots=True)
class BranchRow:
    """One branch. `began` and `ended` are seconds since the race began."""

    name: str
    state: str = "waiting"
    look: str = "dim"
    began: float | None = None
    ended: float | None = None
    score: float | None = None
    line: str = ""

    def elapsed(self, now: float) -> float | None:
        return None if self.began is None else max(0.0, (now if self.ended is None else self.ended) - self.began)


@dataclass
class RaceDisplay:
    """The race as far as it is known. `tell` takes an event and says what is new of it in lines, for a pipe."""

    clock: Clock = time.monotonic
    race_id: str = ""
    rows: dict[str, BranchRow] = field(default_factory=dict)
    doing: str = "asking"
    report: RaceReport | None = None
    failed: events.ErrorBody | None = None
    _began: float = 0.0

    def __post_init__(self) -> None:
        self._began = self.clock()

    def now(self) -> float:
        """Seconds since the race began, by the clock here."""
        return self.clock() - self._began

    def tell(self, event: events.Event) -> list[Line]:
        match event:
            case events.RaceBegan():
                self.race_id = one_line(event.race_id)
                self._began = self.clock() - event.at
                self.rows = {name: BranchRow(one_line(name)) for name in event.branches}
                return [Line(f"race {self.race_id}: {_count(len(self.rows), 'branch')}", LineStyle.STRONG)]
            case events.PhaseBegan(branch=None):
                self.doing = DOING[event.phase]
                return [Line(f"{event.at:7.2f} s  {self.doing}", LineStyle.QUIET)]
            case events.PhaseBegan(branch=str(name), phase=phase):
                return self._phase(self._row(name), phase, event.at)
            case events.OutputLine():
                row = self._row(event.branch)
                row.line = one_line(event.line)
                return [Line(f"{event.at:7.2f} s  {row.name}: {row.line}", LineStyle.QUIET)]
            case events.BranchDecided():
                return [self._decided(self._row(event.report.name), event.report, event.at)]
            case events.Promoted():
                return [Line(f"{event.at:7.2f} s  {promoted(event.promotion)}")]
            case events.Reported():
                self.report = event.report
            case events.RaceFailed():
                self.failed = event.error
        return []

    def live(self) -> Group:
        """The race as it stands, a row a branch."""
        now = self.now()
        table = _table(("branch", "state", "seconds", "score", "last line"))
        for row in self.rows.values():
            elapsed = row.elapsed(now)
            table.add_row(
                Text(row.name),
                Text(row.state, style=row.look),
                Text("" if elapsed is None else f"{elapsed:.1f}"),
                Text(_number(row.score)),
                Text(row.line, style="dim"),
            )
        return Group(table, Text(f"{self.doing}, {now:.1f} s", style="dim"))

    def _row(self, name: str) -> BranchRow:
        return self.rows.setdefault(name, BranchRow(one_line(name)))

    def _phase(self, row: BranchRow, phase: Phase, at: float) -> list[Line]:
        self.doing = "racing"
        if row.began is None:
            row.began = at
        row.state, row.look = DOING[phase], "cyan"
        return [Line(f"{at:7.2f} s  {row.name}: {row.state}", LineStyle.QUIET)] if phase in ("boot", "run") else []

    def _decided(self, row: BranchRow, report: BranchReport, at: float) -> Line:
        row.state, row.look, row.score = said(report.status), _LOOKS[report.status], report.score
        row.ended, row.line = at, why(report)
        score = "" if report.score is None else f", score {_number(report.score)}"
        because = f" ({row.line})" if report.reason else ""
        look = LineStyle.PLAIN if report.status == "ok" else LineStyle.QUIET
        return Line(f"{at:7.2f} s  {row.name}: {row.state}{score}{because}", look)


def summary(report: RaceReport, *, higher_is_better: bool) -> Table:
    """The branches in the order of their places: the winner, who else was scored, the others as they were asked for."""
    table = _table(("", "branch", "state", "score", "exit", "boot s", "run s", "judge s", "why, or its last line"))
    able = [branch for branch in report.branches if branch.status == "ok"]
    able.sort(key=lambda branch: (branch.name != report.winner, rank(branch, higher_is_better=higher_is_better)))
    others = [branch for branch in report.branches if branch.status != "ok"]
    for branch in (*able, *others):
        won = branch.name == report.winner
        table.add_row(
            Text("★" if won else ""),
            Text(one_line(branch.name), style="bold" if won else ""),
            Text(said(branch.status), style=_LOOKS[branch.status]),
            Text(_number(branch.score)),
            Text("" if branch.exit_code is None else str(branch.exit_code)),
            *(Text(_seconds(each)) for each in (branch.boot_seconds, branch.run_seconds, branch.judge_seconds)),
            Text(why(branch), style="dim"),
        )
    return table


def conclusion(report: RaceReport) -> Iterator[Line]:
    """What became of the race, in a few lines."""
    # The sum of the runs knows nothing of what was cancelled: below 1 it would belittle a race that ended early.
    speedup = report.speedup or 0.0
    faster = f", {speedup:g} times as fast as one after the other" if speedup > 1 else ""
    took = f"{report.seconds:.1f} s{faster}"
    if report.dry_run:
        yield Line(
            f"A dry run: {_count(len(report.branches), 'branch')} would race; nothing was begun.", LineStyle.STRONG
        )
    elif report.winner is None:
        yield Line(f"Nobody won; {took}.", LineStyle.WRONG)
    else:
        yield Line(f"{one_line(report.winner)} won; {took}.", LineStyle.STRONG)
    if report.deadline_passed:
        yield Line("The race's deadline passed: what finished by then was judged.", LineStyle.WRONG)
    if report.budget_spent:
        yield Line("Its max_sandbox_seconds are spent: what finished by then was judged.", LineStyle.WRONG)
    if report.cancelled:
        yield Line("The race was cancelled: what finished by then was judged, and nobody wins.", LineStyle.WRONG)
    if report.promotion is not None:
        yield Line(promoted(report.promotion), LineStyle.PLAIN if report.promotion.done else LineStyle.WRONG)
        yield from _paths(report.promotion)
    files = sum(len(branch.artifacts) for branch in report.branches)
    if files:
        yield Line(f"{_count(files, 'artifact')} in the report (--json, --report).")
    ended = f"{_count(len(report.reaped), 'sandbox or checkpoint', 'sandboxes and checkpoints')} ended"
    if report.leftovers:
        left = ", ".join(one_line(name) for name in report.leftovers)
        yield Line(
            f"{ended}; whether these are gone is not known, and the reconciler ends them: {left}", LineStyle.WRONG
        )
    elif report.ending:
        yield Line(f"{ended}; {len(report.ending)} more are ending behind the report.", LineStyle.QUIET)
    elif report.reaped:
        yield Line(f"{ended}; nothing is left.", LineStyle.QUIET)


def promoted(promotion: PromotionReport) -> str:
    """What became of the winner's work, in a line."""
    if not promotion.done:
        why = one_line(promotion.reason or "no reason was given")
        return f"Not promoted ({promotion.kind}): {why}. The winner stands all the same."
    match promotion.kind:
        case "workspace":
            counts = f"{promotion.added} added, {promotion.changed} changed, {promotion.deleted} deleted"
            return f"Promoted into the workspace: {counts}."
        case "snapshot":
            return f"Promoted to a snapshot: {one_line(promotion.snapshot_id or '')}"
        case "keep":
            return f"The winner's sandbox lives on: {one_line(promotion.sandbox or '')}"


def _paths(promotion: PromotionReport) -> Iterator[Line]:
    for word in ("conflicts", "overtaken", "failed", "skipped"):
        paths: tuple[str, ...] = getattr(promotion, word)
        if paths:
            shown = ", ".join(one_line(path) for path in paths[:5]) + (" …" if len(paths) > 5 else "")
            yield Line(f"  {word}: {shown}", LineStyle.QUIET)


def one_line(text: str) -> str:
    """A text that a terminal may see: one line, nothing that controls it, nothing that turns it around."""
    flat = _DIRECTIONS.sub("", clean(text)).replace("\t", " ").replace("\n", " ⏎ ").strip()
    return flat if len(flat) <= _LINE_CHARACTERS else f"{flat[: _LINE_CHARACTERS - 1]}…"


def plain(text: str) -> str:
    """The same for a text of many lines."""
    return _DIRECTIONS.sub("", clean(text))


def why(branch: BranchReport) -> str:
    """One line on a branch: why it is no candidate, and what it said last: on its standard error where it failed."""
    tails = [branch.stdout_tail, branch.stderr_tail]
    if branch.status == "failed":
        tails.reverse()
    said_last = next((tail.strip().splitlines()[-1] for tail in tails if tail.strip()), "")
    return one_line(": ".join(filter(None, (branch.reason, said_last))))


def said(status: BranchStatus) -> str:
    return status.replace("_", " ")


def _table(columns: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    *first, last = columns
    for title in first:
        table.add_column(Text(title), no_wrap=True, justify="right" if _is_number(title) else "left")
    table.add_column(Text(last), no_wrap=True, overflow="ellipsis")
    return table


def _is_number(title: str) -> bool:
    return title in ("score", "exit", "seconds") or title.endswith(" s")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _count(number: int, one: str, many: str = "") -> str:
    plural = many or one + ("es" if one.endswith(("s", "h")) else "s")
    return f"{number} {one if number == 1 else plural}"
