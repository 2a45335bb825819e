"""Each assumption broken in turn, and all checks of its side: certify names that one alone (`make certify-proof`).

The account may have two sandboxes at once, so that no check but that of the quota needs a third.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest

from infra.local import Options, Platform
from tests.infra.cli.certify.broken import QUEUE, SANDBOX, certified, not_holding

QUOTA: Final = 2


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(Options()) as running:
        running.tensorlake.patch("settings", {"max_sandboxes": QUOTA})
        yield running


@pytest.mark.parametrize(
    ("side", "check", "knob", "value"),
    [*(("queue", *row) for row in QUEUE), *(("sandbox", *row) for row in SANDBOX)],
    ids=[row[0] for row in (*QUEUE, *SANDBOX)],
)
def test_certify_names_the_broken_assumption(
    platform: Platform, side: str, check: str, knob: str, value: object
) -> None:
    service = {"queue": platform.claude, "sandbox": platform.tensorlake}[side]
    before = service.get("settings")[knob]
    service.patch("settings", {knob: value})
    try:
        assert list(not_holding(certified(platform.environ, side, quota=QUOTA))) == [check]
    finally:
        service.patch("settings", {knob: before})
