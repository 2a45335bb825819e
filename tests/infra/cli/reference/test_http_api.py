"""The HTTP API's page and document: valid, and in step with what the handlers say of themselves."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from copy import deepcopy

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.requests import Request
from starlette.responses import Response

from functions.fork_best_of_n import fork_best_of_n
from functions.on_run_started import on_run_started
from functions.poll_tick import poll_tick
from infra.cli.reference.http_api import ENDPOINTS, document, page, schemas
from infra.cli.ui.served import app
from tests.support.checkout import ROOT

FUNCTIONS = sorted((ROOT / "functions").rglob("*.py"))


def problems(openapi: dict[str, object]) -> list[str]:
    return [str(error.message) for error in OpenAPIV31SpecValidator(openapi).iter_errors()]


def test_the_document_is_valid_openapi_3_1() -> None:
    assert document()["openapi"] == "3.1.0"
    assert problems(document()) == []


def test_a_reference_to_nothing_and_a_missing_answer_are_noticed() -> None:
    broken = deepcopy(document())
    del broken["components"]["schemas"]["RaceRequest"]["properties"]["source"]["$ref"]
    broken["paths"]["/poll_tick"]["post"].pop("responses")
    broken["components"]["schemas"]["Branch"] = 5
    assert problems(broken)


@pytest.mark.parametrize("handler", [on_run_started, poll_tick, fork_best_of_n])
def test_every_status_that_a_handler_names_is_in_the_document(
    handler: Callable[[Request], Awaitable[Response]],
) -> None:
    named = set(re.findall(r"\b([2345]\d\d)\b", handler.__doc__ or ""))
    operation = document()["paths"][f"/{handler.__name__}"]["post"]
    assert len(named) > 3 and named <= set(operation["responses"])


def test_the_document_lists_the_errors_that_the_code_makes_and_no_other() -> None:
    """Of each path: tests/fuzz/properties.py refuses an answer that its path does not list."""
    made = {int(status) for each in FUNCTIONS for status in re.findall(r"HttpError\(\s*(\d{3})", each.read_text())}
    router, to_nobody, unready = {405}, {499}, {503}
    listed = {status for endpoint in ENDPOINTS for status in endpoint.errors}
    assert listed - router - unready == made - router - to_nobody - unready


def test_every_route_of_the_application_is_in_the_document() -> None:
    routes = {route.path for route in app.routes if hasattr(route, "path")}
    assert routes - {"/"} == {endpoint.path.rstrip("/") for endpoint in ENDPOINTS}


def test_every_model_has_a_section_that_its_links_reach() -> None:
    text = page()
    anchors = {name.lower() for name in schemas()}
    assert set(re.findall(r"\(#(\w+)\)", text)) <= anchors
    assert all(f"### {name}\n" in text for name in schemas())
