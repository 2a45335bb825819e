"""The mistakes that the design warns of, each as a change of the product or of the worker's model while a test runs.

A mutant that the explorer lets live shows a rule that nothing checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

from shared import naming
from shared.claims import handover
from shared.claims.binding import Unbound, bind
from shared.claims.dispatcher import Dispatcher, _Drain
from shared.deadline import Deadline
from shared.models import DrainEnd, ItemEnd
from shared.ports import Absent, Doubtful, ItemState, ListedItem, Listing, Refused, WorkItem
from shared.reconcile import view
from shared.reconcile.acting import Hands
from tests.faults.explorer.explore import rare_collections
from tests.faults.explorer.plan import plan_of
from tests.faults.explorer.run import prepared, run
from tests.support.model.ports import ModelHost, ModelQueue
from tests.support.model.truth import Violation
from tests.support.model.worker import Rules

Patched = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Mutant:
    """`broken`: rules of which at least one must be seen broken."""

    name: str
    broken: tuple[str, ...]
    patched: Patched
    rules: Rules


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
    self: Dispatcher, item: WorkItem, name: str, claimed_at: float, deadline: Deadline
) -> tuple[ItemEnd, str]:
    """The order of the reference integration: ack, then a sandbox, then a worker."""
    acked = await self._ack(item, claimed_at)
    if acked[0] is not ItemEnd.HANDED_OVER:
        return acked
    times = self.settings.times
    bound = await bind(self.host, self._spec(name), deadline.sooner(self.clock() + times.bind), resume_suspended=True)
    if isinstance(bound, Unbound):
        return ItemEnd.FAILED, bound.reason
    outcome = await handover.hand_over(
        self.host, bound.sandbox.id, item, self._claim(item, item.secret or ""), user=None, deadline=deadline
    )
    return (ItemEnd.HANDED_OVER, "") if isinstance(outcome, handover.Ready) else (ItemEnd.FAILED, outcome.reason)


_session = ModelQueue.session
_list_items = ModelQueue.list_items
_process_names = ModelHost.process_names


async def _failed_session_is_absent(self: ModelQueue, session_id: str) -> Any:
    outcome = await _session(self, session_id)
    return Absent() if isinstance(outcome, Doubtful) else outcome


async def _failed_listing_is_empty(self: ModelQueue, pages: int) -> Any:
    outcome = await _list_items(self, pages)
    nothing: list[ListedItem] = []
    return Listing(nothing, complete=True) if isinstance(outcome, Refused | Doubtful) else outcome


async def _failed_process_list_is_empty(self: ModelHost, sandbox_id: str) -> Any:
    outcome = await _process_names(self, sandbox_id)
    return [] if isinstance(outcome, Doubtful) else outcome


_sandbox_name = naming.sandbox_name


def _lower_cased(prefix: str, environment_id: str, session_id: str) -> str:
    return _sandbox_name(prefix, environment_id, session_id.lower())


async def _nothing_seen(self: Hands, *_: object) -> bool:
    return True


async def _release_blindly(self: Hands, repair: Any) -> str | None:
    await self.queue.force_stop(repair.item.id)
    return await self._interrupt(repair.session_id)


async def _mark_blindly(self: Hands, repair: Any, sandbox: Any) -> str | None:
    name = naming.gone_name(repair.name, self.settings.prefix, int(self.now().timestamp()))
    await self.host.rename(sandbox.id, name)
    return None


async def _end_blindly(self: Hands, repair: Any, sandbox: Any) -> str | None:
    await self.host.terminate(sandbox.id)
    return None


async def _suspend_blindly(self: Hands, repair: Any, sandbox: Any) -> str | None:
    await self.host.suspend(sandbox.id)
    return None


async def _claims_for_ever(self: _Drain) -> bool:
    if self.end is not DrainEnd.EMPTY:
        return False
    await self._slots.acquire()
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
            plan = plan_of(f"{seed}-{number}")
            with mutant.patched():
                found = run(plan, loop, rules=mutant.rules).violations
            if any(violation.rule in mutant.broken for violation in found) and not run(plan, loop).violations:
                return Kill(number + 1, found)
    return None


def _mutant(name: str, broken: str, *changes: tuple[Any, str, Any], rules: Rules | None = None) -> Mutant:
    return Mutant(name, tuple(broken.split()), lambda: _changed(*changes), rules or Rules())


MUTANTS: Final = (
    _mutant("ack before hand-over", "I1", (Dispatcher, "_bring", _ack_first)),
    _mutant("a session call before the first granted heartbeat", "I3", rules=Rules(gate=False)),
    _mutant("no lock in the worker", "I3", rules=Rules(lock=False)),
    _mutant("a failed session look-up read as deleted", "I4 I5", (ModelQueue, "session", _failed_session_is_absent)),
    _mutant("a failed list of items read as empty", "I5 I1", (ModelQueue, "list_items", _failed_listing_is_empty)),
    _mutant(
        "a failed list of processes read as empty", "I5 I1", (ModelHost, "process_names", _failed_process_list_is_empty)
    ),
    _mutant("name lower-cased", "I2", (naming, "sandbox_name", _lower_cased)),
    _mutant("release without a last look", "I5 I1", (Hands, "_release", _release_blindly)),
    _mutant("end of a marked sandbox without a last look", "I5 I1", (Hands, "_end_marked", _end_blindly)),
    _mutant("mark without a last look", "I5 I1 I4", (Hands, "_mark", _mark_blindly)),
    _mutant("suspend without a last look", "I5", (Hands, "_suspend", _suspend_blindly)),
    _mutant(
        "a suspend that ignores queued and starting",
        "I5",
        (view, "LIVE", frozenset({ItemState.ACTIVE, ItemState.STOPPING})),
    ),
    _mutant("a drain that claims past its deadline", "I7", (_Drain, "_may_claim", _claims_for_ever)),
)
