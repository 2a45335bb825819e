"""Set-ups that go wrong, over real sockets: the operator is told at the next tick, and a lost sandbox costs nothing."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from shared.ports import Absent
from shared.reports import Act
from tests.faults.test_claims_under_faults import drain, heal
from tests.faults.test_reconciler import QUICK, acts, reconcile, working
from tests.support.waiting import until
from tests.support.web import web
from tests.support.world import Place, running


def test_a_failed_set_up_is_an_alarm_of_the_next_tick_and_of_the_next_hand_over(place: Place) -> None:
    broken = place.adjusted(SETUP_SCRIPT="echo out of luck; exit 7", **QUICK)
    session = broken.session("$ true")
    (item,) = drain(broken).items
    assert item.end == "handed_over" and not item.alarm
    broken.wait_done(session)
    until(lambda: broken.item(session)["state"] == "stopped", "the worker did not stop its item")
    until(lambda: not asyncio.run(working(broken, session)), "the worker did not leave")
    report = reconcile(broken)
    assert acts(report) == [Act.SUSPEND]
    (alarm,) = report.alarms
    assert session in alarm and "its set-up failed: set-up script failed (exit status 7)" in alarm
    assert reconcile(broken).alarms == (), "once for each rest"
    broken.say(session, "$ true")
    (item,) = drain(broken).items
    assert item.alarm and item.reason.startswith("the last set-up failed: ")


def test_a_sandbox_that_is_lost_in_the_set_up_is_made_ready_anew(place: Place, tmp_path: Path) -> None:
    with web(tmp_path) as server:
        server.files["/data"] = b"x" * 200_000
        server.hold = threading.Event()
        files = place.adjusted(SETUP_FILES=f"{server.url}/data")
        session = files.session("$ wc -c data")
        try:
            drain(files)
            until(lambda: "GET /data" in server.asked, "the set-up did not begin")
            asyncio.run(_lose(files, session))
        finally:
            server.hold.set()
            server.hold = None
        files.age(session)
        reconcile(files)
        heal(files, session)
        files.say(session, "$ wc -c data")
        heal(files, session, turns=2)
        assert "200000 data" in files.answers(session)[1]


def test_a_sandbox_that_failed_is_replaced_with_a_word_about_outputs_that_are_lost(
    place: Place, tmp_path: Path
) -> None:
    kept = place.adjusted(OUTPUTS_TO=f"file://{tmp_path}/results", **QUICK)
    session = kept.session("$ mkdir outputs; echo lost > outputs/report")
    heal(kept, session)
    until(lambda: kept.item(session)["state"] == "stopped", "the worker did not stop its item")
    kept.world.tensorlake_admin.post(f"sandboxes/{kept.sandbox(session)}/fail")
    kept.say(session, "$ ls")
    (item,) = drain(kept).items
    assert item.alarm and "what it made after its last rest is not collected" in item.reason


async def _lose(place: Place, session: str) -> None:
    async with place.dispatcher() as dispatcher:
        sandbox = running(await dispatcher.host.find(place.sandbox(session)))
        assert await dispatcher.host.terminate(sandbox.id) in (None, Absent())
