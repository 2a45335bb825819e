"""What an agent may ask of fork_best_of_n with the capability of its session, and when."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from functions.fork_best_of_n import fork_best_of_n
from functions.poll_tick import poll_tick
from functions.state import STATE, FunctionsState
from shared import names
from shared.capability import FORK, Capability, issue, signing_key
from shared.ports import Doubtful, ItemState, ListedItem, Listing, Refused
from shared.service import Service
from shared.settings import Settings
from tests.fuzz.stage import NothingQueued
from tests.support.fake_host import FakeHost
from tests.support.serving import TOKEN

SESSION: Final = "sesn_0a1B2c3D"
WORK: Final = "work_1"
ENVIRON: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
    "FUNCTIONS_TOKEN": TOKEN,
    "BIND_SECONDS": "1",
    "AGENT_FORK": "true",
    "FUNCTIONS_PUBLIC_URL": "https://functions.example",
}
CAPABILITY: Final = Capability(FORK, "env_1", SESSION, WORK, 3, 60.0, int(time.time()) + 3_600)
RACE: Final[Mapping[str, Any]] = {"n": 2, "command": ["try"]}


def item(state: ItemState, work_id: str = WORK, session_id: str = SESSION) -> ListedItem:
    return ListedItem(work_id, "session", session_id, state, datetime.now(UTC))


class Listed(NothingQueued):
    """A queue that lists these answers, one a call, the last one indefinitely."""

    def __init__(self, *answers: Listing[ListedItem] | Refused | Doubtful) -> None:
        self.answers = list(answers)
        self.pages: list[int] = []

    async def list_items(self, pages: int, back_to: datetime | None = None) -> Any:
        self.pages.append(pages)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def listing(*rows: ListedItem, complete: bool = True, unreadable: int = 0) -> Listing[ListedItem]:
    return Listing(rows, complete, unreadable)


@contextlib.contextmanager
def client(queue: Listed, host: FakeHost | None = None, **extra: str) -> Iterator[TestClient]:
    made = host or FakeHost(latency=0.001)
    made.add(names.sandbox_name("hands", "env_1", SESSION))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
        service = Service(Settings.from_environ({**ENVIRON, **extra}))
        service.host = made
        service.queue = lambda environment: queue  # type: ignore[method-assign]  # the one seam for a queue
        yield {STATE: FunctionsState(service, background=False)}

    routes = [Route(f"/{function.__name__}", function, methods=["POST"]) for function in (fork_best_of_n, poll_tick)]
    with TestClient(Starlette(routes=routes, lifespan=lifespan)) as http:
        yield http


def post(
    http: TestClient, body: Any = RACE, path: str = FORK, token: str | None = None, **changes: Any
) -> httpx2.Response:
    """With the capability's token, `changes` made in it before it was issued."""
    token = token or issue(CAPABILITY._replace(**changes), signing_key(TOKEN))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post(f"/{path}", content=content, headers={"authorization": f"Bearer {token}"})


@pytest.mark.parametrize("state", [ItemState.STARTING, ItemState.ACTIVE])
def test_an_agent_races_in_its_own_session_without_naming_it(state: ItemState) -> None:
    with client(Listed(listing(item(state)))) as http:
        answer = post(http)
        named = post(http, {**RACE, "source": {"session_id": SESSION}, "environment_id": "env_1"})
    assert (answer.status_code, named.status_code) == (200, 200)
    assert answer.json()["winner"] in ("b0", "b1")


@pytest.mark.parametrize("state", [ItemState.QUEUED, ItemState.STOPPING, ItemState.STOPPED, ItemState.UNKNOWN])
def test_the_token_dies_with_its_work_item(state: ItemState) -> None:
    host = FakeHost(latency=0.001)
    with client(Listed(listing(item(state))), host) as http:
        answer = post(http)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "session_over")
    assert host.calls == []


def test_an_item_that_is_gone_or_of_another_session_is_no_better() -> None:
    for queue in (
        Listed(listing(item(ItemState.ACTIVE, "work_2"))),
        Listed(listing(item(ItemState.ACTIVE, session_id="sesn_other"))),
    ):
        with client(queue) as http:
            assert post(http).status_code == 403


@pytest.mark.parametrize(
    "answers",
    [
        [Doubtful("HTTP 503")],
        [Refused(401, "HTTP 401")],
        [listing(complete=False)],
        [listing(unreadable=1)],
        [listing(complete=False), Doubtful("HTTP 500")],
    ],
)
def test_a_look_up_in_doubt_is_no_pass_and_says_try_again(answers: Sequence[Any]) -> None:
    host = FakeHost(latency=0.001)
    with client(Listed(*answers), host) as http:
        answer = post(http)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "try_again")
    assert answer.headers["retry-after"]
    assert host.calls == []


def test_an_item_is_looked_for_behind_the_first_page_too() -> None:
    queue = Listed(listing(complete=False), listing(item(ItemState.ACTIVE), complete=False))
    with client(queue) as http:
        assert post(http).status_code == 200
    assert queue.pages == [1, 20]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"source": {"session_id": "sesn_another"}}, "source"),
        ({"source": {"session_id": SESSION.lower()}}, "source"),
        ({"source": {"image": "agent-cli"}}, "source"),
        ({"source": {"snapshot_id": "snap_1"}}, "source"),
        ({"source": {"sandbox_id": "box_1"}}, "source"),
        ({"environment_id": "env_2"}, "environment_id"),
        ({"environment_id": None}, "environment_id"),
        ({"promote": "snapshot"}, "promote"),
        ({"promote": "keep", "keep": {"name": "mine"}}, "promote"),
        ({"judge": {"type": "plugin", "name": "own"}}, "judge"),
        ({"judges": [{"name": "a", "judge": {"type": "plugin", "name": "own"}}]}, "judges"),
        ({"n": 4}, "n"),
        ({"deadline": 61}, "deadline"),
    ],
)
def test_what_reaches_beyond_the_session_is_refused_with_the_field(fields: dict[str, Any], field: str) -> None:
    host = FakeHost(latency=0.001)
    with client(Listed(listing(item(ItemState.ACTIVE))), host) as http:
        answer = post(http, {**RACE, **fields})
    assert (answer.status_code, answer.json()["error"].get("field")) == (403, field), answer.text
    assert host.calls == []


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("branches", {"branches": [{"name": f"b{number}", "command": ["true"]} for number in range(4)]}),
        ("params", {"params": [{"x": number} for number in range(4)], "command": ["true"]}),
    ],
)
def test_too_many_branches_written_out_are_refused_too(field: str, asked: dict[str, Any]) -> None:
    with client(Listed(listing(item(ItemState.ACTIVE)))) as http:
        answer = post(http, asked)
    assert (answer.status_code, answer.json()["error"]["field"]) == (403, field)


def test_the_branches_of_all_an_agents_rounds_count() -> None:
    host = FakeHost(latency=0.001)
    with client(Listed(listing(item(ItemState.ACTIVE))), host) as http:
        four = post(http, {**RACE, "rounds": 2})
        calls = len(host.calls)
        three = post(http, {"n": 1, "command": ["try"], "rounds": 3, "max_sandbox_seconds": 50})
    assert (four.status_code, calls) == (403, 0) and "in all rounds together" in four.json()["error"]["message"]
    assert [branch["name"] for branch in three.json()["branches"]] == ["b0", "r2.1-b0", "r3.1-b0"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"n": NaN, "command": ["x"]}'])
def test_a_body_that_is_no_race_is_still_a_400(body: bytes) -> None:
    with client(Listed(listing(item(ItemState.ACTIVE)))) as http:
        assert post(http, body).status_code == 400


def test_expired_tampered_and_foreign_tokens_are_a_401() -> None:
    good = issue(CAPABILITY, signing_key(TOKEN))
    with client(Listed(listing(item(ItemState.ACTIVE)))) as http:
        for answer in (
            post(http, expires_at=int(time.time()) - 1),
            post(http, token=good[:-1] + ("A" if good[-1] != "A" else "B")),
            post(http, token=issue(CAPABILITY, signing_key("another-token-of-nobody"))),
        ):
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert good not in answer.text


def test_the_token_of_one_function_opens_no_other() -> None:
    with client(Listed(listing(item(ItemState.ACTIVE)))) as http:
        assert post(http, path="poll_tick").status_code == 403
        assert post(http, function="poll_tick").status_code == 403


def test_an_environment_that_is_not_served_here_is_a_403() -> None:
    with client(Listed(listing(item(ItemState.ACTIVE)))) as http:
        assert post(http, environment_id="env_2").status_code == 403


def test_where_agents_may_not_fork_a_token_that_is_still_about_is_a_403() -> None:
    with client(Listed(listing(item(ItemState.ACTIVE))), AGENT_FORK="false") as http:
        answer = post(http)
    assert answer.status_code == 403
    assert "AGENT_FORK" in answer.json()["error"]["message"]
