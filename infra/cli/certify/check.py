"""What certify tries: an assumption with its place in docs/wire, and how it is looked at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import Observed

Look = Callable[[Ground], Awaitable[Observed]]


@dataclass(frozen=True, slots=True)
class ServiceCheck:
    """anchor: where docs/wire says what is `assumed`. otherwise: what in this project changes if it is not so.
    seconds: the longest that it takes. asked: made only where it is asked for, as a real limit must be met for it."""

    id: str
    anchor: str
    assumed: str
    otherwise: str
    look: Look
    seconds: float = 120.0
    asked: bool = False


@dataclass(frozen=True, slots=True)
class CheckResult:
    check: ServiceCheck
    observed: Observed
    seconds: float
