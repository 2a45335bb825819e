"""One caller takes little from the others: calls a minute, races at once, values in a body; and who asked is logged."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from typing import Any

import pytest

from functions.race_admission import CallRates, RunningRaces
from functions.race_requests import MOST_ELEMENTS, read_race, require_few_elements
from functions.requests import BODY_LIMIT, HttpError
from shared.capability import FORK, Capability
from shared.ports import ItemState
from shared.races.agent_policy import with_own_source
from shared.races.request import RaceRequest
from tests.functions.test_agent_auth import RACE, SESSION, WORK, Listed, client, item, listing, post
from tests.support.serving import TOKEN


class AdmissionClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def caller(work_id: str = "work_1") -> Capability:
    return Capability(FORK, "env_1", "sesn_1", work_id, 8, 120.0, 2_000_000_000)


def race(**more: Any) -> RaceRequest:
    return RaceRequest.model_validate_json(
        json.dumps({"source": {"session_id": "sesn_1"}, "n": 1, "command": ["x"], **more})
    )


def refused(rates: CallRates, whose: str, per_minute: int) -> HttpError | None:
    try:
        rates.count(whose, per_minute)
    except HttpError as error:
        return error
    return None


def test_calls_are_counted_for_each_caller_and_come_back_with_time() -> None:
    clock = AdmissionClock()
    rates = CallRates(clock)
    assert not any(refused(rates, "one", 30) for _ in range(10))
    error = refused(rates, "one", 30)
    assert error is not None and error.status == 429 and error.headers["retry-after"] == "2"
    assert refused(rates, "other", 30) is None
    clock.now += 2
    assert refused(rates, "one", 30) is None
    assert refused(rates, "one", 30) is not None
    clock.now += 3600
    assert [refused(rates, "one", 30) is None for _ in range(11)] == [True] * 10 + [False]


def test_without_a_limit_nobody_is_counted_and_callers_without_number_cost_no_memory() -> None:
    rates = CallRates(AdmissionClock())
    assert not any(refused(rates, "one", 0) for _ in range(1_000))
    for number in range(20_000):
        rates.count(str(number), 30)
    assert len(rates._buckets) <= 10_000


def test_agents_leave_room_for_the_operator_and_everybody_leaves_when_done() -> None:
    running = RunningRaces(4)
    with contextlib.ExitStack() as held:
        for work_id in "abc":
            held.enter_context(running.admitted(race(), caller(work_id)))
        with pytest.raises(HttpError) as full, running.admitted(race(), caller("d")):
            pass
        assert full.value.status == 429 and full.value.kind == "too_many_races" and full.value.headers["retry-after"]
        with running.admitted(race(), None):
            with pytest.raises(HttpError), running.admitted(race(), None):
                pass
            with running.admitted(race(dry_run=True), caller("e")), running.admitted(race(dry_run=True), None):
                pass
    with running.admitted(race(), caller("d")):
        pass


def test_an_agent_whose_days_budget_is_spent_is_told_when_to_come_back() -> None:
    with client(Listed(listing(item(ItemState.ACTIVE))), RACE_AGENT_SANDBOX_SECONDS_PER_DAY="1") as http:
        first = post(http)
        late = post(http)
        operators = {**RACE, "source": {"session_id": SESSION}}
        other = http.post(f"/{FORK}", json=operators, headers={"authorization": f"Bearer {TOKEN}"})
    assert first.status_code == 200 and other.status_code == 200
    assert (late.status_code, late.json()["error"]["type"]) == (429, "budget_spent")
    assert 1 <= int(late.headers["retry-after"]) <= 86_400


def test_refused_and_dry_calls_of_an_agent_count(caplog: pytest.LogCaptureFixture) -> None:
    with client(Listed(listing(item(ItemState.ACTIVE))), RACE_AGENT_CALLS_PER_MINUTE="12") as http:
        answers = [post(http, b"no json").status_code for _ in range(5)]
        answers += [post(http, {**RACE, "dry_run": True}).status_code for _ in range(5)]
        assert answers == [400] * 5 + [200] * 5
        late = post(http, {**RACE, "dry_run": True})
        assert (late.status_code, late.json()["error"]["type"]) == (429, "too_many_calls")
        assert int(late.headers["retry-after"]) >= 1
        operators = http.post(f"/{FORK}", content=b"{}", headers={"authorization": f"Bearer {TOKEN}"})
        assert operators.status_code == 400  # another caller's calls are not counted


def test_who_asked_for_a_race_and_from_what_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    operators = json.dumps({**RACE, "source": {"session_id": SESSION}, "dry_run": True})
    with caplog.at_level(logging.INFO, "functions"), client(Listed(listing(item(ItemState.ACTIVE)))) as http:
        post(http)
        http.post(f"/{FORK}", content=operators, headers={"authorization": f"Bearer {TOKEN}"})
    said = [each.getMessage() for each in caplog.records if each.getMessage().startswith("race.asked")]
    assert len(said) == 2
    assert f"who=agent session={SESSION} work={WORK} source=session_id:{SESSION} branches=2" in said[0]
    assert "who=operator session=- work=-" in said[1] and "dry_run=True" in said[1]
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        b'{"branches": [' + b",".join([b"{}"] * 100_000) + b"]}",
        b"[" * 100_000,
        b'{"env": {' + b",".join(b'"a%d":""' % number for number in range(50_000)) + b"}}",
    ],
)
def test_bodies_of_very_many_values_are_refused_at_once_and_before_they_are_models(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RaceRequest, "model_validate_json", None)
    with pytest.raises(HttpError) as caught:
        read_race(body, None, 0.0, None)
    assert caught.value.status == 400 and str(MOST_ELEMENTS) in caught.value.message


def test_what_stands_in_texts_is_not_counted() -> None:
    script = ", ".join(["[{x}]"] * 60_000) + '\\"'
    require_few_elements(json.dumps({"script": script, "n": 1}).encode())


def test_no_body_of_the_largest_size_keeps_a_thread_for_long() -> None:
    for body in (b'"' + b'\\"' * (BODY_LIMIT // 2), b'"\\' * (BODY_LIMIT // 2), b'",' * (BODY_LIMIT // 2)):
        began = time.process_time()
        with contextlib.suppress(HttpError):
            require_few_elements(body)
        assert time.process_time() - began < 2.0  # a pattern that backtracks would take minutes


@pytest.mark.parametrize(
    "body, source",
    [
        (b'{"n": 1, "command": ["x"]}', "sesn_1"),
        (b' \n{"n": 1, "command": ["x"], "source": {"session_id": "sesn_2"}}', "sesn_2"),
        (b'{"source": {"session_id": "sesn_2"}, "n": 1, "command": ["x"]}', "sesn_2"),
    ],
)
def test_an_agents_own_source_is_the_default_and_what_it_names_counts(body: bytes, source: str) -> None:
    found = RaceRequest.model_validate_json(with_own_source(body, caller()))
    assert (found.source.session_id, found.environment_id) == (source, "env_1")


def test_what_is_no_object_is_left_to_the_model() -> None:
    for body in (b"", b"[]", b'"{"', b"null"):
        assert with_own_source(body, caller()) == body
    assert json.loads(with_own_source(b"{ }", caller())) == {
        "source": {"session_id": "sesn_1"},
        "environment_id": "env_1",
    }
