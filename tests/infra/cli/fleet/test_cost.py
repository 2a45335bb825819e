"""What sessions and their sandboxes cost, from both services: whose is what, and what could not be read."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator

import pytest

from infra.cli.environ import Loaded
from infra.cli.fleet import cost
from tests.support.many_sessions import ENVIRONMENT, SESSIONS, CrowdedService, many_sessions, variables


@pytest.fixture(scope="module")
def service() -> Iterator[CrowdedService]:
    with many_sessions() as made:
        yield made


def run(service: CrowdedService, *, as_json: bool = True, **more: str) -> int:
    return asyncio.run(cost.run(Loaded({**variables(service), **more}, None), by="environment", as_json=as_json))


def test_sandboxes_are_counted_to_their_sessions_and_the_rest_is_a_line_of_its_own(
    service: CrowdedService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(service, TENSORLAKE_ORGANIZATION_ID="org_1") == 0
    told = json.loads(capsys.readouterr().out)
    (row,) = told["rows"]
    assert (row["key"], row["sandbox_vcpu_hours"], row["sandbox_cost"]) == (ENVIRONMENT, SESSIONS / 2, "30.00 USD")
    assert (told["other_sandboxes"]["sandbox_gib_hours"], told["other_sandboxes"]["sandbox_cost"]) == (0.5, "0.03 USD")
    assert run(service, as_json=False, TENSORLAKE_ORGANIZATION_ID="org_1") == 0
    assert "30.00 USD" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["nothing", "tensorlake.applications.interface.exceptions"])
def test_what_is_not_asked_for_or_not_allowed_is_said_and_the_sessions_are_shown(
    service: CrowdedService, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # as beside Google's libraries, where the SDK cannot import it
    assert run(service) == 0
    said = capsys.readouterr()
    assert "TENSORLAKE_ORGANIZATION_ID" in said.err and json.loads(said.out)["rows"][0]["sandbox_vcpu_hours"] is None
    service.broken = {"/sandbox-usage": 403}
    assert run(service, TENSORLAKE_ORGANIZATION_ID="org_1") == 1
    said = capsys.readouterr()
    service.broken = {}
    assert (
        "not authorized" in said.err
        and "tl_x" not in said.err
        and json.loads(said.out)["rows"][0]["sessions"] == SESSIONS
    )
