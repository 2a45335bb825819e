"""A ground for single checks on the offline services, and what they said by code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from infra.operator.doctor.findings import Finding, Say, Severity
from infra.operator.doctor.ground import Ground
from tests.support.signing import KEY
from tests.support.world import Place


def ground_of(place: Place, *, offline: bool = True, **more: Any) -> Ground:
    environ = {**place.environ, "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY}
    return Ground(environ, place.adjusted(ANTHROPIC_WEBHOOK_SIGNING_KEY=KEY).settings, offline=offline, **more)


def said(ground: Ground, *checks: Callable[[Ground, Say], Awaitable[None]]) -> list[Finding]:
    """What these checks find, one after the other."""
    findings: list[Finding] = []

    async def look() -> None:
        try:
            for check in checks:
                await check(ground, findings.append)
        finally:
            await ground.aclose()

    asyncio.run(look())
    return findings


def bad(findings: list[Finding]) -> dict[str, Severity]:
    """The codes that are worse than worth knowing."""
    return {each.code: each.severity for each in findings if each.severity >= Severity.WARNING}


def seen(findings: list[Finding], code: str) -> str:
    return " / ".join(each.seen for each in findings if each.code == code)
