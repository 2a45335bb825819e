"""OpenTelemetry end to end: a session whose worker dies once, a fault and a race, and what a collector gets of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import yaml

from shared.adapters.observed import WORDS
from shared.metrics import CATALOGUE
from shared.reports import ItemEnd
from tests.support.admin import fault
from tests.support.otlp import Received, otlp_receiver
from tests.support.serving import FRAMEWORK, TOKEN, UVICORN, serving, webhooks_to
from tests.support.signing import KEY
from tests.support.waiting import until
from tests.support.world import ROOT, Place

PROMPT = "prompt-of-nobody"
OUTPUT = "output-of-nobody"
ONCE = "test -e killed || { touch killed; kill -9 $PPID; sleep 1; }"
NAMING = (
    ROOT / "infra/observability/dashboard.json",
    ROOT / "infra/observability/alerts.yaml",
    ROOT / "docs/observability.md",
)
SERIES = re.compile(r"\bhands_[a-z_]+|\bhttp_server_[a-z_]+")
_OF_HISTOGRAMS = re.compile(r"_(bucket|count|sum)$")
LABELS = {
    f"hands_{name}"
    for name in ("environment_id", "outcome", "route", "call_kind", "sandbox_state", "repair_act", "alarm_source")
}
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}


def named_in(path: Path) -> set[str]:
    """The metrics that a page, a dashboard or an alert names, as Prometheus knows them."""
    return {_OF_HISTOGRAMS.sub("", name) for name in SERIES.findall(path.read_text(encoding="utf-8"))} - LABELS


def test_each_metric_that_dashboard_alerts_and_page_name_is_one_of_ours_and_none_is_forgotten() -> None:
    ours = {metric.prometheus for metric in CATALOGUE}
    for path in NAMING:
        assert named_in(path) <= ours, path
    assert named_in(NAMING[2]) == ours
    dotted = NAMING[2].read_text(encoding="utf-8")
    assert all(f"`{metric.name}`" in dotted for metric in CATALOGUE)


def test_a_session_a_fault_and_a_race_are_told_and_no_secret_prompt_or_output_is(place: Place) -> None:
    place = place.adjusted(IDLE_GRACE_SECONDS="0", SETUP_SCRIPT="true")
    with otlp_receiver() as received:
        with (
            serving(
                place,
                UVICORN,
                OTEL_EXPORTER_OTLP_ENDPOINT=received.url,
                OTEL_METRICS_EXPORTER="otlp,prometheus",
                OTEL_METRIC_EXPORT_INTERVAL="500",
                OTEL_BSP_SCHEDULE_DELAY="200",
                WORKER_OTLP_ENDPOINT=received.url,
            ) as url,
            webhooks_to(place, f"{url}/"),
        ):
            prometheus = play(place, url, received)
        check_traces(received, place)
    check_queries(prometheus)
    assert set(received.metrics) >= {metric.name for metric in CATALOGUE}
    for metric in CATALOGUE:
        assert metric.prometheus in prometheus, metric.name
    everything = json.dumps(received.bodies) + prometheus
    for secret in (PROMPT, OUTPUT, TOKEN, KEY, *place.environ.values()):
        allowed = secret in (place.environment_id, "") or len(secret) < 16
        assert allowed or secret not in everything
    assert not any("authorization" in {name.lower() for name in each} for each in received.headers)


def play(place: Place, url: str, received: Received) -> str:
    def tick() -> None:
        assert httpx2.post(f"{url}/poll_tick", headers=AUTHORIZED, timeout=120).status_code == 200

    listing = {"method": "GET", "path": "/sandboxes*", "action": "status", "status": 500, "times": 3}
    with fault(place.world.tensorlake_admin, listing):
        tick()
    session = place.session(f"{PROMPT}\n$ echo {OUTPUT}; {ONCE}")

    def over() -> bool:
        tick()
        return place.done(session) and bool(received.metrics.get("hands.repairs"))

    until(over, "the session was not served again and put to sleep", seconds=120)
    body = {"source": {"image": place.environ["SANDBOX_IMAGE_NAME"]}, "n": 2, "command": ["echo", OUTPUT]}
    won = httpx2.post(f"{url}/fork_best_of_n", json=body, headers=AUTHORIZED, timeout=120)
    assert won.status_code == 200 and won.json()["winner"]
    assert httpx2.post(f"{url}/nowhere-of-{OUTPUT}", timeout=30).status_code == 404
    assert httpx2.get(f"{url}/metrics", timeout=30).status_code == 401
    until(lambda: received.span("execute_tool bash") is not None, "the worker's spans did not come")
    shown = httpx2.get(f"{url}/metrics", headers=AUTHORIZED, timeout=30)
    assert shown.headers["content-type"].startswith("text/plain")
    return shown.text


def check_traces(received: Received, place: Place) -> None:
    """Webhook, poll, item with its steps, worker and tool call are one trace; so are tick and repairs, race and
    branches."""
    spans = {span["spanId"]: span for span in received.spans}

    def way(span: object) -> list[str]:
        names = []
        while isinstance(span, dict):
            names.append(span["name"])
            span = spans.get(span.get("parentSpanId", ""))
        return names

    served = [way(span) for span in received.spans if span["name"] == "execute_tool bash"]
    expected = ["execute_tool bash", "worker", "hand over", "item", "poll"]
    assert any(each[:5] == expected for each in served), served
    items = [span for span in received.spans if span["name"] == "item"]
    assert {"POST /", "POST /poll_tick"} & {way(span)[-1] for span in items}
    assert any(way(span)[:3] == ["set-up", "worker", "hand over"] for span in received.spans)
    for step in ("bind", "hand over", "ack"):
        assert any(way(span)[:2] == [step, "item"] for span in received.spans if span["name"] == step)
    repairs = [way(span) for span in received.spans if span["name"].startswith("repair ")]
    assert any(each[1:4] == ["reconcile", "tick", "POST /poll_tick"] for each in repairs), repairs
    branches = [way(span) for span in received.spans if span["name"] == "branch"]
    assert [each[:3] for each in branches] == [["branch", "race", "POST /fork_best_of_n"]] * 2
    assert {span["attributes"].get("gen_ai.conversation.id") for span in items} == {
        span["attributes"]["gen_ai.conversation.id"] for span in received.spans if span["name"] == "worker"
    }
    routes = {each["attributes"]["http.route"] for each in received.metrics["http.server.request.duration"]}
    assert routes <= {"/", "/poll_tick", "/fork_best_of_n", "other"} and "other" in routes


def check_queries(prometheus: str) -> None:
    """Each label that a query selects or groups by is one of its metric, and each outcome one that there is; an alert
    tells only what its query leaves."""
    shown: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)\{(.*)\} ", prometheus, re.M):
        shown.setdefault(_OF_HISTOGRAMS.sub("", name), set()).update(re.findall(r'(\w+)="', labels))
    panels = json.loads(NAMING[0].read_text(encoding="utf-8"))["panels"]
    rules = [
        rule for group in yaml.safe_load(NAMING[1].read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
    ]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    outcomes = {*ItemEnd, *(word for _, word in WORDS)}
    for query in [*queries, *(rule["expr"] for rule in rules)]:
        (metric,) = {_OF_HISTOGRAMS.sub("", name) for name in SERIES.findall(query)} - LABELS
        selected = re.findall(r'(\w+)=~?"([^"]*)"', query)
        assert {name for name, _ in selected} | grouped_by(query) <= shown[metric], query
        assert {each for name, text in selected if name == "hands_outcome" for each in text.split("|")} <= outcomes, (
            query
        )
    for rule in rules:
        told = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert told <= grouped_by(rule["expr"]), rule["alert"]


def grouped_by(query: str) -> set[str]:
    return {name for names in re.findall(r"by \(([^)]*)\)", query) for name in re.findall(r"\w+", names)}


def test_under_the_framework_all_is_sent_before_the_answer_since_the_process_may_freeze_with_it(place: Place) -> None:
    """Its exporters would wait for an hour."""
    hour = "3600000"
    with (
        otlp_receiver() as received,
        serving(
            place,
            FRAMEWORK,
            OTEL_EXPORTER_OTLP_ENDPOINT=received.url,
            OTEL_METRIC_EXPORT_INTERVAL=hour,
            OTEL_BSP_SCHEDULE_DELAY=hour,
        ) as url,
    ):
        assert httpx2.post(f"{url}/poll_tick", timeout=60).status_code == 401
        span = received.span("POST /poll_tick", http__response__status_code="401")
        assert span is not None and "http.server.request.duration" in received.metrics


@pytest.mark.parametrize("variables", [{}, {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}])
def test_without_its_variables_nothing_of_it_is_imported(variables: dict[str, str]) -> None:
    code = (
        "import sys, functions.asgi, functions.aws_lambda\nfrom shared import otel, tracing, metrics\n"
        f"otel.start({variables!r})\n"
        "with tracing.span('x') as span: span.set({'a': 1}); span.fail('b')\n"
        "metrics.record(metrics.ITEMS, 1, {}); otel.flush()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_wrong_with_the_variables_is_said_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    from shared import otel

    otel.start({"OTEL_TRACES_EXPORTER": "zipkin"})
    assert "OTEL_TRACES_EXPORTER must be of otlp, none" in caplog.text


LAMBDA = """
import json, os, sys
from types import SimpleNamespace
os.environ["HANDS_SETTINGS"] = json.dumps({"OTEL_EXPORTER_OTLP_ENDPOINT": sys.argv[1], "OTEL_SERVICE_NAME": "mine"})
os.environ["OTEL_EXPORTER_OTLP_HEADERS"] = "file:" + sys.argv[2]
from functions import aws_lambda
from functions.lambda_events import UnknownEvent
from shared import tracing
try:
    aws_lambda.poll_tick({"Records": "none"}, SimpleNamespace(get_remaining_time_in_millis=lambda: 30_000))
except UnknownEvent:
    pass
with tracing.span("mine"):
    pass
aws_lambda.flush()
"""


def test_on_lambda_the_sdk_gets_what_the_deployment_handed_over_and_headers_from_their_secret(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("x-collector-key=key-of-nobody\n", encoding="utf-8")
    with otlp_receiver() as received:
        command = [sys.executable, "-c", LAMBDA, received.url, str(tmp_path / "headers")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        until(lambda: received.headers)
    assert received.headers[0]["x-collector-key"] == "key-of-nobody"
    assert "mine" in json.dumps(received.bodies)
    assert "key-of-nobody" not in done.stdout + done.stderr + json.dumps(received.bodies)


def test_headers_that_cannot_be_read_switch_telemetry_off_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LAMBDA, "http://127.0.0.1:9", str(tmp_path / "lost")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "telemetry.off OTEL_EXPORTER_OTLP_HEADERS" in done.stderr
