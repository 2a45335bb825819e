"""Races that nobody waits for on Lambda: answered by one process, run by another that was invoked for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from functions.aws_lambda import LambdaProcess
from functions.fork_best_of_n import fork_best_of_n
from functions.invocations import BadInvocation, NotEnqueued
from shared import names
from shared.ports import ItemState
from shared.service import Service
from shared.settings import Settings
from tests.functions.test_agent_auth import ENVIRON, RACE, SESSION, Listed, item, listing
from tests.functions.test_race_wishes import OPERATOR, agent
from tests.support.fake_host import FakeHost
from tests.support.lambda_events import LambdaContext, http

OTHER: Final = "aws-lambda:the-other"
AT_A_SESSION: Final = {**RACE, "source": {"session_id": SESSION}}


class Lambdas:
    """Two processes of the function, and the service that they share. `sent`: the messages for the second one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **extra: str) -> None:
        self.host = FakeHost(latency=0.001)
        self.host.add(names.sandbox_name("hands", "env_1", SESSION))
        self.sent: list[Any] = []
        self.meet: Callable[[Any], None] = lambda event: None
        monkeypatch.setattr("functions.race_invocations.send", self._send)
        self.first, self.second = (
            LambdaProcess({**ENVIRON, "RACES_HANDED_TO": OTHER, **extra}, self._make) for _ in "12"
        )

    def _make(self, settings: Settings) -> Service:
        service = Service(settings)
        service.host = self.host
        served = Listed(listing(item(ItemState.ACTIVE, f"work of {SESSION}", SESSION)))
        service.queue = lambda environment: served  # type: ignore[method-assign]  # the one seam for a queue
        return service

    async def _send(self, target: str, message: bytes) -> None:
        assert target == OTHER
        self.sent.append(json.loads(message))
        self.meet(self.sent[-1])

    def call(self, method: str, path: str = "/", body: Any = None, **headers: str) -> tuple[int, Any]:
        """Of the first process."""
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        content = b"" if body is None else json.dumps(body).encode()
        event = http(content, {**OPERATOR, **said}, method=method, path=path)
        answer = self.first.invoke(event, LambdaContext(120.0), fork_best_of_n)
        return answer["statusCode"], json.loads(answer["body"])

    def post(self, body: Any = AT_A_SESSION, **headers: str) -> tuple[int, Any]:
        return self.call("POST", body=body, prefer="respond-async", **headers)

    def deliver(self, event: Any) -> Any:
        return self.second.take_up(event, LambdaContext(120.0))

    def made(self) -> int:
        """How many sandboxes of branches there ever were."""
        parsed = [names.parse("hands", box.record.name) for box in self.host.boxes.values()]
        return sum(isinstance(each, names.RaceSandbox) and each.index is not None for each in parsed)


@pytest.fixture
def lambdas(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lambdas]:
    with closing(Lambdas(monkeypatch)) as made:
        yield made


@contextmanager
def closing(lambdas: Lambdas) -> Iterator[Lambdas]:
    try:
        yield lambdas
    finally:
        lambdas.first.close()
        lambdas.second.close()


def test_a_race_is_answered_by_one_process_and_run_by_another_once(lambdas: Lambdas) -> None:
    status, told = lambdas.post(idempotency_key="k")
    where = f"/{told['race_id']}"
    assert (status, told["state"], lambdas.made()) == (202, "running", 0)
    assert lambdas.call("GET", where)[1]["state"] == "running"
    (event,) = lambdas.sent
    assert sorted(event) == ["by", "do", "environment_id", "race_id"], "nothing of what was asked"
    assert lambdas.deliver(event) == {"race": "finished"}
    ended = lambdas.call("GET", where)[1]
    assert (ended["state"], ended["report"]["race_id"]) == ("finished", told["race_id"])
    assert ended["report"]["winner"] in ("b0", "b1")
    assert lambdas.deliver(event) == {"race": "not taken up"}, "Lambda may deliver an event twice"
    assert lambdas.made() == 2
    assert lambdas.post(idempotency_key="k") == (200, ended["report"]) and len(lambdas.sent) == 1


def test_what_a_race_refuses_before_it_begins_is_told_at_once_and_hands_nothing_over(lambdas: Lambdas) -> None:
    nowhere = {**RACE, "source": {"session_id": "sesn_0123456789Nobody"}}
    for _ in range(2):
        status, told = lambdas.post(nowhere, idempotency_key="k")
        assert (status, told["error"]["type"]) == (404, "source_not_found")
    assert lambdas.post({**AT_A_SESSION, "n": 65})[0] == 400
    assert lambdas.sent == []
    assert lambdas.post(idempotency_key="k")[0] == 202, "the key is free"


def test_a_race_that_nobody_was_invoked_for_is_a_503_and_its_key_is_free(lambdas: Lambdas) -> None:
    def refuse(event: Any) -> None:
        raise NotEnqueued("EndpointConnectionError")

    lambdas.meet = refuse
    status, told = lambdas.post(idempotency_key="k")
    assert (status, told["error"]["type"]) == (503, "try_again")
    assert lambdas.deliver(lambdas.sent[0]) == {"race": "not taken up"}, "what comes late finds no record"
    lambdas.meet = lambda event: None
    assert lambdas.post(idempotency_key="k")[0] == 202
    assert lambdas.deliver(lambdas.sent[0]) == {"race": "not taken up"}, "nor does it take another one's"
    assert lambdas.deliver(lambdas.sent[1]) == {"race": "finished"}
    assert lambdas.made() == 2


def test_an_invocation_whose_answer_got_lost_has_the_race(lambdas: Lambdas) -> None:
    def get_lost(event: Any) -> None:
        other = threading.Thread(target=lambdas.deliver, args=(event,))
        other.start()
        other.join(60)
        raise NotEnqueued("ReadTimeoutError")

    lambdas.meet = get_lost
    status, told = lambdas.post()
    assert (status, bool(told["winner"])) == (200, True), "it has ended already"
    assert lambdas.made() == 2


def test_a_race_that_is_deleted_before_its_invocation_comes_makes_nothing(lambdas: Lambdas) -> None:
    where = f"/{lambdas.post()[1]['race_id']}"
    assert lambdas.call("DELETE", where)[0] == 202
    assert lambdas.deliver(lambdas.sent[0]) == {"race": "cancelled"}
    told = lambdas.call("GET", where)[1]
    assert (told["state"], told["report"]["winner"]) == ("cancelled", None)
    assert lambdas.made() == 0


def test_a_source_that_is_gone_when_the_invocation_comes_is_the_races_end(lambdas: Lambdas) -> None:
    where = f"/{lambdas.post()[1]['race_id']}"
    for box in list(lambdas.host.boxes.values()):
        if box.record.name == names.sandbox_name("hands", "env_1", SESSION):
            lambdas.host.boxes.pop(box.record.id)
    assert lambdas.deliver(lambdas.sent[0]) == {"race": "failed"}
    told = lambdas.call("GET", where)[1]
    assert (told["state"], told["error_status"], told["error"]["type"]) == ("failed", 404, "source_not_found")


def test_an_agents_race_stays_its_own_and_within_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Lambdas(monkeypatch, RACE_AGENT_SANDBOX_SECONDS_PER_DAY="5000")) as lambdas:
        status, told = lambdas.post(dict(RACE), **agent())
        assert status == 202
        assert lambdas.deliver(lambdas.sent[0]) == {"race": "finished"}
        where = f"/{told['race_id']}"
        assert lambdas.call("GET", where, **agent())[1]["state"] == "finished"
        assert lambdas.call("GET", where, **agent("sesn_0a1B2c3E"))[0] in (403, 404)
        ledger = names.race_ledger_name("hands", "env_1", SESSION)
        assert ledger in {box.record.name for box in lambdas.host.boxes.values()}


@pytest.mark.parametrize(
    "changes",
    [
        {"do": "tick"},
        {"race_id": "no-id"},
        {"by": 1},
        {"by": None},
        {"environment_id": "env_of_nobody"},
        {"body": {"n": 1}},
    ],
)
def test_a_message_of_another_shape_is_refused(lambdas: Lambdas, changes: dict[str, Any]) -> None:
    event = {"do": "race", "environment_id": "env_1", "race_id": "0" * 12, "by": "x", **changes}
    with pytest.raises(BadInvocation):
        lambdas.deliver(event)


def test_a_message_about_a_race_that_there_is_not_does_nothing(lambdas: Lambdas) -> None:
    event = {"do": "race", "environment_id": "env_1", "race_id": "0" * 12, "by": "x"}
    assert lambdas.deliver(event) == {"race": "not taken up"}
