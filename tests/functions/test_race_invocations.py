"""Races that nobody waits for where the runtime freezes after an answer and a call of our own has them run: asked of
one server, run by another, in the entry of each target."""

from __future__ import annotations

import json
import socket
import time
from typing import Any, Final

import httpx2
import pytest
import yaml

from functions import race_invocations
from shared import secret_stores
from shared.capability import RUN_RACE, Capability, issue, signing_key
from shared.errors import SettingsError
from shared.settings import Settings
from tests.functions.test_agent_auth import ENVIRON, RACE, SESSION
from tests.functions.test_race_wishes import OPERATOR, agent, post, served
from tests.functions.test_recorded_races import GATED, RacingCopies
from tests.support.checkout import ROOT
from tests.support.http_stub import StubHandler, stub_server
from tests.support.serving import FRAMEWORK, TOKEN, UVICORN, kill_server, serving
from tests.support.waiting import until
from tests.support.world import OfflineWorld

GOOGLE: Final = (*FRAMEWORK[:4], "--target", "fork_best_of_n", *FRAMEWORK[6:])
AT_A_SESSION: Final = {**RACE, "source": {"session_id": SESSION}}
QUEUE: Final = "projects/p/locations/europe-west1/queues/hands-races"
ASYNC: Final = {**OPERATOR, "prefer": "respond-async"}


def of_the_manifest() -> dict[str, str]:
    """What Knative's manifest sets, secrets and ids apart."""
    service = yaml.safe_load((ROOT / "infra" / "knative" / "service.yaml").read_text(encoding="utf-8"))
    env = service["spec"]["template"]["spec"]["containers"][0]["env"]
    return {each["name"]: each["value"] for each in env if "value" in each and each["name"].isupper()}


_SET: Final = of_the_manifest()
KNATIVE: Final[dict[str, Any]] = {name: _SET[name] for name in ("DRAIN_MODE", "RACE_DEADLINE_SECONDS")}


@pytest.mark.parametrize(
    ("command", "extra"), [(UVICORN, KNATIVE), (GOOGLE, {})], ids=["knative", "functions framework"]
)
def test_a_race_that_was_answered_goes_on_in_another_process_when_the_first_one_is_killed(
    world: OfflineWorld, command: tuple[str, ...], extra: dict[str, Any]
) -> None:
    place = world.place()
    pids: list[int] = []
    with serving(place, command, **extra) as other, httpx2.Client(base_url=other, timeout=90, trust_env=False) as http:
        copies = RacingCopies(place, http, http, None)  # type: ignore[arg-type]  # no calls at once here
        handed: dict[str, Any] = {**extra, "RACES_HANDED_TO": f"{other}/fork_best_of_n"}
        with pytest.raises(ProcessLookupError), serving(place, command, pids=pids, **handed) as first:
            url = f"{first}/fork_best_of_n"
            answer = httpx2.post(url, json=GATED, headers=ASYNC, timeout=90, trust_env=False)
            assert answer.status_code == 202, answer.text
            kill_server(pids[0])
        race_id = answer.json()["race_id"]
        where = f"/fork_best_of_n/{race_id}"
        assert http.get(where, headers=OPERATOR).json()["state"] == "running"
        copies.open_gate(race_id)
        told = until(lambda: (now := http.get(where, headers=OPERATOR).json())["state"] != "running" and now)
        assert (told["state"], told["report"]["winner"]) == ("finished", "b0")
        assert len(copies.branches_of(race_id)) == 1
        late = HandedRaceToken(place.environment_id, race_id, "of an earlier record")
        assert http.post("/fork_best_of_n", headers=late.headers()).json() == {"race": "not taken up"}


class HandedRaceToken:
    """What a function shows itself for a race that it hands over, `changes` made."""

    def __init__(self, environment_id: str, race_id: str, by: str, **changes: Any) -> None:
        shown = Capability(RUN_RACE, environment_id, race_id, by, 0, 0.0, int(time.time()) + 60)
        self._shown = shown._replace(**changes)

    def headers(self, key: str = TOKEN) -> dict[str, str]:
        return {"authorization": f"Bearer {issue(self._shown, signing_key(key))}"}


def test_what_is_no_call_of_our_own_runs_nothing() -> None:
    one = "0" * 12
    genuine = HandedRaceToken("env_1", one, "x")
    expired, elsewhere = HandedRaceToken("env_1", one, "x", expires_at=1), HandedRaceToken("env_2", one, "x")
    with served(lives_on=False, RACES_HANDED_TO="https://hands.example.com/fork_best_of_n") as http:
        assert http.post("/fork_best_of_n", headers=genuine.headers()).json() == {"race": "not taken up"}
        statuses = [
            http.post("/fork_best_of_n", headers=genuine.headers("another-key-of-nobody-in-particular")),
            http.post("/fork_best_of_n", headers=expired.headers()),
            http.post("/fork_best_of_n", headers=elsewhere.headers()),
            http.get(f"/fork_best_of_n/{one}", headers=genuine.headers()),
            http.delete(f"/fork_best_of_n/{one}", headers=genuine.headers()),
        ]
        answers = [http.post("/fork_best_of_n", headers=genuine.headers()) for _ in range(12)]
    assert [each.status_code for each in statuses] == [401, 401, 403, 405, 405]
    assert answers[-1].status_code == 429, "each look costs a call of the service"


def test_an_address_that_takes_no_race_is_a_503_and_its_key_is_free() -> None:
    class Elsewhere(StubHandler):
        def do_POST(self) -> None:
            self.body()
            self.answer(404)

    with stub_server(Elsewhere) as url, served(lives_on=False, RACES_HANDED_TO=f"{url}/fork_best_of_n") as http:
        for _ in range(2):
            answer = post(http, OPERATOR, AT_A_SESSION, prefer="respond-async", idempotency_key="k")
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "try_again")


def test_an_address_that_never_takes_the_race_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_invocations, "TAKEN_SECONDS", 0.2)
    monkeypatch.setattr(race_invocations, "_LOOK_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        to = f"http://127.0.0.1:{silent.getsockname()[1]}/fork_best_of_n"
        with served(lives_on=False, RACES_HANDED_TO=to) as http:
            answer = post(http, OPERATOR, AT_A_SESSION, prefer="respond-async")
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "try_again")


def test_nothing_is_begun_where_the_call_could_not_be_signed() -> None:
    weak = {"FUNCTIONS_TOKEN": "short", "AGENT_FORK": "", "RACES_HANDED_TO": "https://hands.example.com"}
    with served(lives_on=False, **weak) as http:
        answer = post(
            http, {"authorization": "Bearer short"}, AT_A_SESSION, prefer="respond-async", idempotency_key="k"
        )
        assert answer.status_code == 503 and "FUNCTIONS_TOKEN" in answer.json()["error"]["message"]


def test_on_google_a_task_of_the_queue_has_the_race_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, str], Any]] = []

    def google(url: str, headers: dict[str, str], body: bytes | None = None) -> Any:
        if "metadata" in url:
            return {"access_token": "a-token-of-nobody"}
        asked.append((url, headers, json.loads(body or b"")))
        return {"name": f"{QUEUE}/tasks/1"}

    monkeypatch.setattr(secret_stores, "_json", google)
    handed = {"RACES_HANDED_TO": f"gcp-tasks:{QUEUE}", "FUNCTIONS_PUBLIC_URL": "https://fork.example.com"}
    with served(lives_on=False, **handed) as http:
        answer = post(http, agent(), prefer="respond-async")
        assert answer.status_code == 202
        ((url, headers, body),) = asked
        assert url == f"https://cloudtasks.googleapis.com/v2/{QUEUE}/tasks"
        assert headers["Authorization"] == "Bearer a-token-of-nobody"
        request = body["task"]["httpRequest"]
        assert (request["httpMethod"], request["url"]) == ("POST", "https://fork.example.com/fork_best_of_n")
        assert body["task"]["dispatchDeadline"] == "960s", "above the longest race"
        assert http.post("/fork_best_of_n", headers=request["headers"]).json() == {"race": "finished"}
        assert http.post("/fork_best_of_n", headers=request["headers"]).json() == {"race": "not taken up"}
        told = http.get(f"/fork_best_of_n/{answer.json()['race_id']}", headers=agent()).json()
    assert told["state"] == "finished" and told["report"]["winner"]


def test_a_queue_that_takes_no_task_is_a_503_that_names_no_token(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def google(url: str, headers: dict[str, str], body: bytes | None = None) -> Any:
        raise OSError(f"refused: {body!r}")

    monkeypatch.setattr(secret_stores, "_json", google)
    handed = {"RACES_HANDED_TO": f"gcp-tasks:{QUEUE}", "FUNCTIONS_PUBLIC_URL": "https://fork.example.com"}
    with served(lives_on=False, **handed) as http:
        assert post(http, OPERATOR, AT_A_SESSION, prefer="respond-async").status_code == 503
    assert "race.not_handed_over" in caplog.text and "hc2." not in caplog.text


@pytest.mark.parametrize(
    "target",
    [
        "aws-lambda:",
        "gcp-tasks:hands",
        f"gcp-tasks:{QUEUE}/tasks/1",
        "http://hands.example.com/fork_best_of_n",
        "http://svc.cluster.local.example.com",
        "ftp://hands.example.com",
        "https://user:password@hands.example.com",
        "hands",
    ],
)
def test_who_has_races_run_is_one_of_three(target: str) -> None:
    with pytest.raises(SettingsError, match="RACES_HANDED_TO"):
        Settings.from_environ({**ENVIRON, "RACES_HANDED_TO": target})


def test_a_queue_needs_the_functions_address_and_a_cluster_may_use_its_own_network() -> None:
    environ = {**ENVIRON, "AGENT_FORK": "", "FUNCTIONS_PUBLIC_URL": ""}
    with pytest.raises(SettingsError, match="FUNCTIONS_PUBLIC_URL"):
        Settings.from_environ({**environ, "RACES_HANDED_TO": f"gcp-tasks:{QUEUE}"})
    inside = "http://serverless-hands.default.svc.cluster.local/fork_best_of_n"
    assert Settings.from_environ({**environ, "RACES_HANDED_TO": inside}).races.handed_at == inside
