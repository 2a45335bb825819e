"""Prepared starts over real sockets: one is made, sessions start from it, and nothing of it is left over
(docs/setup.md#prepared-starts)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.cli import prepare
from infra.cli.environ import Loaded
from infra.cli.fleet.survey import look as survey
from infra.cli.fleet.survey import others
from shared.claims.dispatcher import utc_now
from shared.ports import Listing, Snapshot, SnapshotRecord
from shared.prepared.preparation import Preparation, PreparationFailed, PreparationResult
from shared.prepared.recipe import prepared_names
from shared.reports import Act, DrainReport, ReconcileReport
from shared.service import Service
from tests.faults.test_reconciler import acts, reconcile, reconciler
from tests.support.waiting import until
from tests.support.web import Web, make_repository, web
from tests.support.world import API_KEY, Place, running

SCRIPT = "echo ran >> ../runs; cat version"
LATE = 30 * 86_400.0


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("repositories")
    make_repository(folder, "app")
    with web(folder) as server:
        yield server


@pytest.fixture
def prepared(place: Place, remote: Web) -> Place:
    """An environment with a set-up of its own."""
    return place.adjusted(SETUP_REPOSITORY=remote.repository("app"), SETUP_SCRIPT=SCRIPT)


def preparing(
    place: Place, host: Callable[[Any], Any] = lambda host: host, *, fresh: bool = False
) -> PreparationResult:
    async def play() -> PreparationResult:
        service = Service(place.settings)
        try:
            return await Preparation(place.settings, place.environment, host(service.host), utc_now).run(fresh=fresh)
        finally:
            await service.aclose()

    return asyncio.run(play())


def serve(place: Place, prompt: str) -> tuple[str, DrainReport]:
    session = place.session(prompt)

    async def play() -> DrainReport:
        service = Service(place.settings)
        try:
            (report,) = await service.drain()
            return report
        finally:
            await service.aclose()

    report = asyncio.run(play())
    place.wait_done(session)
    return session, report


def snapshots(place: Place, sandbox_id: str | None = None) -> list[SnapshotRecord]:
    async def play() -> list[SnapshotRecord]:
        async with place.dispatcher() as dispatcher:
            listed = await dispatcher.host.list_snapshots(sandbox_id)
            assert isinstance(listed, Listing)
            return list(listed.rows)

    return asyncio.run(play())


def taken_of(place: Place, session: str) -> str:
    """A snapshot that a person takes of the session's sandbox."""

    async def play() -> str:
        async with place.dispatcher() as dispatcher:
            taken = await dispatcher.host.snapshot(running(await dispatcher.host.find(place.sandbox(session))).id)
            assert isinstance(taken, Snapshot), taken
            return taken.id

    return asyncio.run(play())


def test_sessions_start_from_what_was_prepared_once(
    prepared: Place, remote: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    async def two() -> list[int]:
        loaded = Loaded({**prepared.environ, "ANTHROPIC_API_KEY": API_KEY}, None)
        return list(await asyncio.gather(prepare.run(loaded), prepare.run(loaded)))

    assert asyncio.run(two()) == [0, 0]
    told = capsys.readouterr()
    assert "cloned" in told.err and told.err.count("takes a snapshot") == 1  # the other one waits for it or finds it
    assert sorted("already" in line for line in told.out.splitlines()) == [False, True]
    (box,) = prepared.sandboxes()
    assert box["name"] in prepared_names(prepared.settings, prepared.environment, datetime.now(UTC).timestamp())
    assert [each.ready for each in snapshots(prepared, box["id"])] == [True]
    until(lambda: prepared.sandboxes()[0]["status"] == "suspended", "it does not sleep")

    asked = len(remote.asked)
    session, report = serve(prepared, "run: cat app/version runs; cat /var/lib/hands/session; ls -a /var/lib/hands")
    (item,) = report.items
    assert item.end == "handed_over" and item.reason == "", item
    (answer,) = prepared.answers(session)
    assert answer.count("ran") == 1 and "2" in answer and session in answer
    assert len(remote.asked) - asked <= 2, "what its branch is at now, and no more"

    seen = asyncio.run(survey(Loaded({**prepared.environ, "ANTHROPIC_API_KEY": API_KEY}, None), 0.0))
    assert [each.kind for each in others(seen) if each.name == box["name"]] == ["prepared start"]

    # The reconciler keeps what is in use, and ends it when it is too old; what a person took of a session's stays.
    theirs = taken_of(prepared, session)
    assert Act.END_PREPARED not in acts(reconcile(prepared, ahead=7200.0))
    assert Act.END_PREPARED in acts(reconcile(prepared, ahead=LATE))
    assert snapshots(prepared, box["id"]) == [] and theirs in {each.id for each in snapshots(prepared)}
    assert box["name"] not in [each["name"] for each in prepared.sandboxes()]


def test_a_prepared_start_that_is_gone_costs_the_quick_start_and_is_reported(prepared: Place) -> None:
    made = preparing(prepared)

    async def play() -> DrainReport:
        service = Service(prepared.settings)
        try:
            assert await service.prepared(prepared.environment).snapshot() == made.snapshot
            assert await service.host.delete_snapshot(made.snapshot) is None
            (report,) = await service.drain()
            return report
        finally:
            await service.aclose()

    session = prepared.session("run: cat app/version runs")
    (item,) = asyncio.run(play()).items
    assert item.end == "handed_over" and "made without the prepared start, which could not be restored" in item.reason
    prepared.wait_done(session)
    assert "ran" in prepared.answers(session)[0]


def test_a_set_up_that_fails_leaves_nothing_and_says_why(place: Place) -> None:
    broken = place.adjusted(SETUP_SCRIPT="echo no such package >&2; exit 3")
    with pytest.raises(PreparationFailed, match=r"exit status 3.*no such package"):
        preparing(broken)
    assert broken.sandboxes() == []


class _Killed(BaseException):
    """Nothing of the process runs after it."""


class _Dying:
    """A host whose caller is killed before or after a call: none of its later calls arrives."""

    def __init__(self, host: Any, when: str, method: str) -> None:
        self._host, self._when, self._method = host, when, method
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._host, name)
        if name == "follow_output":
            return call

        async def deadly(*args: Any, **more: Any) -> Any:
            if self.dead or (name == self._method and self._when == "before"):
                self.dead = True
                raise _Killed
            answer = await call(*args, **more)
            if name == self._method:
                self.dead = True
                raise _Killed
            return answer

        return deadly


KILLS = [
    ("after", "create"),
    ("after", "start"),
    ("before", "snapshot"),
    ("after", "snapshot"),
]


def test_what_a_killed_preparation_leaves_is_whole_or_is_ended(place: Place) -> None:
    for when, method in KILLS:
        quick = place.adjusted(SETUP_SCRIPT=f"echo {when} {method}")
        with pytest.raises(_Killed):
            preparing(quick, lambda host, when=when, method=method: _Dying(host, when, method))  # type: ignore[misc]
        (box,) = quick.sandboxes()
        if (when, method) == ("after", "snapshot"):
            assert not preparing(quick).made, "the whole set-up is in it"
            continue
        assert Act.END_PREPARED not in acts(reconcile(quick)), "somebody may be making it"
        ended = reconcile(quick, ahead=7200.0)
        assert [each.target for each in ended.actions if each.done] == [box["name"]], (when, method)
        assert quick.sandboxes() == [] and snapshots(quick, box["id"]) == []


def test_a_copy_takes_over_what_a_killed_one_left_long_ago(place: Place) -> None:
    quick = place.adjusted(SETUP_SCRIPT="true")
    with pytest.raises(_Killed):
        preparing(quick, lambda host: _Dying(host, "after", "create"))
    (left,) = quick.sandboxes()

    async def later() -> PreparationResult:
        service = Service(quick.settings)
        try:
            ahead = Preparation(
                quick.settings, quick.environment, service.host, lambda: datetime.now(UTC) + timedelta(hours=2)
            )
            return await ahead.run()
        finally:
            await service.aclose()

    assert asyncio.run(later()).made
    (box,) = quick.sandboxes()
    assert box["id"] != left["id"]


def test_a_changed_recipe_is_another_start(place: Place, tmp_path: Path) -> None:
    quick = place.adjusted(SETUP_SCRIPT="true")
    first = preparing(quick)
    other = place.adjusted(SETUP_SCRIPT="true; true")
    assert preparing(other).made and not preparing(quick).made and preparing(other, fresh=True).made
    ended = reconcile(other, ahead=7200.0)
    assert [each.target for each in ended.actions if each.act is Act.END_PREPARED and each.done] == [first.name]


def prepared_by_ticks(place: Place) -> tuple[ReconcileReport, ReconcileReport]:
    """A pass that begins, and one that keeps what has come to its end; so many lie between as the machine is slow."""
    first = later = reconcile(place)

    (name, _) = prepared_names(place.settings, place.environment, datetime.now(UTC).timestamp())

    def kept() -> bool:
        nonlocal later
        if any(snapshots(place, box["id"]) for box in place.sandboxes() if box["name"] == name):
            return True
        later = reconcile(place)
        return False

    until(kept, "no tick prepares it")
    return first, later


def test_ticks_prepare_an_environment_that_asks_for_it_and_wait_for_no_set_up(prepared: Place) -> None:
    assert Act.PREPARE not in [each.act for each in reconcile(prepared).actions], "off by default"
    go = "until [ -e ../go ]; do sleep 0.05; done; echo ran >> ../runs"
    ticked = prepared.adjusted(SETUP_PREPARED_BY_TICKS="true", SETUP_SCRIPT=go)
    first = reconcile(ticked)
    assert [(each.act, each.done) for each in first.actions] == [(Act.PREPARE, True)] and "begun" in first.actions[
        0
    ].why
    assert reconcile(ticked).actions == (), "it is in the making, and nothing of it is waited for"
    (box,) = ticked.sandboxes()

    async def told() -> None:
        async with ticked.dispatcher() as dispatcher:
            assert await dispatcher.host.write_file(box["id"], "/workspace/go", b"") is None

    asyncio.run(told())
    _, kept = prepared_by_ticks(ticked)
    assert [(each.target, each.why.partition(": ")[2]) for each in kept.actions] == [(box["name"], "prepared")]
    until(lambda: ticked.sandboxes()[0]["status"] == "suspended", "it does not sleep")
    assert reconcile(ticked).actions == (), "there is one"
    assert not preparing(ticked).made
    session, _ = serve(ticked, "run: cat runs")
    assert "ran" in ticked.answers(session)[0]


def test_ticks_at_once_prepare_one_and_another_set_up_anew(place: Place) -> None:
    ticked = place.adjusted(SETUP_PREPARED_BY_TICKS="true", SETUP_SCRIPT="true")

    async def two() -> None:
        async with reconciler(ticked) as one, reconciler(ticked) as other:
            await asyncio.gather(one.reconcile(), other.reconcile())

    asyncio.run(two())
    prepared_by_ticks(ticked)
    (first,) = ticked.sandboxes()
    changed = ticked.adjusted(SETUP_SCRIPT="true; true")
    assert Act.PREPARE in acts(reconcile(changed))
    assert len(changed.sandboxes()) == 2 and first["name"] in [each["name"] for each in changed.sandboxes()]


def test_a_set_up_that_fails_under_ticks_is_one_alarm_and_is_tried_again_later(place: Place) -> None:
    broken = place.adjusted(SETUP_PREPARED_BY_TICKS="true", SETUP_SCRIPT="echo no such package >&2; exit 3")
    reports = [reconcile(broken)]

    def failed() -> bool:
        reports.append(reconcile(broken))
        return str(broken.sandboxes()[0]["status"]) == "suspended"

    until(failed, "it does not fail")
    (alarm,) = [alarm for report in reports for alarm in report.alarms]
    assert "could not be prepared: the set-up failed" in alarm
    quiet = reconcile(broken)
    assert quiet.actions == () and not quiet.alarms and len(broken.sandboxes()) == 1
    with pytest.raises(PreparationFailed, match="no such package"):  # and whoever asks by hand is not kept waiting
        preparing(broken)
    assert broken.sandboxes() == []


def test_a_tick_that_is_killed_at_a_step_leaves_it_to_the_next_one(place: Place) -> None:
    async def step(of: Place, when: str, method: str) -> bool:
        """Whether it was killed."""
        service = Service(of.settings)
        dying: Any = _Dying(service.host, when, method)
        try:
            await Preparation(of.settings, of.environment, dying, utc_now).step()
        except _Killed:
            return True
        finally:
            await service.aclose()
        return False

    for when, method in KILLS:
        ticked = place.adjusted(SETUP_PREPARED_BY_TICKS="true", SETUP_SCRIPT=f"echo {when} {method}")
        until(lambda: asyncio.run(step(ticked, when, method)), f"it is not killed {when} {method}")  # noqa: B023
        prepared_by_ticks(ticked)
        assert not preparing(ticked).made, (when, method)
    assert len(place.sandboxes()) == len(KILLS)
