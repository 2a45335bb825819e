"""What the core may rely on of ports.WorkQueue, held against the model and against the real SDK over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from infra.local.process import RunningService
from shared.ports import (
    Absent,
    Empty,
    ItemState,
    ListedItem,
    Listing,
    OpenCalls,
    SessionRecord,
    SessionStatus,
    StaleEntry,
    WorkItem,
    WorkQueue,
)
from tests.conformance.benches import ModelQueues, OfflineQueues, QueueBench, QueueStage
from tests.support.preloaded import forked_service
from tests.support.waiting import until_async

R = 60.0
NO_HEARTBEAT = "NO_HEARTBEAT"


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with forked_service("infra.local.claude", ["--port", "0"]) as running:
        yield running


@pytest.fixture(params=["model", "offline"])
def bench(request: pytest.FixtureRequest) -> QueueBench:
    if request.param == "model":
        return ModelQueues()
    return OfflineQueues(request.getfixturevalue("service"))


async def claimed(queue: WorkQueue) -> WorkItem:
    outcome = await queue.poll()
    assert isinstance(outcome, WorkItem), outcome
    return outcome


async def listed(queue: WorkQueue) -> Sequence[ListedItem]:
    outcome = await queue.list_items(1)
    assert isinstance(outcome, Listing) and outcome.complete and not outcome.unreadable
    return outcome.rows


async def waiting(queue: WorkQueue, session_id: str, calls: int) -> tuple[str, ...]:
    """The session's open calls, once it has so many."""
    found: tuple[str, ...] = ()

    async def as_many() -> bool:
        nonlocal found
        outcome = await queue.open_calls(session_id)
        assert isinstance(outcome, OpenCalls), outcome
        found = outcome.ids
        return len(found) == calls

    await until_async(as_many)
    return found


async def idle(queue: WorkQueue, session_id: str) -> None:
    async def is_idle() -> bool:
        outcome = await queue.session(session_id)
        assert isinstance(outcome, SessionRecord), outcome
        return outcome.status is SessionStatus.IDLE

    await until_async(is_idle)


def test_an_item_is_handed_out_once_within_the_window_and_again_after_it(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue, brief = stage.queue(R), stage.queue(0.3)
        session_id = await stage.open(1)
        first = await claimed(queue)
        assert (first.kind, first.session_id) == ("session", session_id)
        assert first.secret
        assert await queue.poll() == Empty()
        await asyncio.sleep(0.5)
        assert await queue.poll() == Empty(), "R is the polling request's"
        again = await claimed(brief)
        assert (again.id, again.created_at) == (first.id, first.created_at)
        assert again.secret and again.secret != first.secret
        assert [item.state for item in await listed(queue)] == [ItemState.QUEUED]

    bench.play(play)


def test_an_acked_item_that_nobody_beats_for_stays_starting(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue, brief = stage.queue(R), stage.queue(0.1)
        await stage.open(1)
        item = await claimed(queue)
        for _ in range(2):
            assert await queue.ack(item.id) is None
        await asyncio.sleep(0.5)
        assert await brief.poll() == Empty()
        (row,) = await listed(queue)
        assert (row.id, row.state, row.latest_heartbeat_at) == (item.id, ItemState.STARTING, None)
        assert row.acknowledged_at is not None

    bench.play(play)


def test_calls_about_an_item_that_never_was_find_it_absent(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        assert await queue.ack("work_never") == Absent()
        assert await queue.force_stop("work_never") == Absent()
        assert await queue.session("sesn_never") == Absent()
        assert await queue.open_calls("sesn_never") == Absent()
        assert await queue.give_up_calls("sesn_never", OpenCalls(("call_never",))) == Absent()
        assert await queue.interrupt("sesn_never") == Absent()

    bench.play(play)


def test_a_lease_begins_after_the_ack_and_goes_on_by_the_exact_last_value(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        await stage.open(1)
        item = await claimed(queue)
        assert await stage.beat(item.id, NO_HEARTBEAT) == (412, None, "queued")
        await queue.ack(item.id)
        status, first, state = await stage.beat(item.id, NO_HEARTBEAT)
        assert (status, state) == (200, "active") and first is not None
        assert await stage.beat(item.id, NO_HEARTBEAT) == (412, first, "active")
        status, second, _ = await stage.beat(item.id, first)
        assert status == 200 and second not in (None, first)
        assert await stage.beat(item.id, first) == (412, second, "active")
        assert [row.state for row in await listed(queue)] == [ItemState.ACTIVE]

    bench.play(play)


def test_an_item_whose_lease_lapsed_is_claimable_again_under_its_id(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        await stage.open(1)
        item = await claimed(queue)
        await queue.ack(item.id)
        _, value, _ = await stage.beat(item.id, NO_HEARTBEAT)
        await stage.lapse(item.id)
        assert await stage.beat(item.id, value or "") == (412, None, "queued")
        again = await claimed(queue)
        assert again.id == item.id
        (row,) = await listed(queue)
        assert (row.state, row.acknowledged_at, row.latest_heartbeat_at) == (ItemState.QUEUED, None, None)

    bench.play(play)


def test_a_stopped_item_stays_stopped_and_its_open_calls_queue_nothing(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        session_id = await stage.open(1)
        item = await claimed(queue)
        await queue.ack(item.id)
        await waiting(queue, session_id, 1)
        for _ in range(2):
            assert await queue.force_stop(item.id) is None
        assert await queue.ack(item.id) is None
        status, _, state = await stage.beat(item.id, NO_HEARTBEAT)
        assert (status, state) == (200, "stopped")
        assert await queue.poll() == Empty()
        (row,) = await listed(queue)
        assert row.state is ItemState.STOPPED and row.stopped_at is not None
        assert len(await waiting(queue, session_id, 1)) == 1

    bench.play(play)


def test_an_item_is_stopped_before_anybody_acked_it(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(0.0)
        await stage.healthcheck()
        item = await claimed(queue)
        assert item.kind == "healthcheck" and item.secret is None
        assert await queue.force_stop(item.id) is None
        await asyncio.sleep(0.1)
        assert await queue.poll() == Empty()

    bench.play(play)


def test_an_interrupt_ends_the_turn_and_queues_the_session_again(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        session_id = await stage.open(2)
        item = await claimed(queue)
        await waiting(queue, session_id, 2)
        await queue.force_stop(item.id)
        assert await queue.interrupt(session_id) is None
        assert await queue.open_calls(session_id) == OpenCalls()
        fresh = await claimed(queue)
        assert fresh.session_id == session_id and fresh.id != item.id
        assert [row.id for row in await listed(queue)] == [fresh.id, item.id], "newest first"

    bench.play(play)


def test_calls_that_are_given_up_let_the_turn_go_on_and_the_next_ones_tell_of_it(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        session_id = await stage.open(2, 1)
        item = await claimed(queue)
        lost = await waiting(queue, session_id, 2)
        assert await queue.open_calls(session_id) == OpenCalls(lost)
        await queue.force_stop(item.id)
        assert await queue.give_up_calls(session_id, OpenCalls(lost)) is None
        assert await queue.give_up_calls(session_id, OpenCalls(lost)) is None, "a second time it has no effect"
        later = await waiting(queue, session_id, 1)
        assert await queue.open_calls(session_id) == OpenCalls(later, given_up=True)
        fresh = await claimed(queue)
        assert fresh.session_id == session_id and fresh.id != item.id
        await stage.answer(session_id, later[0])
        await idle(queue, session_id)
        await stage.say(session_id, 1)
        assert await queue.open_calls(session_id) == OpenCalls(await waiting(queue, session_id, 1)), "another turn"

    bench.play(play)


def test_commands_read_of_the_queue_what_the_queue_tells(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        session_id = await stage.open(2)
        await stage.healthcheck()
        item = await claimed(queue)
        await queue.ack(item.id)
        await queue.force_stop(item.id)
        await waiting(queue, session_id, 2)
        async with stage.looks() as looks:
            items = await queue.list_items(1)
            assert await looks.list_items(1) == items
            assert isinstance(items, Listing) and len(items.rows) >= 2
            assert await looks.session(session_id) == await queue.session(session_id)
            assert await looks.open_calls(session_id) == await queue.open_calls(session_id) != OpenCalls()
            assert await looks.session("sesn_never") == await looks.open_calls("sesn_never") == Absent()

    bench.play(play)


def test_answered_calls_are_not_waited_for_and_the_last_answer_goes_on(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        session_id = await stage.open(2)
        first, second = await waiting(queue, session_id, 2)
        await stage.answer(session_id, first)
        assert await waiting(queue, session_id, 1) == (second,)
        await stage.answer(session_id, second)
        await idle(queue, session_id)
        assert await queue.open_calls(session_id) == OpenCalls()

    bench.play(play)


def test_a_session_has_at_most_one_live_item(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        session_id = await stage.open(0)
        await idle(queue, session_id)
        await stage.say(session_id)
        assert len(await listed(queue)) == 1
        item = await claimed(queue)
        await idle(queue, session_id)
        await queue.force_stop(item.id)
        assert await queue.poll() == Empty()
        await stage.say(session_id)
        assert (await claimed(queue)).id != item.id
        assert len(await listed(queue)) == 2

    bench.play(play)


@pytest.mark.parametrize("calls", [0, 1])
def test_what_an_active_item_left_unserved_at_its_stop_is_queued_again(bench: QueueBench, calls: int) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        session_id = await stage.open(0)
        item = await claimed(queue)
        await queue.ack(item.id)
        await stage.beat(item.id, NO_HEARTBEAT)
        await idle(queue, session_id)
        await stage.say(session_id, calls)
        await waiting(queue, session_id, calls)
        await idle(queue, session_id)
        await queue.force_stop(item.id)
        if calls:
            assert (await claimed(queue)).id != item.id
        else:
            assert await queue.poll() == Empty()

    bench.play(play)


def test_a_deleted_sessions_item_is_a_stale_entry_once(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        session_id = await stage.open(1)
        await waiting(queue, session_id, 1)
        await stage.delete(session_id)
        assert await queue.session(session_id) == Absent()
        assert await queue.interrupt(session_id) == Absent()
        assert await queue.poll() == StaleEntry()
        assert await queue.poll() == Empty()

    bench.play(play)


def test_an_archived_session_is_terminated(bench: QueueBench) -> None:
    async def play(stage: QueueStage) -> None:
        queue = stage.queue(R)
        session_id = await stage.open(0)
        await idle(queue, session_id)
        await stage.archive(session_id)
        record = await queue.session(session_id)
        assert isinstance(record, SessionRecord)
        assert record.archived and record.status is SessionStatus.TERMINATED

    bench.play(play)
