"""`python -m tests.faults.explorer`: explore, print what was found; the exit status is 1 if a rule was broken."""

from __future__ import annotations

import argparse
import sys

from tests.faults.explorer.explore import explore


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.explorer", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", default="1", help="any text; the same one gives the same runs")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    parser.add_argument("--quick", action="store_true", help="do not shrink what fails")
    options = parser.parse_args()
    found = explore(options.seed, options.runs, most_failures=options.failures, shrinking=not options.quick)
    for failure in found.failures:
        print(f"{failure}\n")
    print(found)
    sys.exit(1 if found.failures else 0)
