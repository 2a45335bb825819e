"""The mistakes that the rules warn of (docs/architecture.md#rules), each as a change of the product or of the worker's
model while a test runs.

A mutant that the explorer lets live shows a rule that nothing checks.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from unittest.mock import patch

from shared import names
from shared.adapters.call_budget import Holds
from shared.claims import binding, claimer, dispatcher, earlier_workers, handover
from shared.claims.binding import Binding, Bound, Unbound
from shared.claims.capacity import Capacity
from shared.claims.claimer import _Round
from shared.claims.dispatcher import Dispatcher, _End, spec_of
from shared.claims.known_sandboxes import KnownSandboxes
from shared.claims.warm_pool import WarmPool
from shared.claims.worker_notices import Ready
from shared.deadline import Deadline
from shared.ports import (
    Absent,
    Doubtful,
    ItemState,
    ListedItem,
    Listing,
    NameTaken,
    OpenCalls,
    Refused,
    SandboxRecord,
    StaleEntry,
    WorkItem,
)
from shared.reconcile import lookups, reconciler, world
from shared.reconcile import plan as plan_module
from shared.reconcile.executor import RepairExecutor
from shared.reconcile.repairs import Done, EndMarked, Mark, Outcome, Release, Suspend
from shared.reports import DrainEnd, ItemEnd
from tests.faults.explorer.explore import rare_collections
from tests.faults.explorer.mutant_plans import (
    acked_late,
    asleep_and_spoken_to,
    full,
    killed_in_a_tool,
    many_sleepers,
    often_throttled,
    one_hangs,
    outdated_looks,
    partial_lists,
    pooled,
    resume_refused_once,
    served_marked_and_spoken_to,
    spoken_to_while_looked_at,
    spoken_to_while_marked,
    stands_still,
    stopped_and_killed,
    storm,
    stuck,
    unheard_while_looks_fail,
    where_looks_fail,
)
from tests.faults.explorer.plan import (
    PointFault,
    RunPlan,
    SessionPlan,
    TimedFault,
    Wake,
    plan_of,
)
from tests.faults.explorer.run import prepared, run
from tests.faults.explorer.scaled_settings import LEASE
from tests.support.model.ports import ModelHost, ModelQueue
from tests.support.model.truth import Violation
from tests.support.model.worker import Habits, Rules

Patched = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Mutant:
    """`broken`: rules of which at least one must be seen broken. `plans`: where a mistake shows in rare moments only,
    plans that are full of them."""

    name: str
    broken: tuple[str, ...]
    patched: Patched
    rules: Rules
    plans: Callable[[str], RunPlan] = plan_of


@contextmanager
def _changed(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    patches = [patch.object(owner, name, value) for owner, name, value in changes]
    try:
        for each in patches:
            each.start()
        yield
    finally:
        for each in reversed(patches):
            each.stop()


async def _ack_first(
    self: Dispatcher, item: WorkItem, name: str, claimed_at: float, deadline: Deadline, free_slot: Callable[[], None]
) -> _End:
    """The order of the reference integration: ack, then a sandbox, then a worker."""
    acked = await self._ack(item, claimed_at, "")
    if acked.end is not ItemEnd.HANDED_OVER:
        return acked
    times = self.settings.times
    way = Binding(
        self.host,
        spec_of(self.environment, name),
        prefix=self.settings.prefix,
        resume_suspended=True,
        capacity=self._room(),
        now=self.now,
    )
    bound = await way.bind(deadline.sooner(self.clock() + times.bind))
    if isinstance(bound, Unbound):
        return _End(ItemEnd.FAILED, bound.reason)
    outcome = await handover.hand_over(
        self.host, bound.sandbox.id, item, await self._claim(item, item.secret or ""), user=None, deadline=deadline
    )
    return _End(ItemEnd.HANDED_OVER if isinstance(outcome, Ready) else ItemEnd.FAILED)


async def _gives_up_what_is_offered_again(
    self: Dispatcher, item: WorkItem, name: str, claimed_at: float, until: Deadline, free_slot: Callable[[], None]
) -> _End:
    """An error for each call of a worker that died, though the next worker could run it."""
    if (self.now() - item.created_at).total_seconds() > LEASE:
        calls = await self.queue.open_calls(item.session_id)
        if isinstance(calls, OpenCalls) and calls.ids:
            await self.queue.give_up_calls(item.session_id, calls)
    return await _bring(self, item, name, claimed_at, until, free_slot)


async def _sees_it_alive(*_: object) -> bool:
    return True


_bring = Dispatcher._bring
_session = ModelQueue.session
_list_items = ModelQueue.list_items
_process_names = ModelHost.process_names


async def _failed_session_is_absent(self: ModelQueue, session_id: str) -> Any:
    outcome = await _session(self, session_id)
    return Absent() if isinstance(outcome, Doubtful) else outcome


async def _failed_listing_is_empty(self: ModelQueue, pages: int, back_to: datetime | None = None) -> Any:
    outcome = await _list_items(self, pages, back_to)
    nothing: list[ListedItem] = []
    return Listing(nothing, complete=True) if isinstance(outcome, Refused | Doubtful) else outcome


async def _failed_process_list_is_empty(self: ModelHost, sandbox_id: str) -> Any:
    outcome = await _process_names(self, sandbox_id)
    return [] if isinstance(outcome, Doubtful) else outcome


_sandbox_name = names.sandbox_name


def _lower_cased(prefix: str, environment_id: str, session_id: str) -> str:
    return _sandbox_name(prefix, environment_id, session_id.lower())


async def _release_blindly(self: RepairExecutor, repair: Release) -> Outcome:
    await self.queue.force_stop(repair.item.id)
    calls = await self.queue.open_calls(repair.item.session_id)
    return await self._give_up(repair.item.session_id, calls) if isinstance(calls, OpenCalls) else Done()


async def _mark_blindly(self: RepairExecutor, repair: Mark) -> Outcome:
    name = names.gone_name(repair.sandbox.name, self.settings.prefix, int(self.now().timestamp()))
    await self.host.rename(repair.sandbox.id, name)
    return Done()


async def _end_blindly(self: RepairExecutor, repair: EndMarked) -> Outcome:
    await self.host.terminate(repair.sandbox.id)
    return Done()


async def _suspend_blindly(self: RepairExecutor, repair: Suspend) -> Outcome:
    await self.host.suspend(repair.sandbox.id)
    return Done()


async def _claims_for_ever(self: _Round) -> bool:
    if self._drain.end is not DrainEnd.EMPTY:
        return False
    await self._claimer._slots.acquire()
    self._claimed += 1
    return True


@dataclass(frozen=True, slots=True)
class Kill:
    runs: int
    violations: tuple[Violation, ...]


def kill(mutant: Mutant, seed: str, most_runs: int) -> Kill | None:
    """The first plan that breaks one of the mutant's rules under the mutant, and none without it."""
    with prepared() as loop, rare_collections():
        for number in range(most_runs):
            plan = mutant.plans(f"{seed}-{number}")
            with mutant.patched():
                found = run(plan, loop, rules=mutant.rules).violations
            if any(violation.rule in mutant.broken for violation in found) and not run(plan, loop).violations:
                return Kill(number + 1, found)
    return None


def _mutant(
    name: str,
    broken: str,
    *changes: tuple[Any, str, Any],
    rules: Rules | None = None,
    plans: Callable[[str], RunPlan] = plan_of,
) -> Mutant:
    return Mutant(name, tuple(broken.split()), lambda: _changed(*changes), rules or Rules(), plans)


def _beginning_with(seed: str) -> Callable[[str], RunPlan]:
    """Every plan, but first the one that showed it last: few do."""
    return lambda each: plan_of(seed if each.endswith("-0") else each)


async def _ends_what_it_may_have_named(self: Binding, pool: WarmPool) -> Bound | NameTaken | None:
    """The copy that does not know whether its rename arrived ends its sandbox and makes another."""
    claimed = await pool.claim(self._host, self._spec)
    if not isinstance(claimed, SandboxRecord):
        return None
    if await self._host.rename(claimed.id, self._spec.name) is None:
        return self._named(pool, claimed)
    await self._host.terminate(claimed.id)
    return None


async def _waits_for_what_it_serves(self: _Round) -> None:
    await _round(self)
    while self._drain.serving:
        await asyncio.wait(self._drain.serving)


async def _listed_as_whole(self: ModelQueue, pages: int, back_to: datetime | None = None) -> Any:
    outcome = await _list_items(self, pages, back_to)
    return Listing(outcome.rows, complete=True) if isinstance(outcome, Listing) else outcome


def _deaths_in_calls(seed: str) -> RunPlan:
    """Each of four calls kills two workers, whose lease ends soon after."""
    chance = random.Random(seed)
    return RunPlan(
        seed=seed,
        copies=1,
        sessions=(SessionPlan("sesn_Kills", ((1.0, (1, 1, 1, 1)),), 0.2, Habits(start=0.2, load=0.2)),),
        wakes=tuple(Wake(10.0 * number + 2.0 + chance.random(), 0) for number in range(11)),
        point_faults=tuple(PointFault(0, "tool", number, "kill") for number in range(8)),
        timed_faults=tuple(TimedFault(10.0 * number, 0, "expire") for number in range(1, 11)),
    )


def _leases_end(seed: str) -> RunPlan:
    """One worker after the other loses its lease, and ends in order."""
    chance = random.Random(seed)
    return RunPlan(
        seed=seed,
        copies=1,
        sessions=(SessionPlan("sesn_Loses", ((1.0, (1,) * 40),), 3.0, Habits(start=0.2, load=0.2, tool=0.1)),),
        wakes=tuple(Wake(17.0 * number + 16.0 + chance.random(), 0) for number in range(6)),
        timed_faults=tuple(TimedFault(17.0 * number, 0, "expire") for number in range(1, 7)),
    )


def _broken(seed: str) -> RunPlan:
    return RunPlan(
        seed=seed, copies=1, sessions=(SessionPlan("sesn_Broken", ((1.0, (1,)),), 0.2, Habits(broken=True)),)
    )


async def _gives_up_quietly(self: Dispatcher, item: WorkItem, deaths: Sequence[str]) -> _End:
    return replace(await _give_up(self, item, deaths), alarm=False)


async def _interrupts(self: RepairExecutor, session_id: str, calls: OpenCalls) -> Outcome:
    await self.queue.interrupt(session_id)
    return Done()


_give_up = Dispatcher._give_up


async def _never_given_up(*_: object) -> None:
    pass


async def _never_set_aside(self: Binding, sandbox: SandboxRecord, reason: str) -> None:
    pass


def _lifted_by_any_answer(self: Holds, credential: str) -> None:
    self._until.pop(credential, None)


_round = _Round.run


MUTANTS: Final = (
    _mutant("ack before hand-over", "I1", (Dispatcher, "_bring", _ack_first)),
    _mutant("a session call before the first granted heartbeat", "I3", rules=Rules(gate=False)),
    _mutant("no lock in the worker", "I3", rules=Rules(lock=False)),
    _mutant(
        "a failed session look-up read as deleted",
        "I4 I5",
        (ModelQueue, "session", _failed_session_is_absent),
        plans=where_looks_fail("session"),
    ),
    _mutant(
        "a failed list of items read as empty",
        "I5 I1",
        (ModelQueue, "list_items", _failed_listing_is_empty),
        plans=where_looks_fail("list_items"),
    ),
    _mutant(
        "a failed list of processes read as empty",
        "I5 I1",
        (ModelHost, "process_names", _failed_process_list_is_empty),
        plans=unheard_while_looks_fail,
    ),
    _mutant(
        "a sandbox of the pool that got no name is nobody's business",
        "I4",
        (plan_module, "_nameless", lambda *_: iter(())),
        plans=pooled,
    ),
    _mutant(
        "a sandbox whose rename is in doubt is ended",
        "I5 I1",
        (Binding, "_claim", _ends_what_it_may_have_named),
        plans=pooled,
    ),
    _mutant("name lower-cased", "I2", (names, "sandbox_name", _lower_cased)),
    _mutant("release without a last look", "I5 I1", (RepairExecutor, "_release", _release_blindly)),
    _mutant(
        "end of a marked sandbox without a last look",
        "I5",
        (RepairExecutor, "_end_marked", _end_blindly),
        plans=spoken_to_while_marked,
    ),
    _mutant(
        "mark without a last look",
        "I5 I1 I4",
        (RepairExecutor, "_mark", _mark_blindly),
        plans=spoken_to_while_looked_at,
    ),
    _mutant("suspend without a last look", "I5", (RepairExecutor, "_suspend", _suspend_blindly), plans=outdated_looks),
    _mutant(
        "a suspend that ignores queued and starting",
        "I5",
        (world, "LIVE", frozenset({ItemState.ACTIVE, ItemState.STOPPING})),
    ),
    _mutant(
        "an item that is stopping is nobody's business",
        "I1",
        (plan_module, "_stopping", lambda *_: iter(())),
        plans=stopped_and_killed,
    ),
    _mutant(
        "a lost worker's calls are given up though another could run them",
        "I1",
        (Dispatcher, "_bring", _gives_up_what_is_offered_again),
        plans=killed_in_a_tool,
    ),
    _mutant(
        "an ack is asked for again without a look at the worker",
        "I1",
        (dispatcher, "worker_lives", _sees_it_alive),
        plans=acked_late,
    ),
    _mutant(
        "a worker gets no time to wind down",
        "I5",
        (plan_module, "_WIND_DOWN", 0.0),
        plans=stopped_and_killed,
    ),
    _mutant(
        "an idle tick that asks about every sleeper",
        "I9",
        (lookups, "ring_share", lambda _: 10_000),
        (reconciler, "ring_share", lambda _: 10_000),
        plans=many_sleepers,
    ),
    _mutant(
        "retry-after is not honoured",
        "I9",
        (Holds, "left", lambda self, credential: 0.0),
        plans=often_throttled,
    ),
    _mutant(
        "an answer that was under way lifts what retry-after said",
        "I9",
        (Holds, "answered", _lifted_by_any_answer),
        plans=often_throttled,
    ),
    _mutant("polls wait for what is served", "I9", (_Round, "run", _waits_for_what_it_serves), plans=one_hangs),
    _mutant("each webhook polls", "I9", (claimer, "ROUND_SECONDS", 0.0), plans=storm),
    _mutant("an empty queue is polled on", "I9", (claimer, "Empty", StaleEntry), plans=one_hangs),
    _mutant("each item tries a full quota", "I9", (Capacity, "lacks", lambda self, reason: None), plans=full),
    _mutant("the first refusal sets a sandbox aside", "I5", (binding, "_RESUMES", 1), plans=resume_refused_once),
    _mutant(
        "a sandbox is remembered indefinitely",
        "I2",
        (KnownSandboxes, "get", lambda self, name: self._known.get(name, (0.0, None))[1]),
        plans=served_marked_and_spoken_to,
    ),
    _mutant(
        "a worker that stands still is waited for",
        "I1",
        (earlier_workers, "_give_up", _never_given_up),
        plans=stands_still,
    ),
    _mutant(
        "deaths in calls count against the item",
        "I1",
        (earlier_workers, "_tells_of_a_call", lambda notice: False),
        plans=_deaths_in_calls,
    ),
    _mutant(
        "every end of a worker is a death", "I1", (earlier_workers, "died", lambda process: True), plans=_leases_end
    ),
    _mutant("an item is given up quietly", "I1", (Dispatcher, "_give_up", _gives_up_quietly), plans=_broken),
    _mutant("an agent is not told", "I1", (RepairExecutor, "_give_up", _interrupts), plans=_broken),
    _mutant("a stuck sandbox is waited for", "I1", (Binding, "_set_aside", _never_set_aside), plans=stuck),
    _mutant(
        "half a list is taken for a whole one",
        "I5 I1 I4",
        (ModelQueue, "list_items", _listed_as_whole),
        plans=partial_lists,
    ),
    _mutant(
        "an old address is kept",
        "I1 I4 I5",
        (ModelHost, "route_known_after", staticmethod(lambda known, box: known)),
        plans=asleep_and_spoken_to,
    ),
    _mutant(
        "a drain that claims past its deadline",
        "I7",
        (_Round, "_may_claim", _claims_for_ever),
        plans=_beginning_with("mutants-288"),
    ),
)
