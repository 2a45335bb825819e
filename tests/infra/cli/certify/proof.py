"""Each assumption broken in turn, and all checks of its side: certify names that one alone (`make certify-proof`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.local import Options, Platform
from tests.infra.cli.certify.broken import QUEUE, SANDBOX, certified, not_holding


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(Options()) as running:
        yield running


@pytest.mark.parametrize(("check", "knob", "value"), QUEUE, ids=[row[0] for row in QUEUE])
def test_certify_names_the_broken_assumption_of_the_queue(
    platform: Platform, check: str, knob: str, value: object
) -> None:
    before = platform.claude.get("settings")[knob]
    platform.claude.patch("settings", {knob: value})
    try:
        assert list(not_holding(certified(platform.environ, "queue"))) == [check]
    finally:
        platform.claude.patch("settings", {knob: before})


@pytest.mark.parametrize(("check", "knob", "value"), SANDBOX, ids=[row[0] for row in SANDBOX])
def test_certify_names_the_broken_assumption_of_sandboxes(
    platform: Platform, check: str, knob: str, value: object
) -> None:
    before = platform.tensorlake.get("settings")[knob]
    platform.tensorlake.patch("settings", {knob: value})
    try:
        assert list(not_holding(certified(platform.environ, "sandbox"))) == [check]
    finally:
        platform.tensorlake.patch("settings", {knob: before})
