"""What a check reports: a code, how bad it is, and what was seen. The catalogue has cause and cure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """`INFO` is worth knowing and needs nothing done; a `WARNING` will hurt some day; an `ERROR` hurts now."""

    OK = 0
    INFO = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """`fix` stands in for the catalogue's where the check knows better. No text holds a character of a secret."""

    code: str
    severity: Severity
    seen: str
    fix: str | None = None


Say = Callable[[Finding], None]
"""How a check hands over its findings, one by one: what was found before it broke is not lost."""


def ok(code: str, seen: str) -> Finding:
    return Finding(code, Severity.OK, seen)


def info(code: str, seen: str, fix: str | None = None) -> Finding:
    return Finding(code, Severity.INFO, seen, fix)


def warning(code: str, seen: str, fix: str | None = None) -> Finding:
    return Finding(code, Severity.WARNING, seen, fix)


def error(code: str, seen: str, fix: str | None = None) -> Finding:
    return Finding(code, Severity.ERROR, seen, fix)


def worst(findings: Iterable[Finding]) -> Severity:
    """OK where nothing was found."""
    return max((finding.severity for finding in findings), default=Severity.OK)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 for ok and info, 1 for a warning, 2 for an error."""
    return {Severity.OK: 0, Severity.INFO: 0, Severity.WARNING: 1, Severity.ERROR: 2}[worst(findings)]
