"""The functions on the servers that their users run: a webhook comes, and the session is served."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx2
import pytest

from tests.faults.test_claims_under_faults import PROMPT, runs
from tests.support.serving import FRAMEWORK, SERVERS, TOKEN, UVICORN, serving, webhooks_to
from tests.support.signing import delivery, signed
from tests.support.waiting import until
from tests.support.world import OfflineWorld, Place

BOTH = ("uvicorn", "functions-framework under gunicorn")
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class ServedCopy:
    place: Place
    url: str

    @contextlib.contextmanager
    def session_served_once(self) -> Iterator[str]:
        """A session that begins now, and is served in the block."""
        before = self._sandboxes()
        session = self.place.session(PROMPT)
        yield session
        self.place.wait_done(session)
        assert runs(self.place, session) == ["ran"]
        assert [name for name in self._sandboxes() if name not in before] == [self.place.sandbox(session)]
        assert len(self.place.items(session)) == 1

    def _sandboxes(self) -> list[str]:
        return [box["name"] for box in self.place.sandboxes()]


Servers = Callable[[str], ServedCopy]


@contextlib.contextmanager
def started(world: OfflineWorld, place: Place | None = None) -> Iterator[Servers]:
    """Starts the server of a kind when a test first asks for it, for an environment of its own or for this one."""
    with contextlib.ExitStack() as held:

        @functools.cache
        def server(kind: str) -> ServedCopy:
            own = place or world.place()
            return ServedCopy(own, held.enter_context(serving(own, SERVERS[kind])))

        yield server


@pytest.fixture(scope="module")
def servers(world: OfflineWorld) -> Iterator[Servers]:
    with started(world) as server:
        yield server


@pytest.fixture(scope="module")
def ticked(world: OfflineWorld) -> Iterator[Servers]:
    """No webhook comes to their environments: the drain of one may go on, and claim what a tick is to find."""
    with started(world) as server:
        yield server


@pytest.fixture(scope="module")
def pair(world: OfflineWorld) -> Iterator[Sequence[ServedCopy]]:
    """Two of one environment."""
    with started(world, world.place()) as server:
        yield [server(kind) for kind in BOTH]


@pytest.mark.parametrize("server", SERVERS)
def test_a_webhook_leads_to_a_served_session(servers: Servers, server: str) -> None:
    one = servers(server)
    with webhooks_to(one.place, one.url + "/on_run_started"), one.session_served_once():
        pass


def test_the_reference_integrations_path_is_the_webhooks_too(servers: Servers) -> None:
    one = servers("uvicorn")
    with webhooks_to(one.place, one.url + "/"), one.session_served_once():
        pass


@pytest.mark.parametrize("server", SERVERS)
def test_a_tick_serves_what_no_webhook_announced(ticked: Servers, server: str) -> None:
    one = ticked(server)
    with one.session_served_once():
        answer = httpx2.post(f"{one.url}/poll_tick", headers=AUTHORIZED, timeout=60, trust_env=False)
        assert answer.status_code == 200
        (drain,) = answer.json()["drains"]
        assert [item["end"] for item in drain["items"]] == ["handed_over"]


@pytest.mark.parametrize("target", ["on_run_started", "poll_tick", "fork_best_of_n"])
def test_each_function_is_a_target_of_its_own(place: Place, target: str) -> None:
    command = [target if part == "bundle" else part for part in FRAMEWORK]
    with serving(place, [*command, "--debug"]) as url:
        answer = httpx2.post(url, content=b"{}", timeout=60, trust_env=False)
        assert answer.status_code == 401


def test_i3_the_same_webhook_ten_times_starts_one_worker(pair: Sequence[ServedCopy]) -> None:
    with pair[0].session_served_once():
        body = delivery()

        def send(number: int) -> int:
            url = pair[number % 2].url
            return httpx2.post(url, content=body, headers=signed(body), timeout=60, trust_env=False).status_code

        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            assert set(pool.map(send, range(10))) == {200}


def test_i8_two_servers_that_both_get_every_webhook_serve_each_session_once(pair: Sequence[ServedCopy]) -> None:
    place = pair[0].place
    with contextlib.ExitStack() as stack:
        before = len(place.sandboxes())
        for server in pair:
            stack.enter_context(webhooks_to(place, server.url))
        sessions = [place.session(PROMPT) for _ in range(5)]
        for session in sessions:
            place.wait_done(session)
    for session in sessions:
        assert len(place.items(session)) == 1
    assert len(place.sandboxes()) == before + 5


@pytest.mark.parametrize("server", BOTH)
def test_wrong_requests_get_the_right_answers(servers: Servers, server: str) -> None:
    with httpx2.Client(base_url=servers(server).url, timeout=60, trust_env=False) as client:
        assert client.get("/poll_tick", headers=AUTHORIZED).status_code == 405
        assert client.post("/poll_tick").status_code == 401
        assert client.post("/poll_tick", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.post("/on_run_started", content=b"{}").status_code == 401
        assert client.post("/on_run_started", content=b"x" * (1024 * 1024 + 1)).status_code == 401
        assert client.post("/poll_tick", headers=AUTHORIZED, content=b"x" * (1024 * 1024 + 1)).status_code == 413
        assert client.post("/nothing/here").status_code == 404
        bad = client.post("/fork_best_of_n", headers=AUTHORIZED, content=b'{"branches": 7}')
        assert bad.status_code == 400
        assert bad.json()["error"]["field"]


def test_without_their_keys_the_endpoints_fail_closed(place: Place) -> None:
    with serving(place, UVICORN, FUNCTIONS_TOKEN="", ANTHROPIC_WEBHOOK_SIGNING_KEY="") as url:
        body = delivery()
        assert httpx2.post(url, content=body, headers=signed(body), trust_env=False).status_code == 503
        assert httpx2.post(f"{url}/poll_tick", headers=AUTHORIZED, trust_env=False).status_code == 503
        assert httpx2.post(f"{url}/fork_best_of_n", headers=AUTHORIZED, trust_env=False).status_code == 503


def test_a_server_says_when_it_is_ready(servers: Servers) -> None:
    url = servers("uvicorn").url
    until(lambda: httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200, "the server did not become ready")
