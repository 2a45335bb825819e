"""No sandbox sleeps or ends before its outputs are collected, and a target that fails stops neither for ever."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import pytest

from shared.outputs.collector import Collected, NotCollected
from shared.ports import Absent, ItemState, SandboxStatus
from shared.reports import Act
from tests.shared.reconcile.services import FakeServices, acts, box, idle, item, marked, reconciled

ON: Final = {"RECONCILE_SECONDS": "40", "OUTPUTS_TO": "s3://results", "OUTPUTS_PATIENCE_SECONDS": "3600"}
ENDED: Final = ("terminate", "box1")


class OutputsTarget:
    """Notes in the services' own list what is collected. `fails`: why it cannot be."""

    def __init__(self, services: FakeServices, fails: str = "", current: bool = False) -> None:
        self._services = services
        self._fails = fails
        self._current = current
        self.since: datetime | None = None

    async def current(self, session: str, since: datetime | None) -> bool:
        self.since = since
        return self._current

    async def collect(self, session: str, sandbox_id: str, *, marked_at: datetime | None = None) -> Collected:
        self._services.done.append(("collect", sandbox_id))
        if self._fails:
            raise NotCollected(self._fails)
        return Collected(1, 10)


def at_rest() -> FakeServices:
    return FakeServices([box(1)], [item(1, ItemState.STOPPED, created=400.0, stopped=310.0)])


def over(status: SandboxStatus) -> FakeServices:
    ended = box(1, status, marked(1).name or "")
    return FakeServices([ended], sessions={"sesn_1": Absent()})


def test_outputs_are_collected_before_a_sandbox_sleeps() -> None:
    services = at_rest()
    assert acts(reconciled(services, ON, collector=OutputsTarget(services)))[0][0] is Act.SUSPEND
    assert services.done == [("collect", "box1"), ("suspend", "box1")]


def test_a_target_that_fails_is_an_alarm_and_lets_the_sandbox_sleep() -> None:
    services = at_rest()
    report = reconciled(services, ON, collector=OutputsTarget(services, "no bucket"))
    assert services.done[-1] == ("suspend", "box1")
    assert report.alarms == ("sesn_1: its outputs were not collected: no bucket",)


def test_a_sleeper_is_woken_and_collected_before_its_end() -> None:
    services = over(SandboxStatus.SUSPENDED)
    target = OutputsTarget(services)
    assert acts(reconciled(services, ON, collector=target))[0][0] is Act.END_MARKED
    assert services.done == [("resume", "box1"), ("collect", "box1"), ENDED]
    assert target.since is None  # nothing tells when it last worked, so what is at the target proves nothing


def test_a_sleeper_that_is_collected_already_is_not_woken() -> None:
    services = over(SandboxStatus.SUSPENDED)
    reconciled(services, ON, collector=OutputsTarget(services, current=True))
    assert services.done == [ENDED]


@pytest.mark.parametrize("status", [SandboxStatus.SUSPENDED, SandboxStatus.RUNNING])
def test_a_failing_target_delays_the_end_for_a_bounded_time_and_each_tick_says_so(status: SandboxStatus) -> None:
    services = over(status)
    report = reconciled(services, ON, collector=OutputsTarget(services, "no bucket"))
    assert ENDED not in services.done and len(report.alarms) == 1
    assert "kept until" in report.alarms[0] and report.alarms[0].endswith("not collected: no bucket")
    assert (("suspend", "box1") in services.done) is (status is SandboxStatus.SUSPENDED)
    (action,) = report.actions
    assert (action.done, action.problem) == (False, "its outputs are not collected: no bucket")
    report = reconciled(services, ON, after=3700.0, collector=OutputsTarget(services, "no bucket"))
    assert ENDED in services.done
    assert "deleted with outputs that could not be collected: no bucket" in report.alarms[0]


def test_a_sandbox_that_failed_is_ended_with_a_word_about_what_is_lost() -> None:
    services = FakeServices([box(1, SandboxStatus.FAILED)], sessions={"sesn_1": idle("sesn_1", timedelta(hours=1))})
    report = reconciled(services, ON, collector=OutputsTarget(services))
    assert ENDED in services.done and "is not collected" in report.alarms[0]


def test_without_a_target_nothing_is_collected() -> None:
    services = at_rest()
    reconciled(services, {"RECONCILE_SECONDS": "40"})
    assert services.done == [("suspend", "box1")]
