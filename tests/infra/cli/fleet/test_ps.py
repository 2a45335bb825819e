"""A look at a thousand sessions: a bounded number of calls, and what could not be seen is said."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from infra.cli.environ import Loaded
from infra.cli.fleet.ps import as_line, drawn
from infra.cli.fleet.survey import MOST_CALLS, look
from infra.cli.session.follow import FeedBroken, FeedRefused
from tests.support.certificates import untrusted_service
from tests.support.many_sessions import BUSY, ENVIRONMENT, SESSIONS, CrowdedService, many_sessions, variables


@pytest.fixture
def service() -> Iterator[CrowdedService]:
    with many_sessions() as made:
        yield made


def seen(service: CrowdedService) -> dict[str, Any]:
    found = asyncio.run(look(Loaded(variables(service), None), time.time()))
    whole: dict[str, Any] = json.loads(as_line(found, everything=False))
    return whole


def test_a_thousand_sessions_cost_at_most_thirty_calls_and_the_working_ones_come_first(service: CrowdedService) -> None:
    whole = seen(service)
    assert len(whole["sessions"]) == SESSIONS and whole["not_seen"] == []
    assert whole["calls"] == service.calls.total() <= MOST_CALLS
    states = [row["state"] for row in whole["sessions"]]
    assert sum(state.startswith("bash make for") for state in states) >= 3
    assert {row["item_state"] for row in whole["sessions"][:BUSY]} == {"active"}
    assert {row["sandbox_state"] for row in whole["sessions"][:BUSY]} == {"running"}
    assert states.count("asleep") == SESSIONS - BUSY and whole["sandboxes"] == []


def test_on_a_very_narrow_terminal_a_session_has_its_state_and_below_it_what_is_wrong(service: CrowdedService) -> None:
    found = asyncio.run(look(Loaded(variables(service), None), time.time()))
    out = io.StringIO()
    Console(file=out, width=40).print(drawn(found, 40, everything=False))
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["session", "state"] and all(len(line) <= 40 for line in lines)
    assert any("asleep" in line for line in lines)


def test_a_part_that_cannot_be_read_is_said_and_the_rest_is_shown(service: CrowdedService) -> None:
    service.broken = {"/work": 503}
    whole = seen(service)
    assert len(whole["sessions"]) == SESSIONS
    assert whole["not_seen"] == [f"the queue of {ENVIRONMENT} was not seen: the Claude API answered 503"]
    assert service.calls.total() <= MOST_CALLS


def test_sandboxes_that_cannot_be_listed_are_unknown_and_never_absent(service: CrowdedService) -> None:
    service.broken = {"/sandboxes": 500}
    whole = seen(service)
    assert {row["sandbox_state"] for row in whole["sessions"]} == {"unknown"}
    assert "the sandboxes were not seen" in whole["not_seen"][0]


def test_a_certificate_in_between_that_an_sdk_does_not_trust_is_named_with_the_way_out(
    service: CrowdedService, tmp_path: Path
) -> None:
    with untrusted_service(tmp_path) as url:
        loaded = Loaded({**variables(service), "TENSORLAKE_API_URL": url}, None)
        found = asyncio.run(look(loaded, time.time()))
        assert "api.tensorlake.ai" in found.missing[0] and found.sandboxes is None
        with pytest.raises(FeedRefused, match="set SSL_CERT_FILE"):
            asyncio.run(look(Loaded({**variables(service), "ANTHROPIC_BASE_URL": url}, None), time.time()))


def test_a_service_that_does_not_answer_is_named_and_is_no_refusal(service: CrowdedService) -> None:
    nowhere = "http://127.0.0.1:9"
    found = asyncio.run(look(Loaded({**variables(service), "TENSORLAKE_API_URL": nowhere}, None), time.time()))
    assert "no answer from 127.0.0.1:9" in found.missing[0]
    with pytest.raises(FeedBroken, match=r"no answer from 127\.0\.0\.1:9 \(connection refused\)"):
        asyncio.run(look(Loaded({**variables(service), "ANTHROPIC_BASE_URL": nowhere}, None), time.time()))


def test_a_key_that_is_refused_is_an_error_with_the_next_step(service: CrowdedService) -> None:
    service.broken = {"/v1/sessions": 401}
    with pytest.raises(FeedRefused, match=r"answered 401: [^.]*\. Check ANTHROPIC_API_KEY .* make doctor"):
        asyncio.run(look(Loaded(variables(service), None), time.time()))
