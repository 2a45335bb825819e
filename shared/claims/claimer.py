"""Ask the queue, and serve what it gives: two things that never wait for each other.

A wake-up asks for a round of polls. The first one polls at once; those that come during a round, or within a second
after its start, share one more (webhooks come in storms, most of them about somebody else's sessions). A round polls
until the queue is empty. What it claims is served in slots beside it: a slow item holds its slot and nothing else, so
the next round finds the queue whatever the earlier items do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from shared import metrics, tracing
from shared.backoff import pause_before
from shared.deadline import Clock, Deadline
from shared.environment_settings import Environment
from shared.ports import Doubtful, Empty, Refused, StaleEntry, Throttled, WorkItem, WorkQueue
from shared.reports import DrainEnd, DrainReport, ItemEnd, ItemReport
from shared.settings import Settings

log = logging.getLogger(__name__)

ROUND_SECONDS: Final = 1.0
"""At most one round in this time, and a trailing one."""

SHORTEST_DRAIN: Final = 10.0
"""With less time than this no claim is made: no sandbox is made and no worker started so fast."""

_MOST_WAKERS: Final = 16
_DOUBTFUL_IN_A_ROW: Final = 3
_PAUSE: Final = 0.2
_WELL: Final = (ItemEnd.HANDED_OVER, ItemEnd.DISMISSED)
_KEPT_BACK: Final = 2 / 3  # of a short drain's time: claims are made in the rest
_LONGEST_PUT_OFF: Final = 600.0  # seconds; the schedule's next tick asks anyway


class Serves(Protocol):
    """What the polls need of shared.claims.dispatcher.Dispatcher."""

    @property
    def settings(self) -> Settings: ...

    @property
    def environment(self) -> Environment: ...

    @property
    def queue(self) -> WorkQueue: ...

    @property
    def clock(self) -> Clock: ...

    async def serve(
        self, item: WorkItem, claimed_at: float, deadline: Deadline | None, free_slot: Callable[[], None]
    ) -> ItemReport: ...


async def _nothing() -> None:
    pass


class Drain:
    """One round of polls and what it claimed; several wake-ups may share it."""

    def __init__(self, environment_id: str, began: float) -> None:
        self.environment_id = environment_id
        self.began = began
        self.until: Deadline | None = None  # the soonest of the callers' own, which all its items keep to
        self.polls = 0
        self.end = DrainEnd.EMPTY
        self.reason = ""
        self.alarms: list[str] = []
        self.items: list[ItemReport] = []
        self.serving: dict[asyncio.Task[None], tuple[WorkItem, float]] = {}
        self.polled = asyncio.Event()
        self.wakers: list[Any] = []  # spans of whoever asked for it

    def stop(self, end: DrainEnd, reason: str) -> None:
        if self.end is DrainEnd.EMPTY:
            self.end, self.reason = end, reason

    def alarm(self, text: str) -> None:
        self.alarms.append(text)
        metrics.record(metrics.ALARMS, 1, {metrics.ENVIRONMENT: self.environment_id, "hands.alarm.source": "drain"})

    async def settled(self) -> None:
        """Returns when the queue was empty and every claimed item has its end."""
        await self.polled.wait()
        while self.serving:
            await asyncio.wait(self.serving)

    def report(self, now: float) -> DrainReport:
        """As of now: what is being served yet is reported so."""
        going_on = [
            ItemReport(item.id, item.session_id, ItemEnd.SERVING, round(now - claimed_at, 3))
            for task, (item, claimed_at) in self.serving.items()
            if not task.done()
        ]
        unknown = self.end is DrainEnd.EMPTY and not self.polled.is_set()
        return DrainReport(
            environment_id=self.environment_id,
            end=DrainEnd.DEADLINE if unknown else self.end,
            seconds=round(now - self.began, 3),
            polls=self.polls,
            items=(*self.items, *going_on),
            reason="the queue is asked yet" if unknown else self.reason,
            alarms=tuple(dict.fromkeys(self.alarms)),
        )


class Claimer:
    """One environment's, for as long as the process lives. Close it before the event loop ends.

    dispatcher: the one for the next round; what is being served keeps its own.
    prepare: awaited before the first poll (imports that would otherwise cost the first item its time).
    on_item: told of each item's end.
    """

    def __init__(
        self,
        dispatcher: Callable[[], Serves],
        *,
        prepare: Callable[[], Awaitable[None]] = _nothing,
        on_item: Callable[[ItemReport], None] = lambda _: None,
    ) -> None:
        self._dispatcher = dispatcher
        self._prepare = prepare
        self._on_item = on_item
        first = dispatcher()
        self._environment_id = first.environment.id
        self._clock = first.clock
        self._limits = first.settings.drain
        self._slots = asyncio.Semaphore(self._limits.concurrency)
        self._next: Drain | None = None
        self._rounds: asyncio.Task[None] | None = None
        self._last_began: float | None = None
        self._items: set[asyncio.Task[None]] = set()
        self._put_off: asyncio.TimerHandle | None = None
        self._closed = False

    def wake(self, deadline: Deadline | None = None) -> Drain:
        """The round that begins after this call. `deadline`: when the caller's time is over, where that ends its work;
        without one, items have the time that they need."""
        if self._closed:
            drain = Drain(self._environment_id, self._clock())
            drain.stop(DrainEnd.DEADLINE, "closed before it began")
            drain.polled.set()
            return drain
        if self._next is None:
            self._next = Drain(self._environment_id, self._clock())
        drain = self._next
        if deadline is not None:
            drain.until = deadline if drain.until is None else drain.until.sooner(deadline.at)
        if len(drain.wakers) < _MOST_WAKERS:
            drain.wakers += tracing.here()
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._run())
        return drain

    async def drain(self, deadline: Deadline | None = None) -> DrainReport:
        """One round to its very end."""
        drain = self.wake(deadline)
        await drain.settled()
        return drain.report(self._clock())

    async def aclose(self, grace: float) -> None:
        """Claims nothing more, lets what is being served end for `grace` seconds, cancels the rest."""
        self._closed = True
        if self._put_off is not None:
            self._put_off.cancel()
        running = [task for task in (self._rounds, *self._items) if task is not None and not task.done()]
        if self._next is not None:  # it has not begun
            self._next.stop(DrainEnd.DEADLINE, "closed before it began")
            self._next.polled.set()
            self._next = None
        if running and grace > 0:
            await asyncio.wait(running, timeout=grace)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self) -> None:
        while self._next is not None and not self._closed:
            if self._last_began is not None:
                await asyncio.sleep(self._last_began + ROUND_SECONDS - self._clock())
            drain = self._take()
            if drain is None:  # closed meanwhile
                return
            drain.began = self._last_began = self._clock()
            try:
                await self._prepare()
                with tracing.span("poll", {tracing.ENVIRONMENT: drain.environment_id}, causes=drain.wakers) as span:
                    await _Round(self, drain).run()
                    span.set({tracing.OUTCOME: drain.end.value, "hands.polls": drain.polls})
            except Exception as error:  # the edge: the next round must come, and the report says that this one broke
                log.exception("drain.bug environment=%s", drain.environment_id)
                drain.stop(DrainEnd.UNAVAILABLE, f"bug: {type(error).__name__}")
            finally:
                drain.polled.set()
            self._log(drain)

    def _take(self) -> Drain | None:
        drain, self._next = self._next, None
        return drain

    def _log(self, drain: Drain) -> None:
        log.log(
            logging.WARNING if drain.alarms else logging.INFO,
            "drain.polled environment=%s end=%s polls=%d claimed=%d reason=%s alarms=%s",
            drain.environment_id,
            drain.end.value,
            drain.polls,
            len(drain.items) + len(drain.serving),
            drain.reason,
            drain.alarms,
        )

    def put_off(self, seconds: float) -> None:
        """Wake up by itself: the queue was not asked, or not to its end."""
        if self._closed:
            return
        if self._put_off is not None:
            self._put_off.cancel()
        self._put_off = asyncio.get_running_loop().call_later(min(seconds, _LONGEST_PUT_OFF), self.wake)


class _Round:
    """The running state of one round: pollers that claim. The items that they find outlive it, in the claimer."""

    def __init__(self, claimer: Claimer, drain: Drain) -> None:
        dispatcher = claimer._dispatcher()
        times, limits = dispatcher.settings.times, claimer._limits
        self._claimer = claimer
        self._dispatcher = dispatcher
        self._drain = drain
        self._limits = limits
        self._deadline = Deadline.after(limits.deadline, dispatcher.clock)
        if drain.until is not None:
            self._deadline = self._deadline.sooner(drain.until.at)
        whole = self._deadline.left()
        self._short = whole < SHORTEST_DRAIN and whole < times.bind + times.handover
        self._cut_off = self._deadline.at - min(times.bind + times.handover, whole * _KEPT_BACK)
        self._pollers = 1
        self._claimed = 0
        self._stale = 0

    async def run(self) -> None:
        if self._short:
            left = self._deadline.left()
            text = (
                f"{left:.1f} s are left where at least {SHORTEST_DRAIN:g} s are needed, so nothing is ever claimed: "
                "raise the time-out of the function or DRAIN_DEADLINE_SECONDS"
            )
            self._drain.alarm(text)
            self._drain.stop(DrainEnd.DEADLINE, text)
            return
        async with asyncio.TaskGroup() as group:
            await self._poll(group)
        stays = self._drain.until is None
        if stays and self._drain.end in (DrainEnd.DEADLINE, DrainEnd.LIMIT):
            self._claimer.put_off(0.0)

    async def _poll(self, group: asyncio.TaskGroup) -> None:
        """One poller. It adds others as it finds that there is more than one item to claim."""
        found = doubtful = 0
        try:
            while await self._may_claim():
                claimed_at = self._dispatcher.clock()
                self._drain.polls += 1
                outcome = await self._dispatcher.queue.poll()
                if isinstance(outcome, WorkItem | StaleEntry):
                    found += 1
                    doubtful = 0
                    if found > 1 and self._pollers < self._limits.polls_in_flight:
                        self._pollers += 1
                        group.create_task(self._poll(group))
                if isinstance(outcome, WorkItem):
                    self._serve(outcome, claimed_at)
                    continue
                self._give_back(progress=isinstance(outcome, StaleEntry))
                match outcome:
                    case Empty():
                        return
                    case Refused(reason=reason):
                        self._drain.stop(DrainEnd.REFUSED, f"the queue refused the environment key: {reason}")
                        return
                    case StaleEntry():
                        continue  # the next poll moves past it: progress
                    case Throttled(reason=reason, seconds=seconds):
                        if not await self._waited(seconds, reason):
                            return
                        continue
                    case Doubtful(reason=reason):
                        doubtful += 1
                        if doubtful >= _DOUBTFUL_IN_A_ROW:
                            self._drain.stop(DrainEnd.UNAVAILABLE, f"polls keep failing: {reason}")
                            return
                await asyncio.sleep(min(pause_before(doubtful, _PAUSE), self._deadline.left()))
        finally:
            self._pollers -= 1

    async def _waited(self, seconds: float, reason: str) -> bool:
        """Whether to poll again now, as long after as the service said. What does not fit is done later by itself."""
        if self._dispatcher.clock() + seconds < self._cut_off:
            await asyncio.sleep(seconds)
            return True
        self._drain.stop(DrainEnd.UNAVAILABLE, f"the service said to wait for {seconds:.0f} s: {reason}")
        if self._drain.until is None:
            self._claimer.put_off(seconds)
        return False

    async def _may_claim(self) -> bool:
        """A slot and a place under the limit, or the reason why there is none."""
        if self._drain.end is not DrainEnd.EMPTY:
            return False
        slots = self._claimer._slots
        try:
            if self._cut_off <= self._dispatcher.clock():
                raise TimeoutError
            if slots.locked():
                async with asyncio.timeout(self._cut_off - self._dispatcher.clock()):
                    await slots.acquire()
            else:
                await slots.acquire()
        except TimeoutError:
            self._drain.stop(DrainEnd.DEADLINE, "the time for claims is over")
            return False
        if self._claimed + self._stale >= self._limits.max_items:
            slots.release()
            self._drain.stop(DrainEnd.LIMIT, "the limit of items is reached")
            return False
        self._claimed += 1
        return True

    def _give_back(self, *, progress: bool) -> None:
        self._claimed -= 1
        self._stale += progress
        self._claimer._slots.release()

    def _serve(self, item: WorkItem, claimed_at: float) -> None:
        until = None if self._drain.until is None else self._deadline
        task = asyncio.create_task(_served(self._claimer, self._dispatcher, self._drain, item, claimed_at, until))
        self._drain.serving[task] = (item, claimed_at)
        self._claimer._items.add(task)
        task.add_done_callback(self._claimer._items.discard)
        task.add_done_callback(lambda done: self._drain.serving.pop(done, None))


class Slot:
    """An item's place among those that are served at a time. It may be given up early, and only once."""

    def __init__(self, slots: asyncio.Semaphore) -> None:
        self._slots: asyncio.Semaphore | None = slots

    def free(self) -> None:
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()


async def _served(
    claimer: Claimer,
    dispatcher: Serves,
    drain: Drain,
    item: WorkItem,
    claimed_at: float,
    until: Deadline | None,
) -> None:
    slot = Slot(claimer._slots)
    known = {tracing.ENVIRONMENT: drain.environment_id, tracing.WORK: item.id, tracing.SESSION: item.session_id}
    try:
        with tracing.span("item", known) as span:
            report = await dispatcher.serve(item, claimed_at, until, free_slot=slot.free)
            span.set({tracing.OUTCOME: report.end.value, tracing.SANDBOX: report.sandbox or ""})
            if report.end not in _WELL:
                span.fail(report.end.value)
    except Exception as error:  # the edge: one item's bug must not end the others, and it becomes a report
        log.exception("item.bug work=%s", item.id)
        report = ItemReport(item.id, item.session_id, ItemEnd.FAILED, 0.0, None, f"bug: {type(error).__name__}")
    finally:
        slot.free()
    drain.items.append(report)
    metrics.record(metrics.ITEMS, 1, {metrics.ENVIRONMENT: drain.environment_id, metrics.OUTCOME: report.end.value})
    if report.end is ItemEnd.NO_CAPACITY:
        drain.alarm(report.reason)  # once, for however many
    elif report.alarm:
        drain.alarm(f"{item.session_id}: {report.reason}")
    claimer._on_item(report)
