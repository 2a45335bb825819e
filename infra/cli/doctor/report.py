"""Findings for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from rich.console import Console
from rich.text import Text

from infra.cli.doctor.catalogue import CATALOGUE, group_of
from infra.cli.doctor.findings import Finding, Severity, worst

_MARKS: Final = {Severity.OK: "✓", Severity.INFO: "·", Severity.WARNING: "!", Severity.ERROR: "✗"}
_STYLES: Final = {Severity.OK: "green", Severity.INFO: "dim", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}


def show(findings: Sequence[Finding], where: str, out: Console) -> None:
    """Grouped; colour on a terminal alone. What is well takes one line, what is not says why and what to do."""
    out.print(Text(f"Doctor looks at {where}.", style="bold"))
    for group, members in groupby(findings, key=lambda finding: group_of(finding.code)):
        out.print(Text(f"\n{group}", style="bold"))
        for finding in members:
            _show_one(finding, out)
    counts = {severity: sum(each.severity is severity for each in findings) for severity in Severity}
    told = ", ".join(
        f"{counts[severity]} {severity.word}{'s' if counts[severity] != 1 else ''}"
        for severity in (Severity.ERROR, Severity.WARNING)
    )
    out.print(Text(f"\n{told}, {counts[Severity.OK]} ok.", style=_STYLES[worst(findings)]))


def as_json(findings: Sequence[Finding], where: str, seconds: float) -> str:
    """{"where", "worst", "seconds", "findings": [{"code", "severity", "group", "seen", "why", "fix"}]}."""
    rows = [
        {
            "code": finding.code,
            "severity": finding.severity.word,
            "group": group_of(finding.code),
            "seen": finding.seen,
            "why": CATALOGUE[finding.code].cause,
            "fix": fix_of(finding),
        }
        for finding in findings
    ]
    report = {"where": where, "worst": worst(findings).word, "seconds": round(seconds, 1), "findings": rows}
    return json.dumps(report, indent=2, ensure_ascii=False)


def fix_of(finding: Finding) -> str:
    return finding.fix or CATALOGUE[finding.code].fix


def _show_one(finding: Finding, out: Console) -> None:
    entry = CATALOGUE[finding.code]
    line = Text(f"  {_MARKS[finding.severity]} ", style=_STYLES[finding.severity])
    line.append(f"{finding.code}  ", style="dim")
    bad = finding.severity in (Severity.WARNING, Severity.ERROR)
    if bad:
        line.append(f"{entry.symptom}\n", style=_STYLES[finding.severity])
        line.append(
            f"      seen  {finding.seen}\n      why   {entry.cause}\n      fix   {fix_of(finding)}", style="none"
        )
    else:
        line.append(finding.seen, style="dim" if finding.severity is Severity.INFO else "none")
    out.print(line)
