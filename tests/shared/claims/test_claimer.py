"""Polls and items never wait for each other: only slots do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import pytest

from shared.claims.claimer import ROUND_SECONDS, SHORTEST_DRAIN, Claimer
from shared.claims.dispatcher import Dispatcher
from shared.deadline import Deadline
from shared.ports import Empty, PollOutcome, StaleEntry, Throttled, WorkItem
from shared.reports import DrainEnd, ItemEnd, ItemReport
from shared.settings import Settings
from tests.support.fake_host import FakeHost
from tests.support.virtual_time import run_virtual

ENVIRON: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "not-a-real-environment-key",
    "TENSORLAKE_API_KEY": "not-a-real-tensorlake-key",
}
POLL: Final = 0.05  # seconds that a poll takes


class ClaimQueue:
    """Only what a claimer asks of one. `script` comes before the items."""

    def __init__(self, clock: Callable[[], float], script: Sequence[PollOutcome] = ()) -> None:
        self._clock = clock
        self.script = list(script)
        self.items: list[WorkItem] = []
        self.polled: list[float] = []

    def add(self, name: str) -> None:
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        self.items.append(WorkItem(f"work_{name}", "env_1", "session", f"sesn_{name}", moment, "secret"))

    async def poll(self) -> PollOutcome:
        self.polled.append(self._clock())
        await asyncio.sleep(POLL)
        if self.script:
            return self.script.pop(0)
        return self.items.pop(0) if self.items else Empty()


@dataclass(slots=True)
class ClaimBench:
    """A claimer whose items take as long as `seconds` says; an item that is not in it takes none."""

    clock: Callable[[], float]
    queue: ClaimQueue
    seconds: dict[str, float] = field(default_factory=dict)
    claimed: dict[str, float] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    waits_for_room: frozenset[str] = frozenset()

    def claimer(self, **settings: str) -> Claimer:
        bench = self

        class Serving(Dispatcher):
            async def serve(
                self,
                item: WorkItem,
                claimed_at: float,
                deadline: Deadline | None = None,
                free_slot: Callable[[], None] = lambda: None,
            ) -> ItemReport:
                bench.claimed[item.session_id] = claimed_at
                bench.at_once += 1
                bench.most_at_once = max(bench.most_at_once, bench.at_once)
                if item.session_id in bench.waits_for_room:
                    free_slot()
                    bench.at_once -= 1
                await asyncio.sleep(bench.seconds.get(item.session_id, 0.0))
                if item.session_id not in bench.waits_for_room:
                    bench.at_once -= 1
                bench.served.append(item.session_id)
                return ItemReport(item.id, item.session_id, ItemEnd.HANDED_OVER, 0.0)

        read = Settings.from_environ(ENVIRON | settings)
        queue: object = self.queue
        made = Serving(read, read.environments["env_1"], queue, FakeHost(), self.clock)  # type: ignore[arg-type]
        return Claimer(lambda: made)


def test_a_wake_up_polls_at_once_while_earlier_items_are_still_served() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = ClaimBench(clock, ClaimQueue(clock), {"sesn_stuck": 80.0})
        claimer = bench.claimer()
        bench.queue.add("stuck")
        first = claimer.wake()
        await first.polled.wait()
        await asyncio.sleep(2.0)
        bench.queue.add("later")
        woken = clock()
        await claimer.wake().settled()
        assert bench.served == ["sesn_later"]
        assert bench.claimed["sesn_later"] - woken <= POLL
        assert [item.end for item in first.report(clock()).items] == [ItemEnd.SERVING]
        await first.settled()
        assert [item.end for item in first.report(clock()).items] == [ItemEnd.HANDED_OVER]
        await claimer.aclose(0.0)

    run_virtual(play)


def test_a_storm_of_wake_ups_costs_one_round_a_second_and_a_trailing_one_that_misses_nothing() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = ClaimBench(clock, ClaimQueue(clock))
        claimer = bench.claimer()
        for _ in range(600):
            last = claimer.wake()
            await asyncio.sleep(1 / 30)
        bench.queue.add("mine")
        last = claimer.wake()
        await last.settled()
        assert bench.served == ["sesn_mine"]
        assert len(bench.queue.polled) <= 20 / ROUND_SECONDS + 4
        gaps = [later - earlier for earlier, later in zip(bench.queue.polled, bench.queue.polled[1:-2], strict=False)]
        assert min(gaps) >= ROUND_SECONDS - 0.001
        await claimer.aclose(0.0)

    run_virtual(play)


@pytest.mark.parametrize("seconds", [20.0, 70.0])
def test_a_service_that_says_when_to_come_back_is_believed_and_the_work_goes_on_by_itself(seconds: float) -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = ClaimBench(clock, ClaimQueue(clock, [Throttled("HTTP 429", seconds)]))
        claimer = bench.claimer()
        bench.queue.add("waiting")
        began = clock()
        claimer.wake()
        while not bench.served:
            await asyncio.sleep(0.5)
        assert seconds <= bench.queue.polled[1] - began <= seconds + 5.0
        await claimer.aclose(0.0)

    run_virtual(play)


@pytest.mark.parametrize("stale", [60, 300])
def test_stale_entries_are_progress_however_many(stale: int) -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = ClaimBench(clock, ClaimQueue(clock, [StaleEntry()] * stale))
        claimer = bench.claimer()
        bench.queue.add("behind")
        report = await claimer.drain(Deadline.after(110.0, clock))
        assert report.end is DrainEnd.EMPTY and bench.served == ["sesn_behind"]
        await claimer.aclose(0.0)

    run_virtual(play)


def test_only_slots_bound_how_many_are_served_at_once_and_a_backlog_is_worked_off_by_itself() -> None:
    async def play(clock: Callable[[], float]) -> None:
        names = [f"{number}" for number in range(12)]
        bench = ClaimBench(clock, ClaimQueue(clock), {f"sesn_{name}": 40.0 for name in names})
        claimer = bench.claimer(DRAIN_CONCURRENCY="4")
        for name in names:
            bench.queue.add(name)
        claimer.wake()  # nobody wakes it again, and its own time for claims is over before the slots are free
        while len(bench.served) < len(names):
            await asyncio.sleep(1.0)
        assert bench.most_at_once == 4
        assert clock() < 3 * 40.0 + 10.0
        await claimer.aclose(0.0)

    run_virtual(play)


def test_an_item_that_only_waits_for_room_keeps_no_slot_from_the_others() -> None:
    async def play(clock: Callable[[], float]) -> None:
        waiting = frozenset({"sesn_0", "sesn_1"})
        bench = ClaimBench(clock, ClaimQueue(clock), dict.fromkeys(waiting, 60.0), waits_for_room=waiting)
        claimer = bench.claimer(DRAIN_CONCURRENCY="2")
        for name in ("0", "1", "has-its-own"):
            bench.queue.add(name)
        claimer.wake()
        await asyncio.sleep(2.0)
        assert bench.served == ["sesn_has-its-own"]
        await claimer.aclose(0.0)

    run_virtual(play)


def test_a_drain_too_short_for_any_claim_says_so_and_claims_nothing() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = ClaimBench(clock, ClaimQueue(clock))
        claimer = bench.claimer()
        bench.queue.add("never")
        report = await claimer.drain(Deadline.after(SHORTEST_DRAIN - 1.0, clock))
        assert report.polls == 0 and report.end is DrainEnd.DEADLINE
        assert "time-out" in report.alarms[0] and "nothing is ever claimed" in report.alarms[0]
        await claimer.aclose(0.0)

    run_virtual(play)


@pytest.mark.parametrize("seconds", [27.0, 57.0, 87.0, 97.0])
def test_a_short_drain_keeps_back_what_follows_a_claim_and_claims_in_the_rest(seconds: float) -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = ClaimBench(clock, ClaimQueue(clock))
        claimer = bench.claimer()
        bench.queue.add("one")
        report = await claimer.drain(Deadline.after(seconds, clock))
        assert bench.served == ["sesn_one"] and not report.alarms
        await claimer.aclose(0.0)

    run_virtual(play)


def test_a_report_made_before_the_queue_has_answered_does_not_call_it_empty() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = ClaimBench(clock, ClaimQueue(clock))
        claimer = bench.claimer()
        drain = claimer.wake()
        assert drain.report(clock()).end is DrainEnd.DEADLINE
        await drain.settled()
        assert drain.report(clock()).end is DrainEnd.EMPTY
        await claimer.aclose(0.0)

    run_virtual(play)


def test_closing_lets_what_was_claimed_end_and_claims_nothing_more() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = ClaimBench(clock, ClaimQueue(clock), {"sesn_slow": 30.0, "sesn_stuck": 3000.0})
        claimer = bench.claimer()
        bench.queue.add("slow")
        bench.queue.add("stuck")
        await claimer.wake().polled.wait()
        waiting = claimer.wake()
        closing = asyncio.create_task(claimer.aclose(60.0))
        await waiting.polled.wait()
        bench.queue.add("late")
        assert claimer.wake().polled.is_set()
        await closing
        assert bench.served == ["sesn_slow"] and "sesn_late" not in bench.claimed

    run_virtual(play)


def test_what_is_imported_for_the_first_claim_is_imported_before_the_first_poll() -> None:
    async def play(clock: Callable[[], float]) -> None:
        bench = ClaimBench(clock, ClaimQueue(clock))
        happened: list[str] = []

        async def prepare() -> None:
            await asyncio.sleep(5.0)
            happened.append(f"prepared, {len(bench.queue.polled)} polls")

        made = bench.claimer()
        claimer = Claimer(made._dispatcher, prepare=prepare)
        await claimer.wake().settled()
        assert happened == ["prepared, 0 polls"] and len(bench.queue.polled) == 1
        await claimer.aclose(0.0)

    run_virtual(play)
