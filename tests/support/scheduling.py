"""A copy of the bundle that does nothing but tick, as a schedule would make it.

    python -m tests.support.scheduling SECONDS

Settings come from the environment; SECONDS is the pause between two ticks. It prints a line when the first one is done.
On SIGTERM it finishes its tick and prints what all of them did, as one line of JSON: `counts`, and the reasons of the
repairs that failed, `failures`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter
from typing import Final

from shared.reports import TickReport
from shared.service import Service
from shared.settings import Settings
from shared.telemetry import configure_logging

_OF_ONE: Final = re.compile(r"[\w.-]*\d[\w.-]*")
"""Ids, names, addresses and times."""


def tally(report: TickReport) -> Counter[str]:
    """Counts: ticks, how items ended, which repairs were done and which failed, alarms."""
    counts = Counter(ticks=1)
    for drain in report.drains:
        counts.update(f"item {item.end.value}" for item in drain.items)
    for each in report.reconciled:
        counts.update(f"{action.act.value} {'done' if action.done else 'failed'}" for action in each.actions)
        counts["alarms"] += len(each.alarms)
        counts["needs interrupt"] += len(each.needs_interrupt)
    return counts


def failures(report: TickReport) -> Counter[str]:
    """The repairs that failed, by their reason without what is told of one target alone."""
    return Counter(
        f"{action.act.value}: {_OF_ONE.sub('…', action.problem)[:100]}"
        for each in report.reconciled
        for action in each.actions
        if not action.done
    )


async def main() -> None:
    configure_logging(os.environ)
    pause = float(sys.argv[1])
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    service = Service(Settings.from_environ(os.environ))
    counts, failed = Counter[str](), Counter[str]()
    try:
        while not over.is_set():
            report = await service.tick()
            counts += tally(report)
            failed += failures(report)
            if counts["ticks"] == 1:
                print("ticked", flush=True)
            try:
                await asyncio.wait_for(over.wait(), pause)
            except TimeoutError:
                continue
    finally:
        await service.aclose()
    print(json.dumps({"counts": counts, "failures": failed}))


if __name__ == "__main__":
    asyncio.run(main())
