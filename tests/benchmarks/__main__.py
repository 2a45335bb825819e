"""Run the benchmarks: all of them, or the ones named.

    python -m tests.benchmarks [NAME ...]

Speed is measured here and asserted nowhere: the exit status is 0 whatever the figures are, and 1 where something could
not be measured. Compare the ratios: both
sides of each were measured in one run, on one machine, while the plain figures are this machine's.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Final

from tests.benchmarks.report import Aim, BenchmarkResult, aims_table

BENCHMARKS: Final[Mapping[str, str]] = {
    "one_session": "webhook to first heartbeat, beside the sum of its calls",
    "burst": "fifty sessions at once, beside one and the workers' boots",
    "hanging": "a session claimed while another one's sandbox hangs, beside undisturbed",
    "boot": "CPU of a worker from its start to its lease, and of the interpreter in it",
    "calls": "API calls of a session, alone and among a thousand sandboxes",
    "health": "/healthz while 500 webhooks a second arrive",
    "cold_start": "first byte of each function in a fresh interpreter",
    "memory": "the most memory of each function in its runtime's entry, floods and 64 branches included",
    "overview": "ps, top and cost with a thousand sessions at 50 ms a round trip",
    "steering": "each command on one session among a thousand sandboxes at 50 ms a round trip",
    "fork": "eight children of a 100 MB workspace, beside one copy",
    "scale": "a day of 10,000 sandboxes and 20 copies in virtual time (SCALE_HOURS=24)",
    "warm_pool": "a new session's sandbox, created and claimed from a warm pool",
    "prepared": "the first tool call after a clone of 100 MB and an install of 60 s, cold and prepared",
    "races": "early stop, 64 branches of a 100 MB workspace, a winner's changes brought home",
}


def main() -> int:
    described = "\n".join(f"  {name:12} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=f"Benchmarks:\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="which ones; default: all")
    names = parser.parse_args().names or list(BENCHMARKS)
    for unknown in sorted(set(names) - set(BENCHMARKS)):
        parser.error(f"no benchmark is called {unknown!r}")
    # Without byte code every import takes twice as long, here and in whatever is started from here.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load before: {_load()}\n", flush=True)
    aims: list[Aim] = []
    failed = []
    for name in names:
        try:
            aims += _run(name)
        except Exception:  # the edge: the other figures are wanted all the same
            traceback.print_exc()
            failed.append(name)
    print(aims_table(aims))
    for name in failed:
        print(f"{name} could not be measured", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str) -> list[Aim]:
    print(f"== {name}: {BENCHMARKS[name]}\n", flush=True)
    run: Callable[[], BenchmarkResult] = importlib.import_module(f"tests.benchmarks.{name}").run
    began = time.monotonic()
    result = run()
    print(f"{result}\n({time.monotonic() - began:.0f} s)\n", flush=True)
    return list(result.aims)


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.2f}"
    except OSError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
