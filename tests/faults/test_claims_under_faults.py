"""Rules I1 to I3 (docs/architecture.md#rules) under faults: each session's tool call runs
exactly once, whatever goes wrong on the way.

Every test starts a session whose one tool call appends a line to a file, spoils something, lets copies of the
dispatcher drain as ticks would, and then counts the lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from image.session.archive import build_archive, digest
from image.session.claim import worker_path
from infra.local.admin_client import AdminClient
from shared.claims.dispatcher import utc_now
from shared.ports import Absent, Created, SandboxSpec
from shared.reports import DrainReport, ItemEnd
from tests.faults.session_steps import changed_drain
from tests.support.admin import fault
from tests.support.preloaded import Preloaded
from tests.support.waiting import PATIENCE, until
from tests.support.world import HURRIED, IMAGE, ROOT, Place, running

PROMPT: Final = "$ echo ran >> /workspace/runs"
CREATE: Final = {"method": "POST", "path": r"/sandboxes$"}
START: Final = {"method": "POST", "path": r"/api/v1/processes$"}
LOOK: Final = {"method": "GET", "path": r"/api/v1/processes/.*/stdout(/follow)?$"}
POLL: Final = {"method": "GET", "path": r"/work/poll$"}
ACK: Final = {"method": "POST", "path": r"/ack$"}
BEAT: Final = {"method": "POST", "path": r"/heartbeat$"}

TOO_LONG: Final = "create takes longer than a bind may"

ONCE: Final[Mapping[str, Mapping[str, Any]]] = {
    "create fails": CREATE | {"action": "status", "status": 500},
    "create is over quota": CREATE | {"action": "status", "status": 402},
    "create's answer is lost": CREATE | {"action": "drop_after"},
    "create's answer is garbage": CREATE | {"action": "garbage"},
    TOO_LONG: CREATE | {"action": "delay_after", "seconds": 4},
    "start fails": START | {"action": "status", "status": 500},
    "start is replayed after a 502": START | {"action": "status", "status": 502},
    "start's answer is lost": START | {"action": "drop_after"},
    "start never reaches the sandbox": START | {"action": "drop_before"},
    "looking for ready fails": LOOK | {"action": "status", "status": 500},
    "poll's answer is lost": POLL | {"action": "drop_after"},
    "poll answers 503": POLL | {"action": "status", "status": 503},
    "poll answers 404": POLL | {"action": "status", "status": 404},
    "poll answers garbage": POLL | {"action": "garbage"},
    "poll's answer is cut short": POLL | {"action": "truncate"},
    "ack fails": ACK | {"action": "status", "status": 500},
    "ack is refused": ACK | {"action": "status", "status": 403},
    "ack's answer is lost": ACK | {"action": "drop_after"},
    "the first heartbeat's answer is lost": BEAT | {"action": "drop_after", "query": "NO_HEARTBEAT"},
    "the first heartbeat that counts is lost": BEAT | {"action": "drop_after", "query": "NO_HEARTBEAT", "skip": 1},
    "a heartbeat fails": BEAT | {"action": "status", "status": 503},
    "the second heartbeat's answer is lost": BEAT | {"action": "drop_after", "skip": 1},
    "a later heartbeat's answer is lost": BEAT | {"action": "drop_after", "skip": 2},
    "a later heartbeat and the SDK's own retries are lost": BEAT | {"action": "drop_after", "skip": 2, "times": 3},
}


def admin_for(place: Place, rule: Mapping[str, Any]) -> AdminClient:
    claude = any(rule["path"] == known["path"] for known in (POLL, ACK, BEAT))
    return place.world.claude_admin if claude else place.world.tensorlake_admin


def drain(place: Place) -> DrainReport:
    """One drain by a fresh copy of the dispatcher."""

    async def play() -> DrainReport:
        async with place.dispatcher() as dispatcher:
            return await dispatcher.drain()

    return asyncio.run(play())


def drain_without_secrets(place: Place) -> DrainReport:
    """Items are handed out without a work secret meanwhile."""
    place.world.claude_admin.patch("settings", {"null_secret": True})
    try:
        return drain(place)
    finally:
        place.world.claude_admin.patch("settings", {"null_secret": False})


def heal(place: Place, *sessions: str, turns: int = 1) -> None:
    """Ticks without faults, until every session has finished. Between two of them R passes for what was claimed and
    is not acked."""

    def unfinished() -> list[str]:
        left = [session for session in sessions if not place.done(session, turns)]
        for session in left:
            item = place.item(session)
            if item["state"] == "queued" and item["handouts"]:
                place.age(session)
        return left

    async def play() -> None:
        async with asyncio.timeout(PATIENCE), place.dispatcher() as dispatcher:
            while await asyncio.to_thread(unfinished):
                await dispatcher.drain()
                await asyncio.sleep(0.2)

    asyncio.run(play())


def runs(place: Place, session: str) -> list[str]:
    """The lines that the session's tool calls have left in its sandbox."""

    async def play() -> list[str]:
        async with place.dispatcher() as dispatcher:
            sandbox = running(await dispatcher.host.find(place.sandbox(session)))
            data = await dispatcher.host.read_file(sandbox.id, "/workspace/runs", 10_000)
            if isinstance(data, Absent):
                return []
            assert isinstance(data, bytes), data
            return data.decode().splitlines()

    return asyncio.run(play())


def assert_served_once(place: Place, session: str) -> None:
    assert runs(place, session) == ["ran"]
    assert [box["name"] for box in place.sandboxes()] == [place.sandbox(session)]
    assert len(place.items(session)) == 1


@pytest.mark.parametrize("what", ONCE)
def test_i1_a_fault_that_happens_once_loses_and_doubles_nothing(place: Place, what: str) -> None:
    rule = {"times": 1, **ONCE[what]}
    session = place.session(PROMPT)
    with fault(admin_for(place, rule), rule):
        report = drain(place.adjusted(**HURRIED) if what == TOO_LONG else place)
        assert len(report.items) <= 2
        heal(place, session)
    assert_served_once(place, session)


FOREVER: Final = (
    "create fails",
    "create is over quota",
    "start fails",
    "start never reaches the sandbox",
    "looking for ready fails",
    "ack is refused",
)


@pytest.mark.parametrize("what", FOREVER)
def test_i1_a_fault_that_does_not_end_leaves_the_item_claimable_and_reported(place: Place, what: str) -> None:
    rule = ONCE[what]
    session = place.session(PROMPT)
    with fault(admin_for(place, rule), rule):
        (item,) = drain(place.adjusted(**HURRIED)).items
        assert item.end in (ItemEnd.FAILED, ItemEnd.UNFINISHED, ItemEnd.NO_CAPACITY)
        assert item.reason
        assert place.item(session)["state"] == "queued"
        assert place.answers(session) == []
    heal(place, session)
    assert_served_once(place, session)


@pytest.mark.parametrize("what", ["create's answer is lost", "start's answer is lost"])
def test_i1_answers_that_are_always_lost_do_not_stop_a_drain(place: Place, what: str) -> None:
    rule = ONCE[what]
    session = place.session(PROMPT)
    with fault(admin_for(place, rule), rule):
        (item,) = drain(place).items
    assert item.end is ItemEnd.HANDED_OVER
    place.wait_done(session)
    assert_served_once(place, session)


def test_i1_an_ack_that_never_gets_an_answer_is_given_up_before_the_claim_is_older_than_r(place: Place) -> None:
    session = place.session(PROMPT)
    hurried = place.adjusted(RECLAIM_SECONDS="15", BIND_SECONDS="5", HANDOVER_SECONDS="9")
    with fault(place.world.claude_admin, ACK | {"action": "status", "status": 503}):
        (item,) = drain(hurried).items
        assert item.end is ItemEnd.UNFINISHED
        assert item.seconds <= hurried.settings.times.reclaim + 1
    heal(place, session)
    assert_served_once(place, session)


def test_i1_no_tool_runs_before_the_lease_is_held(place: Place) -> None:
    session = place.session(PROMPT)
    # The first beat is answered "not acked yet", which `ready` needs; every later one fails.
    path = f"/work/{place.item(session)['id']}/heartbeat$"
    admin = place.world.claude_admin
    with fault(admin, BEAT | {"path": path, "action": "status", "status": 503, "skip": 1}) as rule:
        (item,) = drain(place).items
        assert item.end is ItemEnd.HANDED_OVER

        def refused() -> int:
            return sum(armed["fired"] for armed in admin.get("faults")["data"] if armed["id"] == rule)

        until(lambda: refused() >= 3, "the worker asks for its lease no more")
        assert runs(place, session) == []
        assert place.item(session)["state"] == "starting"
    place.wait_done(session)
    assert_served_once(place, session)


def test_a_heartbeat_before_the_ack_is_asked_again_and_not_taken_for_a_lost_lease(place: Place) -> None:
    session = place.session(PROMPT)
    with fault(place.world.claude_admin, ACK | {"action": "delay", "seconds": 2}):
        (item,) = drain(place).items
    assert item.end is ItemEnd.HANDED_OVER
    place.wait_done(session)
    assert_served_once(place, session)


CRASHES: Final = [
    (when, method) for method in ("poll", "create", "start", "follow_output", "ack") for when in ("before", "after")
]


def kill_a_copy(place: Place, when: str, method: str) -> None:
    with Preloaded(
        ["-m", "tests.support.crashing", when, method],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **place.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as killed:
        _, errors = killed.communicate(timeout=PATIENCE)
    assert killed.returncode == -9, errors


@pytest.mark.parametrize("when, method", CRASHES)
def test_i1_another_copy_takes_over_from_one_that_was_killed(place: Place, when: str, method: str) -> None:
    session = place.session(PROMPT)
    kill_a_copy(place, when, method)
    heal(place, session)
    assert_served_once(place, session)


@pytest.mark.parametrize("when, method", [("after", "find"), ("after", "resume"), ("before", "write_file")])
def test_i1_another_copy_takes_over_where_a_sleeper_without_its_worker_is_taken_again(
    place: Place, when: str, method: str
) -> None:
    session = place.session(PROMPT)
    heal(place, session)
    until(lambda: place.item(session)["state"] == "stopped", "the worker did not leave")

    async def put_to_sleep() -> None:
        async with place.dispatcher() as dispatcher:
            host = dispatcher.host
            sandbox = running(await host.find(place.sandbox(session)))
            assert await host.delete_file(sandbox.id, worker_path(digest(build_archive()))) is None
            assert await host.suspend(sandbox.id) is None

    asyncio.run(put_to_sleep())
    place.say(session, "$ echo again >> /workspace/runs")
    kill_a_copy(place, when, method)
    heal(place, session, turns=2)
    assert runs(place, session) == ["ran", "again"]


def test_i3_two_copies_that_race_for_one_session_start_one_worker(place: Place) -> None:
    session = place.session(PROMPT)
    reports = asyncio.run(gathered(place, 4))
    assert sum(len(report.items) for report in reports) == 1
    place.wait_done(session)
    assert_served_once(place, session)


async def gathered(place: Place, copies: int) -> list[DrainReport]:
    async def one() -> DrainReport:
        async with place.dispatcher() as dispatcher:
            return await dispatcher.drain()

    return list(await asyncio.gather(*(one() for _ in range(copies))))


def test_i2_ids_that_differ_only_in_case_get_a_sandbox_each(place: Place) -> None:
    async def play() -> None:
        async with place.dispatcher() as dispatcher:
            names = {place.sandbox("sesn_01H2ZzQabcdefghijklmnopq"), place.sandbox("sesn_01h2zzqabcdefghijklmnopq")}
            outcomes = [await dispatcher.host.create(SandboxSpec(name=name)) for name in names]
            assert len(names) == 2
            assert all(isinstance(outcome, Created) for outcome in outcomes)

    asyncio.run(play())


def test_a_healthcheck_item_is_dismissed_and_gets_no_sandbox(place: Place) -> None:
    place.world.claude_admin.post("healthchecks", {"environment_id": place.environment_id})
    (item,) = drain(place).items
    assert item.end is ItemEnd.DISMISSED
    assert place.sandboxes() == []
    assert drain(place).items == ()


def test_i7_a_drain_stops_claiming_in_time_to_finish_what_it_claimed(place: Place) -> None:
    # Claims are made for a third of 34 s, and each takes 3.5: no machine has time for the last.
    times = {"RECLAIM_SECONDS": "60", "BIND_SECONDS": "10", "HANDOVER_SECONDS": "20", "DRAIN_DEADLINE_SECONDS": "34"}
    hurried = place.world.place(**times, DRAIN_CONCURRENCY="1", DRAIN_POLLS_IN_FLIGHT="1")
    sessions = [hurried.session(PROMPT) for _ in range(5)]
    with fault(place.world.tensorlake_admin, CREATE | {"action": "delay", "seconds": 3.5}):
        report = drain(hurried)
    assert report.end.value == "deadline"
    assert report.seconds < 34
    assert {item.end for item in report.items} == {ItemEnd.HANDED_OVER}
    assert 0 < len(report.items) < 5
    heal(hurried, *sessions)
    for session in sessions:
        assert runs(hurried, session) == ["ran"]


def test_i1_age_alone_gives_no_item_up_and_its_report_says_what_the_service_said(place: Place) -> None:
    session = place.session(PROMPT)
    with fault(place.world.tensorlake_admin, CREATE | {"action": "status", "status": 400}):
        age = timedelta(seconds=place.settings.times.poison_age + 60)
        (item,) = changed_drain(place, lambda whole: replace(whole, now=lambda: utc_now() + age)).items
    assert item.end is ItemEnd.FAILED
    assert "HTTP 400" in item.reason
    assert place.item(session)["state"] == "queued"


def test_i6_an_item_without_a_work_secret_is_reported_and_no_other_key_is_used(place: Place) -> None:
    place.session(PROMPT)
    (item,) = drain_without_secrets(place).items
    assert item.end is ItemEnd.FAILED
    assert place.sandboxes() == []


class TestTheHolderOfTheName:
    """Whatever state the session's sandbox is in when the item comes."""

    def test_a_suspended_holder_is_resumed_with_its_files(self, place: Place) -> None:
        session = self.served(place)
        self.act(place, session, "suspend")
        self.again(place, session)

    def test_a_suspending_holder_is_waited_for_and_resumed(self, place: Place) -> None:
        session = self.served(place)
        slow = {"method": "POST", "path": r"/suspend$", "action": "delay", "seconds": 1}
        with fault(place.world.tensorlake_admin, slow):
            self.act(place, session, "suspend")
        self.again(place, session)

    def test_a_terminated_holder_is_replaced(self, place: Place) -> None:
        session = self.served(place)
        self.act(place, session, "terminate")
        place.say(session, "$ cat /workspace/runs || echo fresh")
        heal(place, session, turns=2)
        assert "fresh" in place.answers(session)[-1]

    def test_a_pending_holder_is_waited_for(self, place: Place) -> None:
        place.world.tensorlake_admin.patch("settings", {"create_seconds": 1.5})
        try:
            session = place.session(PROMPT)
            asyncio.run(gathered(place, 2))
        finally:
            place.world.tensorlake_admin.patch("settings", {"create_seconds": 0.0})
        heal(place, session)
        assert_served_once(place, session)

    def test_with_resume_switched_off_a_suspended_holder_is_replaced_by_a_clean_one(self, place: Place) -> None:
        clean = place.world.place(RESUME_SUSPENDED_SESSIONS="false")
        session = self.served(clean)
        self.act(clean, session, "suspend")
        clean.say(session, "$ cat /workspace/runs || echo fresh")
        heal(clean, session, turns=2)
        assert "fresh" in clean.answers(session)[-1]

    def served(self, place: Place) -> str:
        """A session after one turn, its worker gone."""
        session = place.session(PROMPT)
        heal(place, session)
        until(lambda: place.item(session)["state"] == "stopped", "the worker did not leave")
        return session

    def act(self, place: Place, session: str, verb: str) -> None:
        async def play() -> None:
            async with place.dispatcher() as dispatcher:
                sandbox = running(await dispatcher.host.find(place.sandbox(session)))
                assert await getattr(dispatcher.host, verb)(sandbox.id) is None

        asyncio.run(play())

    def again(self, place: Place, session: str) -> None:
        place.say(session, "$ cat /workspace/runs")
        heal(place, session, turns=2)
        assert "ran" in place.answers(session)[-1]
        assert len(place.sandboxes()) == 1


class TestAnOldSandbox:
    """A sandbox or image from before this bundle gets the bundle's own worker."""

    def test_an_image_without_our_worker_gets_it(self, place: Place, tmp_path: Path) -> None:
        from tensorlake.image import start_build

        dockerfile = tmp_path / "Dockerfile"
        dockerfile.write_text("FROM debian\nRUN useradd agent\nWORKDIR /workspace\nUSER agent\n")
        with as_tensorlake_user(place):
            start_build(str(dockerfile), registered_name="of-last-year").wait()
        place = place.adjusted(SANDBOX_IMAGE_NAME="of-last-year")
        session = place.session(PROMPT)
        (item,) = drain(place).items
        assert item.end is ItemEnd.HANDED_OVER
        place.wait_done(session)
        assert_served_once(place, session)

    def test_a_worker_file_that_was_changed_is_replaced_before_it_serves(self, place: Place) -> None:
        session = place.session(PROMPT)

        async def spoil() -> None:
            async with place.dispatcher() as dispatcher:
                outcome = await dispatcher.host.create(SandboxSpec(name=place.sandbox(session), image=IMAGE))
                assert isinstance(outcome, Created)
                # A zip file may have anything before it: it still runs, and has another digest.
                changed = b"# changed\n" + build_archive()
                path = worker_path(digest(build_archive()))
                assert await dispatcher.host.write_file(outcome.sandbox.id, path, changed) is None

        asyncio.run(spoil())
        (item,) = drain(place).items
        assert item.end is ItemEnd.HANDED_OVER

        async def read() -> bytes:
            async with place.dispatcher() as dispatcher:
                sandbox = running(await dispatcher.host.find(place.sandbox(session)))
                data = await dispatcher.host.read_file(sandbox.id, worker_path(digest(build_archive())), 10_000_000)
                assert isinstance(data, bytes)
                return data

        assert asyncio.run(read()) == build_archive()
        place.wait_done(session)
        assert_served_once(place, session)


@contextlib.contextmanager
def as_tensorlake_user(place: Place) -> Iterator[None]:
    """The image functions of the SDK read the process's environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TENSORLAKE_API_URL", "TENSORLAKE_API_KEY"):
            patch.setenv(name, place.environ[name])
        yield
