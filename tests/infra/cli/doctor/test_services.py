"""Each thing broken on purpose, on the offline services over real sockets, and the code that says so."""

from __future__ import annotations

import http.server
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from tensorlake.sandbox import Sandbox

from infra.cli.doctor import images, leftover_checks, schedule, services, webhook, work
from infra.cli.doctor.context import account_of
from infra.cli.doctor.findings import Finding, Severity
from infra.sandbox.look import ServerLook
from shared.names import new_race_id, new_server_name, race_sandbox_name, sandbox_name
from shared.prepared.recipe import prepared_names
from tests.infra.cli.doctor.bench import bad, ground_of, said, seen
from tests.support.admin import fault
from tests.support.certificates import untrusted_service
from tests.support.serving import UVICORN, serving
from tests.support.signing import OTHER_KEY
from tests.support.world import Place

LONG = 100.0
"""Seconds: more than the R and the T of tests/support/world.py."""


def queue(place: Place) -> list[Finding]:
    context = ground_of(place)
    environment = next(iter(context.settings.environments.values()))
    return said(context, lambda context, say: work.check_environment(context, environment, say))


def as_worker(place: Place) -> anthropic.Anthropic:
    key, url = place.environ["ANTHROPIC_ENVIRONMENT_KEY"], place.environ["ANTHROPIC_BASE_URL"]
    return anthropic.Anthropic(auth_token=key, base_url=url)


def test_a_fresh_environment_is_well(place: Place) -> None:
    findings = [
        *queue(place),
        *said(ground_of(place), services.check_tensorlake, services.check_clock, services.check_person),
        *said(ground_of(place), lambda context, say: images.check_image(context, "agent-cli", say)),
    ]
    assert bad(findings) == {}
    wanted = {"HANDS201", "HANDS202", "HANDS203", "HANDS204", "HANDS205", "HANDS301", "HANDS302", "HANDS303"}
    assert {each.code for each in findings} == {*wanted, "HANDS401"}


def test_an_environment_key_that_is_wrong_or_another_environments_is_found(place: Place) -> None:
    other = place.world.place()
    wrong = place.adjusted(ANTHROPIC_ENVIRONMENT_KEY="sk-ant-oat01-of-nobody")
    assert bad(queue(wrong)) == {"HANDS201": Severity.ERROR}
    swapped = place.adjusted(ANTHROPIC_ENVIRONMENT_KEY=other.environ["ANTHROPIC_ENVIRONMENT_KEY"])
    assert bad(queue(swapped)) == {"HANDS202": Severity.ERROR}


def test_an_environment_that_is_not_self_hosted_is_found(place: Place) -> None:
    cloud = place.world.api.beta.environments.create(name="cloud", config={"type": "cloud"})
    key = place.world.claude_admin.post("keys/environment", {"environment_id": cloud.id})["value"]
    elsewhere = place.adjusted(ANTHROPIC_ENVIRONMENT_ID=cloud.id, ANTHROPIC_ENVIRONMENT_KEY=key)
    place.environment_id = cloud.id
    findings = queue(elsewhere)
    assert bad(findings) == {"HANDS202": Severity.ERROR}
    assert "not self-hosted" in seen(findings, "HANDS202")


def test_services_that_do_not_answer_are_found(place: Place) -> None:
    nowhere = place.adjusted(ANTHROPIC_BASE_URL="http://127.0.0.1:9", TENSORLAKE_API_URL="http://127.0.0.1:9")
    silent = [*queue(nowhere), *said(ground_of(nowhere), services.check_tensorlake)]
    assert bad(silent) == {"HANDS201": Severity.ERROR, "HANDS203": Severity.ERROR}
    assert all("no answer from 127.0.0.1:9" in each.seen and "no key" in str(each.fix) for each in silent)
    with fault(place.world.tensorlake_admin, {"path": "/sandboxes", "action": "status", "status": 403}):
        refused = said(ground_of(place), services.check_tensorlake)
    assert bad(refused) == {"HANDS203": Severity.ERROR}
    assert [each.fix for each in refused] == [None], "the catalogue's, which is about the key"


@pytest.mark.parametrize(("off", "severity"), [(90, Severity.WARNING), (-600, Severity.ERROR)])
def test_a_clock_that_is_off_is_measured_against_both_services(place: Place, off: int, severity: Severity) -> None:
    findings = said(ground_of(place, now=lambda: time.time() + off), services.check_clock)
    assert [(each.code, each.severity) for each in findings] == [("HANDS204", severity)] * 2
    assert ("ahead of" if off > 0 else "behind") in seen(findings, "HANDS204")


def test_a_wrong_api_key_and_a_missing_agent_are_found(place: Place) -> None:
    context = ground_of(place)
    context.environ = {**context.environ, "ANTHROPIC_API_KEY": "sk-ant-api03-of-nobody"}
    assert bad(said(context, services.check_person)) == {"HANDS205": Severity.ERROR}
    api_key = str(place.world.api.api_key)
    context.environ = {**context.environ, "ANTHROPIC_API_KEY": api_key, "ANTHROPIC_AGENT_ID": "agent_gone"}
    assert bad(said(context, services.check_person)) == {"HANDS206": Severity.ERROR}


def test_a_custom_tool_that_no_image_of_ours_has_is_named(place: Place, tmp_path: Path) -> None:
    schema: Any = {"type": "object", "properties": {}}
    agent = place.world.api.beta.agents.create(
        name="with a tool",
        model="claude-opus-5",
        tools=[{"type": "custom", "name": "wiki__search", "description": "Finds pages.", "input_schema": schema}],
    )
    context = ground_of(place)
    own = {"ANTHROPIC_API_KEY": str(place.world.api.api_key), "ANTHROPIC_AGENT_ID": agent.id}
    context.environ = {**context.environ, **own}
    findings = said(context, services.check_person)
    assert bad(findings) == {"HANDS207": Severity.WARNING}
    assert "wiki__search" in seen(findings, "HANDS207")
    (tmp_path / "mcp.json").write_text('{"mcpServers": {"wiki": {"command": "wiki-server"}}}')
    context.environ = {**context.environ, "SANDBOX_MCP": str(tmp_path / "mcp.json")}
    assert bad(said(context, services.check_person)) == {}


def test_work_that_waits_longer_than_the_reclaim_window_is_found(place: Place) -> None:
    place.session("read a.txt")
    soon = queue(place)
    assert "the oldest for" in seen(soon, "HANDS301") and "nobody polls" in seen(soon, "HANDS301")
    assert "make serve" in seen(soon, "HANDS303")
    assert {each.severity for each in soon if each.code in ("HANDS301", "HANDS303")} == {Severity.INFO}
    context = ground_of(place, now=lambda: time.time() + LONG)
    environment = next(iter(context.settings.environments.values()))
    findings = said(context, lambda context, say: work.check_environment(context, environment, say))
    assert bad(findings) == {"HANDS301": Severity.ERROR}
    # A copy that takes it, and cannot serve it:
    as_worker(place).beta.environments.work.poll(environment.id, anthropic_worker_id="another")
    findings = said(context, lambda context, say: work.check_environment(context, environment, say))
    assert bad(findings) == {"HANDS305": Severity.WARNING}


def test_an_item_that_was_acked_and_never_beaten_is_stranded(place: Place) -> None:
    place.session("read a.txt")
    with as_worker(place) as worker:
        item = worker.beta.environments.work.poll(place.environment_id)
        assert item is not None
        worker.beta.environments.work.ack(item.id, environment_id=place.environment_id)
    context = ground_of(place, now=lambda: time.time() + LONG)
    environment = next(iter(context.settings.environments.values()))
    findings = said(context, lambda context, say: work.check_environment(context, environment, say))
    assert bad(findings) == {"HANDS302": Severity.ERROR}
    assert item.id in seen(findings, "HANDS302")


def test_a_worker_outside_our_sandboxes_that_beats_is_a_stranger(place: Place) -> None:
    session_id = place.session("read a.txt")
    with as_worker(place) as worker:
        item = worker.beta.environments.work.poll(place.environment_id, anthropic_worker_id="a-stranger")
        assert item is not None
        worker.beta.environments.work.ack(item.id, environment_id=place.environment_id)
        worker.beta.environments.work.heartbeat(
            item.id, environment_id=place.environment_id, expected_last_heartbeat="NO_HEARTBEAT"
        )
    findings = queue(place)
    assert bad(findings) == {"HANDS303": Severity.WARNING}
    assert session_id in seen(findings, "HANDS303") and "1 polled" in seen(findings, "HANDS303")


def test_an_image_that_was_never_built_is_found(place: Place) -> None:
    findings = said(ground_of(place), lambda context, say: images.check_image(context, "never-built/at-all", say))
    assert bad(findings) == {"HANDS401": Severity.ERROR}


def test_what_a_dead_race_left_is_found_and_so_is_that_nobody_ticks(place: Place) -> None:
    name = race_sandbox_name(place.settings.prefix, place.environment_id, new_race_id(), 3, int(time.time()) - 3600)
    tensorlake = place.environ["TENSORLAKE_API_URL"]
    headers = {"authorization": f"Bearer {place.environ['TENSORLAKE_API_KEY']}"}
    made = httpx2.post(
        f"{tensorlake}/sandboxes",
        json={"name": name, "image": "agent-cli"},
        headers=headers,
        timeout=60,
        trust_env=False,
    )
    assert made.status_code == 200
    try:
        findings = said(ground_of(place), leftover_checks.check_remains)
    finally:
        httpx2.delete(f"{tensorlake}/sandboxes/{name}", headers=headers, timeout=60, trust_env=False)
    assert bad(findings) == {"HANDS304": Severity.WARNING, "HANDS606": Severity.WARNING}
    assert name in seen(findings, "HANDS606")
    assert bad(said(ground_of(place), leftover_checks.check_remains)) == {}


def test_what_nothing_cleans_up_is_named_a_renamed_prefix_and_a_snapshot_that_may_be_a_persons(place: Place) -> None:
    account = account_of(ground_of(place))
    mine = {"api_url": account.api_url, "api_key": account.api_key.reveal()}
    session = "sesn_01Doctor"
    name = sandbox_name("before", place.environment_id, session)
    boxes = [Sandbox.create(name=each, image="agent-cli", **mine) for each in (name, place.sandbox(session))]
    try:
        taken = boxes[1].checkpoint()
        findings = said(ground_of(place), leftover_checks.check_remains)
        assert bad(findings) == {"HANDS608": Severity.WARNING}
        assert name in seen(findings, "HANDS608") and place.sandbox(session) not in seen(findings, "HANDS608")
        assert taken is not None and taken.snapshot_id in seen(findings, "HANDS607")
        Sandbox.delete_snapshot(taken.snapshot_id, **mine)
    finally:
        for box in boxes:
            box.terminate()
    codes = {each.code for each in said(ground_of(place), leftover_checks.check_remains)}
    assert not codes & {"HANDS607", "HANDS608"}


def judged(report: dict[str, Any] | None, status: str = "running") -> list[Finding]:
    findings: list[Finding] = []
    schedule.judge(ServerLook("hands-server-1", "id", status, "http://127.0.0.1/", 60, report=report), findings.append)
    return findings


def ticked(up: float, count: int, ago: float | None) -> list[Finding]:
    """Of a server that is up for so long and was called so often, the last time so long ago. All in minutes."""
    now = 1_800_000_000.0
    last = now - ago * 60 if ago is not None else None
    return judged({"now": now, "started_at": now - up * 60, "visits": {"ticks": {"count": count, "last_at": last}}})


@contextmanager
def sandbox(place: Place, name: str) -> Iterator[None]:
    account = account_of(ground_of(place))
    box = Sandbox.create(name=name, image="agent-cli", api_url=account.api_url, api_key=account.api_key.reveal())
    try:
        yield
    finally:
        box.terminate()


def test_a_prepared_start_that_is_out_of_date_is_said(place: Place) -> None:
    def remains(of: Place) -> list[Finding]:
        return said(ground_of(of), leftover_checks.check_remains)

    mine, now = place.adjusted(SETUP_SCRIPT="true"), time.time()
    assert "HANDS609" not in {each.code for each in remains(mine)}
    assert bad(remains(mine.adjusted(SETUP_PREPARED_BY_TICKS="true")))["HANDS609"] is Severity.WARNING
    names = prepared_names(mine.settings, mine.environment, now)
    with sandbox(mine, names[1]):
        assert "older than it should be" in seen(remains(mine), "HANDS609")
        with sandbox(mine, names[0]):
            assert f"start from {names[0]}" in seen(remains(mine), "HANDS609")
        changed = mine.adjusted(SETUP_SCRIPT="false")
        assert bad(remains(changed))["HANDS609"] is Severity.WARNING


def test_a_server_sandbox_without_a_schedule_is_a_warning_unless_it_has_just_begun() -> None:
    assert bad(ticked(up=60, count=0, ago=None)) == {"HANDS304": Severity.WARNING}
    (young,) = ticked(up=3, count=0, ago=None)
    assert young.severity is Severity.INFO and "not yet known" in young.seen
    assert [each.severity for each in ticked(up=60, count=12, ago=4)] == [Severity.OK]


def test_a_schedule_that_ended_is_told_from_one_that_is_slow() -> None:
    assert bad(ticked(up=60, count=1, ago=58)) == {"HANDS304": Severity.WARNING}
    assert bad(ticked(up=600, count=100, ago=100)) == {"HANDS304": Severity.WARNING}
    assert bad(ticked(up=600, count=10, ago=50)) == {}  # hourly


def test_of_a_sleeper_nobody_can_tell_whether_it_is_ticked_which_is_a_warning() -> None:
    findings = judged(None, "suspended")
    assert bad(findings) == {"HANDS304": Severity.WARNING} and "suspended" in seen(findings, "HANDS304")


def test_server_sandboxes_give_the_webhooks_address_and_a_second_one_is_left_over(place: Place) -> None:
    account = account_of(ground_of(place))
    names = [new_server_name(place.settings.prefix) for _ in range(2)]
    mine = {"api_url": account.api_url, "api_key": account.api_key.reveal()}
    boxes = [
        Sandbox.create(name=name, image="agent-cli", exposed_ports=[9], allow_unauthenticated_access=True, **mine)
        for name in names
    ]
    try:
        assert "HANDS606" not in bad(
            said(ground_of(place), leftover_checks.check_remains)
        )  # somebody may be starting it
        findings = said(ground_of(place, now=lambda: time.time() + 600), leftover_checks.check_remains)
        assert bad(findings) == {"HANDS606": Severity.WARNING}
        assert names[1] in seen(findings, "HANDS606") and names[0] not in seen(findings, "HANDS606")
        probed = said(ground_of(place), webhook.check_webhook)
        assert "HANDS503" in bad(probed)  # nothing listens in it, and the service's proxy says so
    finally:
        for box in boxes:
            box.terminate()
    assert [each.code for each in said(ground_of(place), webhook.check_webhook)] == ["HANDS002"]


def test_the_webhook_is_judged_by_a_signed_and_a_wrongly_signed_event(place: Place) -> None:
    with serving(place, UVICORN) as url:
        well = said(ground_of(place, url=url), webhook.check_webhook)
        assert bad(well) == {}
        assert [each.code for each in well if each.severity is Severity.OK] == ["HANDS502", "HANDS504", "HANDS503"]
        other = ground_of(place, url=url)
        other.settings = place.adjusted(ANTHROPIC_WEBHOOK_SIGNING_KEY=OTHER_KEY).settings
        findings = said(other, webhook.check_webhook)
        assert bad(findings) == {"HANDS503": Severity.ERROR}
        assert "another signing key" in seen(findings, "HANDS503")
        assert bad(said(ground_of(place, url=f"{url}/elsewhere"), webhook.check_webhook)) == {
            "HANDS503": Severity.ERROR
        }


class _Answers(http.server.BaseHTTPRequestHandler):
    def __init__(self, status: int, *args: Any) -> None:
        self.status = status
        super().__init__(*args)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        self.send_header("location", "/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def answering(status: int) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), partial(_Answers, status)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def test_who_accepts_every_signature_or_redirects_or_has_no_key_is_found(place: Place) -> None:
    with answering(200) as url:
        findings = said(ground_of(place, url=url), webhook.check_webhook)
        assert bad(findings) == {"HANDS503": Severity.WARNING, "HANDS504": Severity.ERROR}
    with answering(308) as url:
        assert "redirect" in seen(said(ground_of(place, url=url), webhook.check_webhook), "HANDS503")
    with answering(503) as url:
        assert bad(said(ground_of(place, url=url), webhook.check_webhook)) == {"HANDS503": Severity.ERROR}


def test_an_address_that_is_not_public_https_is_not_even_probed_for_the_real_services(place: Place) -> None:
    for url in ("http://127.0.0.1:9/", "http://hooks.example.com/", "https://127.0.0.1:9/", "ftp://x", "https://[::1"):
        assert bad(said(ground_of(place, offline=False, url=url), webhook.check_webhook)) == {
            "HANDS501": Severity.ERROR
        }
    assert bad(said(ground_of(place, url="http://127.0.0.1:9/"), webhook.check_webhook)) == {"HANDS502": Severity.ERROR}
    assert [each.code for each in said(ground_of(place), webhook.check_webhook)] == ["HANDS002"]


def test_a_certificate_that_nobody_vouches_for_is_found(place: Place, tmp_path: Path) -> None:
    with untrusted_service(tmp_path) as url:
        findings = said(ground_of(place, url=f"{url}/"), webhook.check_webhook)
    assert bad(findings) == {"HANDS502": Severity.ERROR}
    assert "certificate" in seen(findings, "HANDS502")


def test_a_certificate_in_between_that_an_sdk_does_not_trust_is_named_with_the_way_out(
    place: Place, tmp_path: Path
) -> None:
    with untrusted_service(tmp_path) as url:
        ground = ground_of(
            place.adjusted(ANTHROPIC_BASE_URL=url, TENSORLAKE_API_URL=url, ANTHROPIC_API_KEY="sk-ant-api-x")
        )
        findings = said(ground, services.check_tensorlake, services.check_person)
    assert "set SSL_CERT_FILE" in seen(findings, "HANDS201")
    assert "api.tensorlake.ai" in seen(findings, "HANDS203") and "exempted" in seen(findings, "HANDS203")
