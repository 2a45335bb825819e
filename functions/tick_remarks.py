"""What a person should read of a tick: a line each repair, and one that begins with ALARM where somebody must look.

Whoever runs a tick logs them as `tick.remark ...`, on every runtime, so that one filter finds the alarms
(infra/aws/template.yaml has one).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.reports import DrainReport, TickReport

log = logging.getLogger(__name__)


def log_remarks(report: TickReport | DrainReport) -> None:
    from shared.reports import TickReport

    found = asdict(report)
    for line in remarks(found if isinstance(report, TickReport) else {"drains": [found]}):
        log.warning("tick.remark %s", line)


def remarks(report: Mapping[str, Any]) -> Iterator[str]:
    """Of a `shared.reports.TickReport` as a mapping."""
    for drain in report.get("drains", ()):
        for alarm in drain.get("alarms", ()):
            yield f"ALARM: {drain['environment_id']}: {alarm}"
        for item in drain.get("items", ()):
            if item.get("alarm"):
                yield f"ALARM: {item['session_id']}: {item['end']}: {item['reason']}"
    for each in report.get("reconciled", ()):
        for action in each["actions"]:
            problem = "" if action["done"] else f"  NOT DONE: {action['problem']}"
            yield f"repair: {action['act']} {action['target']} ({action['why']}){problem}"
        for alarm in each["alarms"]:
            yield f"ALARM: {each['environment_id']}: {alarm}"
        for session in each["needs_interrupt"]:
            yield f"ALARM: {session} is stuck: end its turn with the API key (make repair)"
