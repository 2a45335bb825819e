"""Run checks side by side, a few at once, each within its time. One that breaks is a finding and never a crash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from infra.cli.doctor.findings import Finding, Say, warning

AT_ONCE: Final = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DoctorCheck:
    """`name` says for people what is looked at; `seconds` bounds it, its own clean-up apart."""

    name: str
    seconds: float
    look: Callable[[Say], Awaitable[None]]


async def run(checks: Sequence[DoctorCheck], at_once: int = AT_ONCE) -> list[Finding]:
    """All findings, in the order of their codes. A check whose task is cancelled still cleans up after itself."""
    findings: list[Finding] = []
    room = asyncio.Semaphore(at_once)

    async def one(check: DoctorCheck) -> None:
        async with room:
            try:
                async with asyncio.timeout(check.seconds):
                    await check.look(findings.append)
            except TimeoutError:
                findings.append(warning("HANDS001", f"{check.name}: not done within {check.seconds:g} s"))
            except Exception as error:  # the edge: the type alone, since a text may quote what was sent
                log.debug("doctor.check_broke", exc_info=True)
                findings.append(warning("HANDS001", f"{check.name}: {type(error).__name__}"))

    async with asyncio.TaskGroup() as group:
        for check in checks:
            group.create_task(one(check))
    return sorted(findings, key=lambda finding: finding.code)
