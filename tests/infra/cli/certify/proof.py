"""Each assumption broken in turn, and all checks of its side: certify names that one alone (`make certify-proof`).

The account may have two sandboxes at once, so that no check but that of the quota needs a third. Where each create or
each resume takes longer than a check allows, the checks wait side by side, each with sandboxes of its own, and there is
room for them. After them come the one of the quota and those of pools, of which two runs must not have one at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest

from infra.cli.certify import pool_checks
from infra.cli.certify.check import CheckResult, ServiceCheck
from infra.cli.certify.command import certify, chosen
from infra.cli.certify.ground import Ground
from infra.cli.doctor.context import DoctorContext
from infra.local import Options, Platform
from shared.settings import Settings
from tests.infra.cli.certify.broken import QUEUE, SANDBOX, certified, not_holding
from tests.support.preloaded import forked_service, launcher

QUOTA: Final = 2
ROOM: Final = 200
SLOW: Final = ("create_seconds", "resume_seconds")
_BROKEN: Final = [*(("queue", *row) for row in QUEUE), *(("sandbox", *row) for row in SANDBOX)]
LONGEST_FIRST: Final = sorted(_BROKEN, key=lambda row: (row[2] not in SLOW, row[0] == "queue"))
PING: Final = 0.5
"""Seconds, so that no run of the checks waits for one."""


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    options = Options(claude={"ping_interval": PING}, tensorlake={"launcher": launcher()})
    with Platform(options, forked_service) as running:
        running.tensorlake.patch("settings", {"max_sandboxes": QUOTA})
        yield running


@pytest.mark.parametrize(
    ("side", "check", "knob", "value"),
    LONGEST_FIRST,
    ids=[f"{check}-{knob}-{value}" for _, check, knob, value in LONGEST_FIRST],
)
def test_certify_names_the_broken_assumption(
    platform: Platform, side: str, check: str, knob: str, value: object
) -> None:
    service = {"queue": platform.claude, "sandbox": platform.tensorlake}[side]
    before = service.get("settings")[knob]
    service.patch("settings", {knob: value})
    try:
        looked = _side_by_side(platform) if knob in SLOW else certified(platform.environ, side, quota=QUOTA)
    finally:
        service.patch("settings", {knob: before})
    assert list(not_holding(looked)) == [check]
    assert looked.keys() == {each.id for each in chosen([side], QUOTA)}


def _side_by_side(platform: Platform) -> dict[str, CheckResult]:
    alone = [each for each in chosen(["sandbox"], QUOTA) if each.asked or each in pool_checks.CHECKS]
    waiting = [each for each in chosen(["sandbox"], QUOTA) if each not in alone]
    platform.tensorlake.patch("settings", {"max_sandboxes": ROOM})
    try:
        looked = asyncio.run(_at_once(platform.environ, waiting))
    finally:
        platform.tensorlake.patch("settings", {"max_sandboxes": QUOTA})
    return {**looked, **certified(platform.environ, *(each.id for each in alone), quota=QUOTA)}


async def _at_once(environ: Mapping[str, str], checks: list[ServiceCheck]) -> dict[str, CheckResult]:
    async def one(check: ServiceCheck) -> Any:
        context = DoctorContext(environ, Settings.from_environ(environ), offline=True)
        return await certify(Ground(context), [check])

    found = await asyncio.gather(*(one(check) for check in checks))
    assert [left for _, left in found if left] == []
    return {result.check.id: result for results, _ in found for result in results}
