"""`hands top`: calls a minute against the budget, as far as anybody tells it."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from rich.console import Console

from infra.cli.environ import Loaded
from infra.cli.fleet.call_use import Calls, of_the_functions_at, told
from infra.cli.fleet.survey import Seen
from infra.cli.fleet.top import drawn, overview
from shared import names
from shared.ports import Listing
from tests.infra.cli.fleet.test_survey import NOW, SETTINGS, box
from tests.support.many_sessions import many_sessions, variables
from tests.support.serving import TOKEN

USE = {"last_minute": 40, "a_minute": 1200, "busiest": [0, 90, 3]}


def said(seen: Any) -> str:
    out = Console(file=io.StringIO(), width=200)
    out.print(drawn(seen))
    return " ".join(out.file.getvalue().split())  # type: ignore[attr-defined]


def test_calls_are_told_by_the_functions_and_the_organisations_where_the_service_tells_them() -> None:
    with many_sessions() as service:
        service.status = {"calls": {"anthropic_reads": USE, "tensorlake": {**USE, "a_minute": None}}}
        header = "anthropic-ratelimit-requests"
        service.headers = {f"{header}-limit": "1200", f"{header}-remaining": "950"}
        served = {**variables(service), "FUNCTIONS_URL": service.url, "FUNCTIONS_TOKEN": TOKEN}
        seen = asyncio.run(overview(Loaded(served, None)))
        shown = said(seen)
        assert "Claude, reads 40 1200 90" in shown and "Tensorlake 40 any 90" in shown
        assert "Of the copy of the functions at FUNCTIONS_URL." in shown
        assert "950 of the organisation's 1200 requests are left." in shown
        asked = service.calls.total() - service.calls["/status"]
        assert f"This look took {asked} calls." in shown and service.calls["/status"] == 1
        service.headers, service.broken = {}, {"/status": 401}
        shown = said(asyncio.run(overview(Loaded(served, None))))
        assert "FUNCTIONS_URL answers 401 at /status" in shown and "organisation's" not in shown
        shown = said(asyncio.run(overview(Loaded(variables(service), None))))
        assert "no service tells how much is used. To see what the functions use of it: set FUNCTIONS_URL" in shown


def asked_of(url: str, **more: Any) -> Calls:
    settings = SETTINGS.from_environ({**ENVIRON, "FUNCTIONS_TOKEN": TOKEN})
    return asyncio.run(of_the_functions_at(url)(Seen(settings, NOW, None, {}, **more)))


ENVIRON = {"ANTHROPIC_ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": "k", "TENSORLAKE_API_KEY": "k"}


def test_a_server_in_a_sandbox_is_not_asked_as_that_would_keep_it_awake() -> None:
    server = box(name=names.new_server_name(SETTINGS.prefix))
    listed = Listing([server], complete=True)
    for mark in (server.id, server.name):
        said = asked_of(f"https://5051-{mark}.sandbox.invalid", sandboxes=listed)
        assert said.uses == () and "would keep it awake" in said.meaning
    other = asked_of("http://127.0.0.1:9/", sandboxes=listed)
    assert other == Calls((), "FUNCTIONS_URL did not tell its calls (ConnectError).")


@pytest.mark.parametrize(
    "calls",
    [None, [], {"tensorlake": 5}, {"tensorlake": {**USE, "last_minute": "1"}}, {"tensorlake": {**USE, "busiest": 1}}],
)
def test_what_is_no_count_is_left_out(calls: Any) -> None:
    assert told({"calls": calls}).uses == ()
