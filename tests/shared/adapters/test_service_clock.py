"""Ages are judged by the service's time of day, whatever this machine's clock says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from shared import names
from shared.adapters.service_clock import FRESH, LONGEST, ServiceClock
from shared.ports import Listing
from shared.races.race_names import DEAD_MAN_SECONDS
from shared.races.request import RaceRequest
from shared.service import Service
from tests.support.http_stub import StubHandler, stub_server
from tests.support.waiting import until
from tests.support.world import IMAGE, Place

WRONG = datetime(2031, 1, 1, tzinfo=UTC)
NOON = datetime(2026, 11, 28, 12, 0, 0, tzinfo=UTC)
SAID = "Sat, 28 Nov 2026 12:00:00 GMT"


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def test_the_time_is_counted_on_from_an_answers_date_and_the_machines_after_two_minutes() -> None:
    passed = [0.0]
    now = ServiceClock(lambda: passed[0], lambda: WRONG)
    assert now() == WRONG
    now.told(SAID)
    assert now() == NOON
    passed[0] += FRESH - 1
    assert now() == NOON + seconds(FRESH - 1)
    passed[0] += 1
    assert now() == WRONG


def test_where_this_machine_has_not_slept_the_time_is_counted_on_for_an_hour() -> None:
    passed = [0.0]
    slept = [0.0]
    now = ServiceClock(lambda: passed[0], lambda: WRONG + seconds(passed[0] + slept[0]))
    now.told(SAID)
    passed[0] += LONGEST - 1
    assert now() == NOON + seconds(LONGEST - 1)
    slept[0] += 600
    assert now() == WRONG + seconds(LONGEST - 1 + 600), "a clock that stood still for ten minutes tells nothing"


def test_a_date_is_asked_for_once_a_minute_at_most_and_never_with_a_credential() -> None:
    heard: list[dict[str, str]] = []
    passed = [0.0]

    class Silent(StubHandler):
        def do_HEAD(self) -> None:
            heard.append(dict(self.headers.items()))
            self.send_response_only(404)  # a refusal without a date
            self.end_headers()

    now = ServiceClock(lambda: passed[0], lambda: WRONG)
    with stub_server(Silent) as url:
        for after in (0.0, 59.0, 1.0):
            passed[0] += after
            asyncio.run(now.ask(url))
    assert len(heard) == 2 and now() == WRONG
    assert not {"authorization", "x-api-key"} & {name.lower() for headers in heard for name in headers}


@pytest.mark.parametrize("off", [-3600.0, 3600.0])
def test_a_race_of_a_copy_whose_clock_is_wrong_says_the_services_time_in_its_names(place: Place, off: float) -> None:
    async def raced() -> None:
        service = Service(place.settings, now=ServiceClock(machine=lambda: datetime.now(UTC) + seconds(off)))
        try:
            await service.race(RaceRequest.model_validate({"source": {"image": IMAGE}, "n": 1, "script": "true"}))
        finally:
            await service.aclose()

    asyncio.run(raced())
    kinds = [names.parse(place.settings.prefix, box["name"]) for box in place.sandbox_state()["sandboxes"]]
    (dead_man,) = {kind.dead_man for kind in kinds if isinstance(kind, names.RaceSandbox)}
    assert abs(dead_man - time.time() - DEAD_MAN_SECONDS) < 120


def test_an_answer_that_came_late_does_not_turn_the_time_back_for_longer_than_a_minute() -> None:
    passed = [0.0]
    now = ServiceClock(lambda: passed[0], lambda: WRONG)
    now.told(SAID)
    passed[0] += 10
    now.told(SAID)
    assert now() == NOON + seconds(10)
    passed[0] += FRESH / 2
    now.told(SAID)
    assert now() == NOON


def after(count: float) -> str:
    return format_datetime(NOON + seconds(count), usegmt=True)


def test_i5_dates_that_are_ahead_of_all_others_are_believed_when_none_has_agreed_for_a_minute() -> None:
    """One host of a service has a wrong clock, or the service's jumps and jumps back: nothing that lives looks old."""
    passed = [0.0]
    now = ServiceClock(lambda: passed[0], lambda: WRONG)
    now.told(SAID)
    for _ in range(100):  # longer than a date is fresh
        passed[0] += 3
        now.told(after(passed[0] + 600))
        assert now() == NOON + seconds(passed[0])
        now.told(after(passed[0]))
    for _ in range(int(FRESH / 2 / 3) - 1):
        passed[0] += 3
        now.told(after(passed[0] + 600))
        assert now() == NOON + seconds(passed[0])
    passed[0] += 3
    now.told(after(passed[0] + 600))
    assert now() == NOON + seconds(passed[0] + 600)


def test_a_machine_that_slept_believes_the_first_date_after_its_sleep() -> None:
    """Its counting clock stood still, and its time of day went on as far as the service's."""
    passed = [0.0]
    slept = [0.0]
    now = ServiceClock(lambda: passed[0], lambda: WRONG + seconds(passed[0] + slept[0]))
    now.told(SAID)
    passed[0], slept[0] = 1.0, 900.0
    now.told(after(901))
    assert now() == NOON + seconds(901)


@pytest.mark.parametrize(
    "date", [None, "", "yesterday", "Sat, 28 Foo 2026 12:00:00 GMT", "Sat, 99 Nov 2026 12:00:00 GMT"]
)
def test_a_date_that_cannot_be_read_is_none(date: str | None) -> None:
    now = ServiceClock(machine=lambda: WRONG)
    now.told(date)
    assert now() == WRONG


@pytest.mark.parametrize("off", [-3600.0, 3600.0])
def test_i5_a_copy_whose_clock_is_wrong_leaves_a_working_session_alone(place: Place, off: float) -> None:
    with_a_working_session(place, ServiceClock(machine=lambda: datetime.now(UTC) + seconds(off)))


@pytest.mark.parametrize("off", [-3600.0, 3600.0])
def test_i5_a_service_whose_dates_jump_has_its_working_sessions_left_alone(place: Place, off: float) -> None:
    admin = place.world.claude_admin
    try:
        with_a_working_session(place, ServiceClock(), lambda: admin.patch("settings", {"date_offset": off}))
    finally:
        admin.patch("settings", {"date_offset": 0.0})


def with_a_working_session(place: Place, now: ServiceClock, then: Callable[[], object] = lambda: None) -> None:
    """A tick repairs nothing while its worker works, and it works on."""
    session = place.session("$ until test -e /workspace/enough; do sleep 0.1; done; echo done")

    async def play() -> None:
        service = Service(place.settings, now=now)
        try:
            await service.drain()
            await asyncio.to_thread(until, lambda: place.item(session)["state"] == "active", "no worker")
            then()
            before = place.item(session)
            reconciled = (await service.tick()).reconciled
            assert [action.act for report in reconciled for action in report.actions if action.act != "touch"] == []
            assert place.item(session)["state"] == "active" and place.item(session)["id"] == before["id"]
            host = service.host
            (box,) = place.sandboxes()
            assert await host.write_file(box["id"], "/workspace/enough", b"") is None
            assert isinstance(await service.queue(place.environment).list_items(1), Listing)
        finally:
            await service.aclose()

    asyncio.run(play())
    place.wait_done(session)
    assert "done" in place.answers(session)[-1]
