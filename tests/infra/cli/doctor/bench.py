"""A ground for single checks on the offline services, and what they said by code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.findings import Finding, Say, Severity
from tests.support.signing import KEY
from tests.support.world import Place


def ground_of(place: Place, *, offline: bool = True, **more: Any) -> DoctorContext:
    environ = {**place.environ, "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY}
    return DoctorContext(environ, place.adjusted(ANTHROPIC_WEBHOOK_SIGNING_KEY=KEY).settings, offline=offline, **more)


def said(context: DoctorContext, *checks: Callable[[DoctorContext, Say], Awaitable[None]]) -> list[Finding]:
    """What these checks find, one after the other."""
    findings: list[Finding] = []

    async def look() -> None:
        try:
            for check in checks:
                await check(context, findings.append)
        finally:
            await context.aclose()

    asyncio.run(look())
    return findings


def bad(findings: list[Finding]) -> dict[str, Severity]:
    """The codes that are worse than worth knowing."""
    return {each.code: each.severity for each in findings if each.severity >= Severity.WARNING}


def seen(findings: list[Finding], code: str) -> str:
    return " / ".join(each.seen for each in findings if each.code == code)
