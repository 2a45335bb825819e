"""The probe sandbox: what it shows from inside, what it says where something is broken, and that it is always ended."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.cli.doctor import isolation, probe, runner
from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.findings import Finding, Severity
from infra.cli.doctor.runner import DoctorCheck
from shared.names import RaceSandbox, parse
from shared.ports import CommandOutput
from tests.infra.cli.doctor.bench import bad, ground_of, said, seen
from tests.support.admin import fault
from tests.support.world import Place

ROOMY = {"RECLAIM_SECONDS": "90", "BIND_SECONDS": "30", "HANDOVER_SECONDS": "30", "STRANDED_SECONDS": "180"}
ROOMY |= {"DRAIN_DEADLINE_SECONDS": "110"}


def probed(place: Place, **more: Any) -> list[Finding]:
    context = ground_of(place, **more)
    environment = next(iter(context.settings.environments.values()))
    return said(context, partial(_probe, environment))


async def _probe(environment: Any, context: DoctorContext, say: Any) -> None:
    await probe.check_probe(context, environment, say)


class _Daemon(http.server.BaseHTTPRequestHandler):
    """The open daemon of the open server, as far as doctor asks: no token is wanted."""

    def do_GET(self) -> None:
        self._answer(b"{}")

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self._answer(b'data: {"line": "0", "stream": "stdout"}\n\n' if order["user"] == "root" else b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def open_daemon() -> Iterator[int]:
    """Sandboxes share this machine's network here, so what listens on it stands in for a sandbox's own."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Daemon) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_probe_shows_everything_from_inside_and_is_gone_afterwards(place: Place) -> None:
    place = place.adjusted(**ROOMY)
    with open_daemon() as port:
        findings = probed(place, daemon_port=port)
    assert bad(findings) == {"HANDS703": Severity.WARNING}
    assert "without a token" in seen(findings, "HANDS703") and "as root" in seen(findings, "HANDS703")
    assert "not enforced here" in seen(findings, "HANDS702")
    assert "the Claude API" in seen(findings, "HANDS701")
    assert "refused its made-up credential" in seen(findings, "HANDS603")
    well = {each.code for each in findings if each.severity is Severity.OK}
    assert well >= {"HANDS402", "HANDS403", "HANDS601", "HANDS602", "HANDS603", "HANDS604", "HANDS605", "HANDS704"}
    assert "HANDS705" in well
    assert place.sandboxes() == []


def test_another_sdk_and_an_api_out_of_reach_are_found_in_one_probe(place: Place, tmp_path: Path) -> None:
    (tmp_path / "worker.lock").write_text("anthropic==1.0.0 \\\n", encoding="utf-8")
    place = place.adjusted(**ROOMY, ANTHROPIC_BASE_URL="http://127.0.0.1:9")
    findings = probed(place, locks=tmp_path)
    assert bad(findings) == {
        "HANDS402": Severity.WARNING,
        "HANDS603": Severity.WARNING,
        "HANDS701": Severity.ERROR,
    }
    assert "1.0.0 is locked" in seen(findings, "HANDS402")
    assert place.sandboxes() == []


def test_a_full_quota_and_an_unknown_image_are_told_apart(place: Place) -> None:
    admin = place.world.tensorlake_admin
    before = admin.get("settings")["max_sandboxes"]
    admin.patch("settings", {"max_sandboxes": 0})
    try:
        assert bad(probed(place)) == {"HANDS602": Severity.ERROR}
    finally:
        admin.patch("settings", {"max_sandboxes": before})
    findings = probed(place.adjusted(SANDBOX_IMAGE_NAME="never-built"))
    assert bad(findings) == {"HANDS601": Severity.ERROR}
    assert "never-built" in seen(findings, "HANDS601")


def test_a_probe_that_runs_out_of_time_is_a_finding_and_ends_its_sandbox(place: Place) -> None:
    context = ground_of(place.adjusted(**ROOMY))
    environment = next(iter(context.settings.environments.values()))
    admin = place.world.tensorlake_admin

    async def look(context: DoctorContext, say: Any) -> None:
        check = DoctorCheck("the probe sandbox", 5.0, partial(_probe_of, context, environment))
        for finding in await runner.run([check]):
            say(finding)

    with fault(admin, {"path": "/api/v1/processes/run", "action": "delay", "seconds": 60}):
        findings = said(context, look)
    assert bad(findings) == {"HANDS001": Severity.WARNING}
    assert place.sandboxes() == []


async def _probe_of(context: DoctorContext, environment: Any, say: Any) -> None:
    await probe.check_probe(context, environment, say)


def test_its_name_is_a_races_so_that_a_tick_ends_it_should_doctor_die(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    context = ground_of(place.adjusted(**ROOMY))
    host_class = type(context.service.host)

    async def create(self: object, spec: Any) -> Any:
        made.append(spec.name)
        from shared.ports import Refused

        return Refused(400, "HTTP 400: not today")

    monkeypatch.setattr(host_class, "create", create)
    environment = next(iter(context.settings.environments.values()))
    findings = said(context, partial(_probe, environment))
    assert bad(findings) == {"HANDS601": Severity.ERROR}
    name = parse(place.settings.prefix, made[0])
    assert isinstance(name, RaceSandbox)
    assert 60 < name.dead_man - time.time() < 900
    assert name.dead_man - time.time() > probe.seconds(context)


def test_a_real_sandbox_that_reaches_what_is_not_listed_is_an_error_and_tools_as_root_a_warning(place: Place) -> None:
    """The judgement alone, with an answer as a real sandbox without a filter would give it."""
    context = ground_of(place, offline=False)
    environment = next(iter(context.settings.environments.values()))
    asked: list[dict[str, Any]] = []

    async def look(context: DoctorContext, say: Any, verdict: str) -> None:
        async def run(_: str, __: str, args: list[str], **___: Any) -> CommandOutput:
            asked.append(json.loads(args[-1]))
            reach = {name: verdict if "Claude" not in name else "reached" for name in asked[-1]["reach"]}
            answer = {
                "uid": 1000 if verdict != "reached" else 0,
                "sudo": False,
                "reach": reach,
                "daemon": {"127.0.0.1": {"health": 401, "root": False}},
            }
            return CommandOutput(0, json.dumps(answer), "", False)

        context.service.host.run = run  # type: ignore[method-assign,assignment]  # the one call that is made
        await isolation.check_inside(context, environment, "any", say)

    findings = said(context, partial(_with, look, "reached"))
    assert bad(findings) == {"HANDS702": Severity.ERROR, "HANDS704": Severity.WARNING}
    assert set(asked[0]["reach"]) == {"the Claude API", "example.com", "1.1.1.1"}
    assert bad(said(ground_of(place, offline=False), partial(_with, look, "no answer"))) == {}
    assert "refuses the tools' user" in seen(findings, "HANDS703")


async def _with(look: Any, verdict: str, context: DoctorContext, say: Any) -> None:
    await look(context, say, verdict)
