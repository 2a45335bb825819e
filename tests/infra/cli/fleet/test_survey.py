"""Rows from what the services listed: states, problems and what is unknown, without a service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from infra.cli.fleet.lists import Item, SessionListing, read_item, read_session
from infra.cli.fleet.survey import Seen, SessionRow, deaths_among, in_words, open_calls, others, rows
from infra.cli.session.follow import Call
from shared import names
from shared.claims.worker_process import WORKER_NAMES
from shared.ports import ItemState, Listing, ProcessState, SandboxRecord, SandboxStatus, SessionStatus
from shared.settings import Settings

ENVIRONMENT = "env_01Abcdefghijklmnopqrstuv"
SESSION = "sesn_01Abcdefghijklmnopqrstuv"
NOW = 1_800_000_000.0
SETTINGS = Settings.from_environ(
    {
        "ANTHROPIC_ENVIRONMENT_ID": ENVIRONMENT,
        "ANTHROPIC_ENVIRONMENT_KEY": "sk-ant-oat01-x",
        "TENSORLAKE_API_KEY": "tl_x",
    }
)
NAME = names.sandbox_name(SETTINGS.prefix, ENVIRONMENT, SESSION)


def session(status: SessionStatus = SessionStatus.IDLE, **more: Any) -> SessionListing:
    given: dict[str, Any] = {"title": "t", "created_at": NOW - 100, "updated_at": NOW - 50, "archived": False, **more}
    return SessionListing(SESSION, ENVIRONMENT, status, **given)


def item(state: ItemState, age: float = 10.0, **times: Any) -> Item:
    given = {"acknowledged_at": None, "started_at": None, "latest_heartbeat_at": None, "stopped_at": None, **times}
    return Item("work_1", SESSION, state, NOW - age, **given)


def box(status: SandboxStatus = SandboxStatus.RUNNING, name: str = NAME) -> SandboxRecord:
    return SandboxRecord("sbx_1", name, status, datetime.fromtimestamp(NOW - 60, UTC))


def row(
    of: SessionListing,
    items: Sequence[Item] = (),
    boxes: Sequence[SandboxRecord] | None = (),
    calls: Mapping[str, tuple[Call, ...]] | None = None,
    complete: bool = True,
) -> SessionRow:
    sandboxes = None if boxes is None else Listing(boxes, complete=True)
    seen = Seen(
        SETTINGS,
        NOW,
        Listing([of], complete=True),
        {ENVIRONMENT: Listing(items, complete=complete)},
        sandboxes,
        calls or {},
    )
    (found,) = rows(seen)
    return found


def call(**more: Any) -> dict[str, tuple[Call, ...]]:
    return {SESSION: (Call("sevt_1", "bash", {"command": "make test"}, NOW - 75, **more),)}


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (row(session()), "idle"),
        (row(session(), boxes=[box(SandboxStatus.SUSPENDED)]), "asleep"),
        (row(session(SessionStatus.RUNNING)), "works"),
        (row(session(SessionStatus.RESCHEDULING)), "waits to try again"),
        (row(session(SessionStatus.TERMINATED)), "terminated"),
        (row(session(archived=True)), "archived"),
        (row(session(), [item(ItemState.ACTIVE)], calls=call()), "bash make test for 1 m 15 s"),
        (row(session(), [item(ItemState.QUEUED)], calls=call()), "waits: bash make test for 1 m 15 s"),
        (row(session(), [item(ItemState.ACTIVE)], calls=call(asks=True)), "waits for a person: bash for 1 m 15 s"),
        (row(session(), calls=call(custom=True)), "waits for the custom tool bash for 1 m 15 s"),
    ],
)
def test_a_sessions_state_is_told_in_words(found: SessionRow, state: str) -> None:
    assert found.state == state


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (row(session()), ""),
        (row(session(), [item(ItemState.QUEUED, age=10)]), ""),
        (row(session(), [item(ItemState.QUEUED, age=7200)]), "queued for 2 h: does anything serve?"),
        (row(session(), [item(ItemState.STARTING, acknowledged_at=NOW - 5)]), ""),
        (row(session(), [item(ItemState.STARTING, acknowledged_at=NOW - 9000)]), "no worker ever beat"),
        (row(session(), [item(ItemState.ACTIVE, latest_heartbeat_at=NOW - 30)]), ""),
        (row(session(), [item(ItemState.ACTIVE, latest_heartbeat_at=NOW - 400)]), "its worker is silent for 6 m 40 s"),
        (row(session(), [item(ItemState.ACTIVE)], [box(SandboxStatus.SUSPENDED)]), "sleeps while it should work"),
        (row(session(), calls=call()), "no work item is there"),
        (row(session(), calls=call(asks=True)), ""),
        (row(session(), calls=call(), complete=False), ""),
    ],
)
def test_a_problem_is_told_only_where_it_is_sure(found: SessionRow, problem: str) -> None:
    assert problem in found.problem and bool(problem) == bool(found.problem)


def test_sandboxes_that_were_not_seen_are_unknown_and_an_ended_one_is_none() -> None:
    assert row(session(), boxes=None).sandbox_state == "unknown"
    assert row(session(), boxes=[box(SandboxStatus.TERMINATED)]).sandbox_state == ""
    assert row(session(), boxes=[box()]).sandbox == "sbx_1"


def test_the_last_sign_is_the_newest_of_the_sessions_and_the_workers() -> None:
    assert row(session(), [item(ItemState.ACTIVE, latest_heartbeat_at=NOW - 7)]).seen == 7
    assert row(session(), [item(ItemState.STOPPED, latest_heartbeat_at=NOW - 7)]).seen == 50


def test_the_living_item_counts_before_a_newer_dead_one() -> None:
    old = Item("work_0", SESSION, ItemState.ACTIVE, NOW - 500, None, None, None, None)
    assert row(session(), [item(ItemState.STOPPED), old]).item == "work_0"


def test_sandboxes_without_a_session_are_listed_by_kind_and_foreign_ones_are_not() -> None:
    prefix = SETTINGS.prefix
    other = names.sandbox_name(prefix, ENVIRONMENT, "sesn_01Zbcdefghijklmnopqrstuv")
    race = names.race_sandbox_name(prefix, ENVIRONMENT, names.new_race_id(), 0, int(NOW) + 100)
    boxes = [
        box(),
        box(name=other),
        box(name=race),
        box(name=names.new_server_name(prefix)),
        box(name="keep-mine"),
        box(name="somebody-elses"),
        box(SandboxStatus.TERMINATED, name=race),
    ]
    seen = Seen(SETTINGS, NOW, Listing([session()], complete=True), {}, Listing(boxes, complete=True))
    assert [found.kind for found in others(seen)] == ["kept", "race", "server", "session, not listed"]
    assert all(found.age == 60 for found in others(seen))


def test_what_a_pool_gave_and_nobody_named_is_listed_apart_by_its_id() -> None:
    nameless = replace(box(), id="box_9", name=None, pool_id="pool_1")
    boxes = Listing([box(), nameless, replace(nameless, id="box_8", pool_id="another")], complete=True)
    (environment,) = SETTINGS.environments.values()
    pooled = SETTINGS._replace(environments={ENVIRONMENT: environment._replace(pool="pool_1")})
    (found,) = others(Seen(pooled, NOW, Listing([session()], complete=True), {}, boxes))
    assert (found.name, found.kind) == ("box_9", "of a pool, no name")
    assert not others(Seen(SETTINGS, NOW, Listing([session()], complete=True), {}, boxes))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-3, "0 s"), (59.4, "59 s"), (60, "1 m"), (75, "1 m 15 s"), (601, "10 m"), (7500, "2 h 5 m"), (90_000, "1 d 1 h")],
)
def test_times_for_people(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_rows_that_make_no_sense_are_left_out_and_unknown_words_are_unknown() -> None:
    good = {"id": "sesn_1", "environment_id": "env_1", "created_at": "2026-10-20T09:00:00Z"}
    assert read_session({**good, "status": "brand_new"}) is not None
    assert read_session({**good, "created_at": "soon"}) is None
    assert read_session({**good, "id": 7}) is None
    priced = read_session({**good, "usage": {"list_cost": {"amount": "1.25", "currency": "USD"}, "input_tokens": True}})
    assert priced is not None and (priced.cost, priced.tokens_in) == ("1.25 USD", None)
    work = {"id": "work_1", "data": {"type": "session", "id": "sesn_1"}, "created_at": "2026-10-20T09:00:00Z"}
    found = read_item({**work, "state": "brand_new"})
    assert found is not None and found.state is ItemState.UNKNOWN
    assert read_item({**work, "data": {"type": "healthcheck"}}) is None


def test_open_calls_are_those_without_a_result() -> None:
    use = {"id": "sevt_1", "type": "agent.tool_use", "name": "bash", "input": {}}
    assert [each.id for each in open_calls([use])] == ["sevt_1"]
    assert open_calls([use, {"id": "sevt_2", "type": "user.tool_result", "tool_use_id": "sevt_1"}]) == ()


def test_workers_that_nobody_asked_to_end_are_counted_as_deaths() -> None:
    def ended(name: str, code: int | None, *, running: bool = False) -> ProcessState:
        return ProcessState(name, running, code)

    worker = f"{WORKER_NAMES}0123456789ab-00000000-00000000"
    killed, crashed = ended(worker, None), ended(worker, 137)
    others = (ended(worker, 0), ended(worker, None, running=True), ended("of-the-agent", 137))
    assert (deaths_among(others), deaths_among((killed, crashed, *others))) == (0, 2)
