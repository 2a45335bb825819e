"""What is uploaded, under functions-framework with exactly the variables that Cloud Run would set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import httpx2
import pytest

from infra.gcp import plan, source
from tests.faults.test_claims_under_faults import PROMPT, assert_served_once
from tests.infra.gcp.front_end import front_end, identity
from tests.support.serving import serving
from tests.support.signing import KEY, delivery, signed
from tests.support.world import Place

COMMAND = ("-m", "functions_framework", "--host", "127.0.0.1", "--port", "{port}")
ATTRIBUTES = {"specversion": "1.0", "id": "1", "source": "//scheduler", "type": "tick"}
EVENTS: Mapping[str, tuple[Mapping[str, str], bytes]] = {
    "binary": (
        {**{f"ce-{name}": value for name, value in ATTRIBUTES.items()}, "content-type": "application/json"},
        b'{"anything": 1}',
    ),
    "structured": ({"content-type": "application/cloudevents+json; charset=utf-8"}, json.dumps(ATTRIBUTES).encode()),
}


def manifest(place: Place, target: str) -> tuple[plan.GcpPlan, dict[str, str]]:
    """The deployment of this environment, and a service's variables: the plan's and Cloud Run's own."""
    planned = plan.make(
        {
            **place.environ,
            "GCP_PROJECT": "project-of-nobody",
            "GCP_REGION": "europe-west1",
            "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY,
        },
        "123456",
    )
    service = next(each for each in planned.services if each.target == target)
    environ = {
        **service.environ,
        **{variable: planned.stored[variable] for variable in service.secrets},
        "K_SERVICE": service.name,
        "K_REVISION": f"{service.name}-00001-abc",
        "K_CONFIGURATION": service.name,
        "FUNCTION_TARGET": target,
        "FUNCTION_SIGNATURE_TYPE": "http",
        "LOG_EXECUTION_ID": "true",
    }
    return planned, environ


@pytest.mark.parametrize("debug", [False, True], ids=["forked", "debug"])
def test_both_forms_of_cloud_events_from_the_schedules_account_reach_poll_tick(
    place: Place, tmp_path: Path, debug: bool
) -> None:
    planned, environ = manifest(place, "poll_tick")
    staged = source.stage(tmp_path / "source")
    command = (*COMMAND, "--source", str(staged / "main.py"), *(("--debug",) if debug else ()))
    valid = {"authorization": f"Bearer {identity(planned.caller, 'signed')}"}
    with front_end(planned.caller) as front:
        environ["AUTH_OWN_URL"] = front.url
        with serving(place, command, exactly=environ) as url:
            front.behind = url
            assert httpx2.post(front.url, timeout=20, trust_env=False).status_code == 403
            session = place.session(PROMPT)
            for form in ("structured", "binary") if debug else ("binary", "structured"):  # the first finds the session
                headers, body = EVENTS[form]
                answer = httpx2.post(front.url, headers={**headers, **valid}, content=body, timeout=90, trust_env=False)
                assert (answer.status_code, answer.content) == (204, b"")
            place.wait_done(session)
            assert_served_once(place, session)


def test_a_tick_service_that_is_public_by_mistake_believes_nobody(place: Place, tmp_path: Path) -> None:
    planned, environ = manifest(place, "poll_tick")
    staged = source.stage(tmp_path / "source")
    forged = {"authorization": f"Bearer {identity(planned.caller, 'SIGNATURE_REMOVED_BY_GOOGLE')}"}
    environ["AUTH_OWN_URL"] = "http://127.0.0.1:{port}"
    command = (*COMMAND, "--source", str(staged / "main.py"))
    with serving(place, command, exactly=environ) as url:
        answer = httpx2.post(url, headers=forged, timeout=30, trust_env=False)
        assert answer.status_code == 503
        assert "AUTH=platform" in answer.json()["error"]["message"]


def test_the_public_service_takes_a_signed_webhook_and_no_other(place: Place, tmp_path: Path) -> None:
    _, environ = manifest(place, "on_run_started")
    staged = source.stage(tmp_path / "source")
    with serving(place, (*COMMAND, "--source", str(staged / "main.py")), exactly=environ) as url:
        body = delivery()
        assert httpx2.post(url, content=body, timeout=60, trust_env=False).status_code == 401
        assert httpx2.post(url, content=body, headers=signed(body), timeout=60, trust_env=False).status_code == 200
