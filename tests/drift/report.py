"""What a trial of other releases showed, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from xml.etree import ElementTree

Releases = Literal["newest", "oldest"]
_LONGEST_REASON: Final = 200
_AGAIN: Final = "RERUN "


@dataclass(frozen=True, slots=True)
class Trial:
    """`python`: a version such as 3.12."""

    releases: Releases
    python: str

    def __str__(self) -> str:
        return f"{self.releases} releases, Python {self.python}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`changed`: by name, the locked version and the one of the trial. `failed`: each with its reason. `again`: what
    passed at its second try only; they are among the passed."""

    trial: Trial
    changed: Mapping[str, tuple[str, str]]
    passed: int
    skipped: int
    failed: tuple[str, ...]
    again: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for who waits for the next trial."""
        return "; ".join((f"{self.passed} passed, {self.skipped} skipped, {len(self.failed)} failed", *self.failed))


def outcome_of(
    trial: Trial, locked: Mapping[str, str], found: Mapping[str, str], report: bytes, output: str = ""
) -> Outcome:
    """`report`: what pytest wrote, as JUnit's XML; `output`: its summary of the tests that it ran again. Raises
    ElementTree.ParseError."""
    passed, skipped, failed = 0, 0, []
    for case in ElementTree.fromstring(report).iter("testcase"):
        wrong = [mark for kind in ("failure", "error") if (mark := case.find(kind)) is not None]
        if wrong:
            reason = " ".join((wrong[0].get("message") or "").split())[:_LONGEST_REASON]
            failed.append(f"{case.get('classname')}::{case.get('name')}: {reason}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    both = sorted(set(locked) & set(found))
    changed = {name: (locked[name], found[name]) for name in both if locked[name] != found[name]}
    tried = [line.removeprefix(_AGAIN) for line in output.splitlines() if line.startswith(_AGAIN)]
    again = [name for name in dict.fromkeys(tried) if not any(_same(name, other) for other in failed)]
    return Outcome(trial, changed, passed, skipped, tuple(failed), tuple(again))


def _same(node: str, failed: str) -> bool:
    """Whether pytest's own name of a test and JUnit's name the same one."""
    path, _, name = node.partition("::")
    return failed.startswith(f"{path.removesuffix('.py').replace('/', '.')}::{name}: ")


def page(outcomes: Sequence[Outcome], absent: Sequence[str] = ()) -> str:
    """`absent`: the Pythons that were looked for and are not here."""
    lines = [
        "| releases | Python | packages unlike the locks | passed | skipped | failed |",
        "|---|---|---|---|---|---|",
    ]
    for each in outcomes:
        trial = each.trial
        cells = (trial.releases, trial.python, len(each.changed), each.passed, each.skipped, len(each.failed))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [f"| - | {version} | not here: not tried | - | - | - |" for version in absent]
    for each in outcomes:
        lines += ["", f"## {str(each.trial).capitalize()}", ""]
        lines += [f"- FAILED {name}" for name in each.failed]
        lines += [f"- passed at its second try: {name}" for name in each.again]
        lines += [f"- {name} {old} -> {new}" for name, (old, new) in each.changed.items()]
        if not each.failed and not each.again and not each.changed:
            lines.append("As the locks have it.")
    return "\n".join(lines)
