"""Runs many cases, and for every kind of fault that shows up keeps the shortest request that it found for it.

Cases are drawn in batches, each from a seed of its own: a batch ends at its first new fault, which is shrunk, and is
begun anew with that kind counted and passed over, so that one fault never hides another.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.case import FuzzCase
from tests.fuzz.properties import FuzzFinding, check
from tests.fuzz.requests import cases, siblings
from tests.fuzz.stage import ask

BATCH: Final = 1_000  # draws; each is sent about four times


class FoundError(AssertionError):
    """A new kind of fault. Each kind has a class of its own: that is what keeps shrinking from mixing them up."""

    def __init__(self, finding: FuzzFinding, case: FuzzCase) -> None:
        super().__init__(finding.kind)
        self.finding = finding
        self.case = case


@dataclass(slots=True)
class CampaignReproduction:
    finding: FuzzFinding
    case: FuzzCase
    seed: int


@dataclass(slots=True)
class Campaign:
    """What a run saw. `statuses` counts answers by path and status; `seen` counts findings by kind."""

    cases: int = 0
    seconds: float = 0.0
    statuses: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    found: dict[str, CampaignReproduction] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Cases a second."""
        return self.cases / self.seconds if self.seconds else 0.0


def run(
    count: int,
    *,
    first_seed: int = 0,
    known: Collection[str] = (),
    told: Callable[[Campaign], None] = lambda campaign: None,
) -> Campaign:
    """At least `count` cases; the same ones for the same seed. Findings of the `known` kinds are counted and no more;
    `told` is called after each batch."""
    campaign = Campaign()
    began = time.monotonic()
    number = first_seed
    while campaign.cases < count:
        left = count - campaign.cases
        _batch(campaign, number, min(BATCH, left // 4 + 1), known)
        number += 1
        campaign.seconds = time.monotonic() - began
        told(campaign)
    return campaign


def _batch(campaign: Campaign, number: int, examples: int, known: Collection[str]) -> None:
    while True:
        counted = Campaign()
        try:
            _draw(counted, number, examples, {*known, *campaign.found})
        except FoundError as error:
            campaign.found[error.finding.kind] = CampaignReproduction(error.finding, error.case, number)
            continue
        # Only the pass that came through is counted, and none of the requests that shrinking took.
        campaign.cases += counted.cases
        campaign.statuses += counted.statuses
        campaign.seen += counted.seen
        return


def _draw(campaign: Campaign, number: int, examples: int, known: Collection[str]) -> None:
    classes: dict[str, type[FoundError]] = {}

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(cases())
    def each(drawn: FuzzCase) -> None:
        for case in siblings(drawn):
            for finding in judge(campaign, case):
                if finding.kind not in known:
                    made = classes.setdefault(finding.kind, type("Found", (FoundError,), {}))
                    raise made(finding, case)

    each()


def judge(campaign: Campaign, case: FuzzCase) -> list[FuzzFinding]:
    """One case, sent and counted."""
    answer = ask(case)
    findings = check(case, answer)
    campaign.cases += 1
    campaign.statuses[(case.path if case.path in _COUNTED else "other", answer.status)] += 1
    campaign.seen.update({finding.kind for finding in findings})
    return findings


_COUNTED: Final = ("/", "/on_run_started", "/poll_tick", "/fork_best_of_n")
