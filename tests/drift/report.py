"""What a trial of other releases showed, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

Releases = Literal["newest", "oldest"]


@dataclass(frozen=True, slots=True)
class Trial:
    """`python`: a version such as 3.12."""

    releases: Releases
    python: str

    def __str__(self) -> str:
        return f"{self.releases} releases, Python {self.python}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`changed`: by name, the locked version and the one of the trial."""

    trial: Trial
    changed: Mapping[str, tuple[str, str]]
    passed: int
    skipped: int
    failed: tuple[str, ...]


def outcome_of(trial: Trial, locked: Mapping[str, str], found: Mapping[str, str], report: bytes) -> Outcome:
    """`report`: what pytest wrote, as JUnit's XML. Raises ElementTree.ParseError."""
    passed, skipped, failed = 0, 0, []
    for case in ElementTree.fromstring(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    both = sorted(set(locked) & set(found))
    changed = {name: (locked[name], found[name]) for name in both if locked[name] != found[name]}
    return Outcome(trial, changed, passed, skipped, tuple(failed))


def page(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| releases | Python | packages unlike the locks | passed | skipped | failed |",
        "|---|---|---|---|---|---|",
    ]
    for each in outcomes:
        trial = each.trial
        cells = (trial.releases, trial.python, len(each.changed), each.passed, each.skipped, len(each.failed))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for each in outcomes:
        lines += ["", f"## {str(each.trial).capitalize()}", ""]
        lines += [f"- FAILED {name}" for name in each.failed]
        lines += [f"- {name} {old} -> {new}" for name, (old, new) in each.changed.items()]
        if not each.failed and not each.changed:
            lines.append("As the locks have it.")
    return "\n".join(lines)
