"""The page on a server of the functions: who may look, what a refusal costs, and that links hold below a path."""

from __future__ import annotations

import base64
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from unittest import mock
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from infra.cli.environ import Loaded
from infra.cli.serve import serve
from infra.cli.ui.served import beside_the_functions
from shared import metrics
from shared.capability import FORK, Capability, issue, signing_key
from shared.errors import SettingsError
from tests.functions.test_imports import modules_after
from tests.infra.cli.fleet.test_survey import SESSION
from tests.support.many_sessions import many_sessions, variables
from tests.support.serving import TOKEN, serving
from tests.support.waiting import PATIENCE
from tests.support.world import API_KEY, OfflineWorld

COMMAND = ("-m", "infra.cli", "serve", "--ui", "--host", "127.0.0.1", "--port", "{port}")
PATHS = ("/ui/", "/ui/races", "/ui/alarms", f"/ui/sessions/{SESSION}", "/ui/ui.css", "/ui/htmx.min.js", "/ui/nowhere")


def basic(password: str, user: str = "me") -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def of_an_agent() -> str:
    caller = Capability(FORK, "env_1", SESSION, "work_1", branches=2, seconds=60.0, expires_at=int(time.time()) + 600)
    return issue(caller, signing_key(TOKEN))


class Instrument:
    def __init__(self, name: str, recorded: list[str]) -> None:
        self._name = name
        self._recorded = recorded

    def add(self, value: float, attributes: object) -> None:
        self._recorded.append(self._name)

    set = record = add


@pytest.fixture
def client() -> Iterator[TestClient]:
    with many_sessions() as services:
        environ = {**variables(services), "FUNCTIONS_TOKEN": TOKEN, "AGENT_FORK": "true"}
        environ["FUNCTIONS_PUBLIC_URL"] = "http://127.0.0.1:1"
        with mock.patch.dict(os.environ, environ, clear=True), TestClient(beside_the_functions(environ)) as made:
            yield made


def test_only_the_operators_token_shows_the_page_and_an_agents_never_does(client: TestClient) -> None:
    refused: list[tuple[Mapping[str, str], int]] = [
        ({}, 401), (basic("wrong"), 401), (basic(""), 401), (basic("x", TOKEN), 401), (bearer("wrong"), 401),
        ({"authorization": "Basic !"}, 401), ({"cookie": f"hands={TOKEN}"}, 401),
        (bearer(of_an_agent()), 403), (basic(of_an_agent()), 403),
    ]  # fmt: skip
    for path in PATHS:
        for headers, status in refused:
            answer = client.get(path, headers=headers)
            assert answer.status_code == status and SESSION not in answer.text
            assert ("www-authenticate" in answer.headers) == (status == 401)
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert client.post(path, headers=headers, content=b"x").status_code == status
    assert client.get(f"/ui/?token={TOKEN}").status_code == 401  # never in a URL
    for shown in (basic(TOKEN), bearer(TOKEN)):
        page = client.get("/ui/", headers=shown)
        assert page.status_code == 200 and "1000 sessions" in page.text and "Basic" not in page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert page.headers["cache-control"] == "no-store" and "set-cookie" not in page.headers
    assert client.post("/ui/sessions/x/stop", headers=basic(TOKEN), data={"token": "x"}).status_code == 405
    assert client.get("/ui/nowhere", headers=basic(TOKEN)).status_code == 404
    assert "Of this copy of the functions." in page.text and "Claude, reads" in page.text
    status = client.get("/status", headers=bearer(TOKEN)).json()
    assert status["calls"]["anthropic_writes"]["a_minute"] == 300 and status["calls"]["tensorlake"]["last_minute"] == 0
    counted = status["visits"]
    assert counted["calls"]["count"] == 0 and counted["strangers"]["count"] > len(PATHS) * len(refused)


def test_each_link_of_each_page_leads_to_another_below_the_path(client: TestClient) -> None:
    client.auth = ("anybody", TOKEN)
    assert client.get("/ui", follow_redirects=False).headers["location"] == "ui/"
    for path in ("/ui/", "/ui/races", "/ui/sessions/sesn_000000000000000000000001"):
        page = client.get(path)
        links = sorted(set(re.findall(r'(?:href|src)="([^"#]+)"', page.text)))
        assert {"ui.css", "htmx.min.js"} <= {each.rpartition("/")[2] for each in links}
        for link in links[:9]:
            found = client.get(str(page.url.join(link)))
            assert found.url.path.startswith("/ui/") and found.status_code == 200, (path, link)


def test_a_look_counts_as_no_tick_and_is_not_measured(client: TestClient) -> None:
    recorded: list[str] = []
    meter = mock.MagicMock()
    meter.create_counter.side_effect = meter.create_gauge.side_effect = lambda name, **_: Instrument(name, recorded)
    meter.create_histogram.side_effect = lambda name, **_: Instrument(name, recorded)
    metrics.switch_on(meter)
    try:
        for path in ("/ui/alarms", "/ui/"):
            assert client.get(path, headers=basic(TOKEN)).status_code == 200
        assert set(recorded) == {metrics.REQUESTS.name}
        read = [callback for call in meter.create_observable_gauge.call_args_list for callback in call.args[1]]
        assert read and [told for callback in read for told in callback(None)] == []
    finally:
        metrics.switch_off()


def test_a_refusal_imports_nothing_that_draws_or_asks() -> None:
    loaded = modules_after(
        "import asyncio\n"
        "from functions.server.lifecycle import ServerLifecycle\n"
        "from infra.cli.ui import served\n"
        "from shared.service import Service\n"
        "from shared.settings import Settings\n"
        "environ = {'ANTHROPIC_ENVIRONMENT_ID': 'env_1', 'ANTHROPIC_ENVIRONMENT_KEY': 'x', 'TENSORLAKE_API_KEY': 'x',\n"
        f"           'FUNCTIONS_TOKEN': '{TOKEN}'}}\n"
        "async def go():\n"
        "    lifecycle = ServerLifecycle(Service(Settings.from_environ(environ)), asyncio.Future())\n"
        "    scope = {'type': 'http', 'method': 'POST', 'path': '/ui/', 'headers': [], 'query_string': b'',\n"
        "             'root_path': '', 'state': {'lifecycle': lifecycle}}\n"
        "    said = []\n"
        "    async def send(message): said.append(message)\n"
        "    await served.app(scope, None, send)\n"  # None: who reads a body fails
        "    assert said[0]['status'] == 401, said\n"
        "asyncio.run(go())"
    )
    heavy = {"jinja2", "rich", "typer", "httpx2", "anthropic", "tensorlake", "pydantic", "orjson", "itsdangerous"}
    assert not loaded & heavy


def test_serve_ui_shows_the_sessions_and_answers_a_refused_body_before_it_comes(world: OfflineWorld) -> None:
    place = world.place(ANTHROPIC_API_KEY=API_KEY)
    session = place.session("$ true")
    with serving(place, COMMAND, SELF_TICK_SECONDS="0") as url:
        page = httpx2.get(f"{url}/ui/", auth=("me", TOKEN), timeout=PATIENCE, trust_env=False)
        assert page.status_code == 200 and session in page.text
        one = httpx2.get(f"{url}/ui/sessions/{session}", auth=("me", TOKEN), timeout=PATIENCE, trust_env=False)
        assert one.status_code == 200 and "<button" not in one.text
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port or 0), timeout=PATIENCE) as stranger:
            stranger.sendall(b"POST /ui/login HTTP/1.1\r\nHost: h\r\nContent-Length: 4000\r\n\r\ntoken=")
            assert stranger.recv(65_536).startswith(b"HTTP/1.1 401")
    assert re.search(r"\?token=|" + TOKEN, page.text) is None


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ({"FUNCTIONS_TOKEN": ""}, "FUNCTIONS_TOKEN is not set"),
        ({"FUNCTIONS_TOKEN": "short"}, "fewer than 32"),
        ({"ANTHROPIC_API_KEY": ""}, "ANTHROPIC_API_KEY is not set"),
    ],
)
def test_serve_ui_needs_a_strong_token_and_the_api_key(missing: dict[str, str], says: str) -> None:
    environ = {"ANTHROPIC_API_KEY": "x", "FUNCTIONS_TOKEN": TOKEN, **missing}
    with pytest.raises(SettingsError, match=says):
        serve(Loaded(environ, None), None, 0, page=True)
