"""What deployments give the functions, beside what these were measured to take (docs/deploy/index.md#memory)."""

from __future__ import annotations

import re
from typing import Final

import pytest

from functions.requests import MOST_BYTES
from infra.sandbox.account import MEMORY_MB
from tests.support.checkout import ROOT

FLOOD: Final = 64  # MiB that a flood adds at most: tests/shared/adapters/test_sandbox_floods.py
BODIES: Final = MOST_BYTES // (1 << 20)
_UNITS: Final = {"M": 1, "Mi": 1, "m": 1, "": 1, "G": 1024}


def table(first: str) -> list[list[str]]:
    """The rows of the table of the page whose head begins so."""
    lines = (ROOT / "docs" / "deploy" / "index.md").read_text(encoding="utf-8").splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def given(file: str, pattern: str) -> list[int]:
    """MiB, at each place of the file."""
    found = re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"))
    assert found, f"{file} gives no memory"
    return [int(number) * _UNITS[unit] for number, unit in found]


IN_FILES: Final = {
    "systemd": [
        *given("infra/host/serverless-hands.service", r"MemoryMax=(\d+)(M|G)"),
        *given("infra/host/serverless-hands-poll.service", r"MemoryMax=(\d+)(M|G)"),
    ],
    "compose": given("infra/host/compose.yaml", r"mem_limit: (\d+)(m)"),
    "Knative": given("infra/knative/service.yaml", r"memory: (\d+)(Mi)"),
    "Google": given("infra/gcp/plan.py", r"--memory=(\d+)(Mi)"),
    "Lambda": given("infra/aws/template.yaml", r"MemorySize: (\d+)()"),
    "server sandbox": [MEMORY_MB],
}


def test_the_page_says_what_each_deployment_gives() -> None:
    said = {row[0]: [int(number) for number in re.findall(r"\d+", row[1])] for row in table("deployment")}
    assert said == IN_FILES


@pytest.mark.parametrize("row", table("entry"), ids=lambda row: row[0])
def test_a_deployment_gives_what_was_measured_and_room_for_a_flood_and_for_bodies(row: list[str]) -> None:
    most = max(int(cell) for cell in row[1:])
    assert most + FLOOD + BODIES <= min(memory for each in IN_FILES.values() for memory in each)
