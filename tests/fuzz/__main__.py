"""`python -m tests.fuzz --cases 100000`: bad input for the three endpoints; exit code 1 for a new finding."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.fuzz.campaign import Campaign, run
from tests.fuzz.reproductions import OPEN


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases")
    given = parser.parse_args(argv)
    told = _Progress(every=20.0)
    campaign = run(given.cases, first_seed=given.seed, known=OPEN, told=told)
    print(f"{campaign.cases} cases, {campaign.seconds:.0f} s, {campaign.rate:.0f} cases/s, seed {given.seed}")
    by_path: dict[str, Counter[int | None]] = {}
    for (path, status), count in campaign.statuses.items():
        by_path.setdefault(path, Counter())[status] += count
    for path, counts in sorted(by_path.items()):
        print(f"  {path:16} " + "  ".join(f"{status}: {counts[status]}" for status in sorted(counts, key=str)))
    for kind in sorted(OPEN & set(campaign.seen)):
        print(f"known, and not mended yet: {kind}  ({campaign.seen[kind]} times)")
    print(f"{len(campaign.found)} new findings")
    for kind, reproduction in campaign.found.items():
        print(f"\n{kind}  ({campaign.seen[kind]} times, seed {reproduction.seed})")
        print(f"  {reproduction.finding.detail}")
        print("  " + reproduction.case.describe().replace("\n", "\n  "))
    return 1 if campaign.found else 0


class _Progress:
    """A line now and then, so that a long run is seen to live."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._next = time.monotonic() + every

    def __call__(self, campaign: Campaign) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            print(f"… {campaign.cases} cases, {campaign.rate:.0f} cases/s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
