"""Webhooks of ended sessions are looked at together, and the cheap question rules most of them out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import pytest

from shared import names
from shared.deadline import Deadline
from shared.ports import SandboxStatus
from shared.reconcile.ended_sessions import EndedSessions
from shared.reports import ReconcileReport
from shared.settings import Settings
from tests.support.fake_host import FakeFault, FakeHost, Method
from tests.support.virtual_time import run_virtual

SETTINGS: Final = Settings.from_environ(
    {
        "ANTHROPIC_ENVIRONMENT_ID": "env_1",
        "ANTHROPIC_ENVIRONMENT_KEY": "not-a-real-environment-key",
        "TENSORLAKE_API_KEY": "not-a-real-tensorlake-key",
    }
)


class EndedBench:
    """Counts the calls, and remembers for which sessions a pass was made."""

    def __init__(self, fault: FakeFault | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.passes: list[str] = []
        self.host = FakeHost(latency=0.05, meet=self._meet)
        self._fault = fault
        self.ended = EndedSessions(SETTINGS, lambda: self.host, self._pass)

    def _meet(self, method: Method, _: str) -> FakeFault | None:
        self.calls[method] += 1
        return self._fault

    async def _pass(self, environment_id: str, session_id: str, deadline: Deadline) -> ReconcileReport:
        await asyncio.sleep(0.5)
        self.passes.append(session_id)
        return ReconcileReport(environment_id, 1, 0, 0, (), (), (), 0, 0.5)

    def own(self, session_id: str, status: SandboxStatus = SandboxStatus.SUSPENDED) -> None:
        self.host.add(names.sandbox_name(SETTINGS.prefix, "env_1", session_id), status)


def foreign(count: int) -> Sequence[str]:
    return [f"sesn_01Foreign{number:010d}" for number in range(count)]


def test_hundreds_of_foreign_deletions_cost_a_handful_of_calls_and_the_own_one_is_acted_on() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = EndedBench()
        bench.own("sesn_01Mine")
        sessions = list(foreign(300))
        sessions.insert(100, "sesn_01Mine")
        futures = []
        for session in sessions:
            futures.append(bench.ended.add(session))
            await asyncio.sleep(0.02)
        reports = await asyncio.gather(*map(asyncio.shield, futures))
        assert bench.passes == ["sesn_01Mine"]
        assert [len(each) for each in reports].count(1) == 1
        assert sum(bench.calls.values()) <= 10
        await bench.ended.aclose(1.0)

    run_virtual(play)


def test_a_storm_of_foreign_deletions_costs_two_calls_a_second_however_many_sandboxes_there_are() -> None:
    """A list of ten thousand sandboxes has a hundred pages: fewer sessions than that are asked for by name."""

    async def play(clock: Callable[[], float]) -> None:
        bench = EndedBench()
        for number in range(3_000):
            bench.own(f"sesn_01Own{number}")
        await asyncio.gather(*map(asyncio.shield, map(bench.ended.add, foreign(40))))
        assert bench.calls == {"list": 1}, "their number is not known yet"
        began = clock()
        for number in range(1_000):
            bench.ended.add(f"sesn_01Stranger{number:06d}")
            await asyncio.sleep(0.2)
        calls = bench.calls["find"] + 30 * bench.calls["list"]
        assert calls < 2.2 * (clock() - began) + 30
        await asyncio.sleep(60.0)
        bench.calls.clear()
        await asyncio.gather(*map(asyncio.shield, map(bench.ended.add, foreign(20))))
        assert bench.calls == {"find": 20}
        await bench.ended.aclose(1.0)

    run_virtual(play)


def test_a_session_without_a_sandbox_costs_one_look_by_name_and_no_list() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = EndedBench()
        assert await asyncio.shield(bench.ended.add("sesn_01Gone")) == ()
        assert bench.calls == {"find": 1} and bench.passes == []
        bench.own("sesn_01Dead", SandboxStatus.TERMINATED)
        assert await asyncio.shield(bench.ended.add("sesn_01Dead")) == ()
        await bench.ended.aclose(1.0)

    run_virtual(play)


def test_one_session_that_is_told_of_ten_times_is_looked_after_once() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = EndedBench()
        bench.own("sesn_01Mine")
        first = bench.ended.add("sesn_01Other")
        await asyncio.sleep(0.01)
        futures = [bench.ended.add("sesn_01Mine") for _ in range(10)]
        await asyncio.gather(*map(asyncio.shield, [first, *futures]))
        assert bench.passes == ["sesn_01Mine"]
        await bench.ended.aclose(1.0)

    run_virtual(play)


@pytest.mark.parametrize("count", [1, 50])
def test_a_look_that_fails_is_left_to_the_next_tick(count: int) -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = EndedBench(FakeFault.LOST_BEFORE)
        bench.own("sesn_01Mine")
        futures = [bench.ended.add(session) for session in ["sesn_01Mine", *foreign(count - 1)]]
        assert set(await asyncio.gather(*map(asyncio.shield, futures))) == {()}
        assert bench.passes == []
        await bench.ended.aclose(1.0)

    run_virtual(play)


def test_closing_answers_whoever_waits() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = EndedBench()
        bench.own("sesn_01Mine")
        running = bench.ended.add("sesn_01Mine")
        await asyncio.sleep(0.1)
        waiting = bench.ended.add("sesn_01Later")
        await bench.ended.aclose(10.0)
        assert len(running.result()) == 1 and waiting.result() == ()

    run_virtual(play)


def test_closing_does_not_wait_for_a_pause_between_two_batches() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = EndedBench()
        await asyncio.gather(*map(asyncio.shield, map(bench.ended.add, foreign(5))))
        waiting = bench.ended.add("sesn_01Later")
        await asyncio.sleep(0.1)
        began = clock()
        await bench.ended.aclose(10.0)
        assert waiting.result() == () and clock() - began < 1.0

    run_virtual(play)
